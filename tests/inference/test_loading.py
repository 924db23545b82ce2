"""Folders become models again: the same numbers as before saving, and clear words for what is missing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from folders import (
    argv_of,
    logits,
    random_adapter,
    relative_difference,
    save_adapter,
    warmup_config,
    with_code_of_its_own,
)
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    RandLoraConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, LlamaForCausalLM, T5Config, set_seed

from warmup_peft import merge_adapter
from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.tasks import Question
from warmup_peft.inference.folder import TrainingRecord, WarmupConfig
from warmup_peft.inference.generation import end_token_ids, write_warmups
from warmup_peft.inference.loading import Loading, context_length, load_base, load_folder, load_tokenizer, switches_off
from warmup_peft.method.branches import Tokens

# ---- Loading ----


def test_adapter_comes_back_on_the_base_it_was_trained_on(trained, tokenizer):
    folder, expected = trained
    loaded = load_folder(folder)
    assert isinstance(loaded.model, PeftModel)
    assert not loaded.model.training
    assert loaded.warmup_config == warmup_config(tokenizer)
    assert loaded.record == TrainingRecord.load(folder)
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert relative_difference(logits(loaded.model), expected) < 1e-6


def test_adapter_changes_the_base(adapter):
    model = load_folder(adapter).model
    with_adapter = logits(model)
    with model.disable_adapter():
        assert relative_difference(logits(model), with_adapter) > 1e-2


LINEARS = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "up_proj"]}
OF_ANY_TUNER = [
    LoraConfig(**LINEARS),
    LoraConfig(**LINEARS, bias="all"),
    LoraConfig(**LINEARS, bias="lora_only"),
    LoraConfig(**LINEARS, lora_bias=True),
    LoraConfig(**LINEARS, use_dora=True),
    LoraConfig(**LINEARS, trainable_token_indices=[3, 4, 50]),
    LoraConfig(**LINEARS, modules_to_save=["embed_tokens", "lm_head", "norm"]),
    LoraConfig(**LINEARS, layer_replication=[[0, 2], [1, 2]]),
    LoraConfig(**LINEARS, target_parameters=["mlp.gate_proj.weight"]),
    LoraConfig(**LINEARS, init_lora_weights="pissa"),
    LoraConfig(**LINEARS, init_lora_weights="olora"),
    LoraConfig(**LINEARS, init_lora_weights="orthogonal"),
    LoraConfig(**{**LINEARS, "target_modules": ["embed_tokens"]}),
    LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm", "norm"]),
    TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3, 4, 50]),
    IA3Config(**LINEARS, feedforward_modules=["up_proj"]),
    LoHaConfig(**LINEARS),
    LoKrConfig(**LINEARS),
    AdaLoraConfig(**LINEARS, total_step=10, bias="all"),
    VeraConfig(**{**LINEARS, "target_modules": ["q_proj", "v_proj"]}, bias="all"),
    RandLoraConfig(**LINEARS, bias="randlora_only"),
    HRAConfig(**LINEARS, bias="all"),
    FourierFTConfig(**LINEARS, n_frequency=20, bias="fourier_only"),
    BOFTConfig(**LINEARS, boft_block_size=4),
    BOFTConfig(**LINEARS, boft_block_size=4, bias="boft_only"),
    OFTConfig(**LINEARS, oft_block_size=4),
    OFTConfig(**LINEARS, oft_block_size=4, bias="all"),
]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("config", OF_ANY_TUNER, ids=lambda config: config.peft_type.value)
def test_adapters_that_do_not_switch_off_to_their_base_are_known(config, tied):
    """What peft does, measured, decides: the adapter is trained away, then disabled."""
    set_seed(0)
    model = LlamaForCausalLM(tiny_config(attention_bias=True, mlp_bias=True, tie_word_embeddings=tied)).eval()
    ids = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad():
        base = model(ids).logits
        model = get_peft_model(model, config).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        assert not torch.allclose(model(ids).logits, base, rtol=1e-3)
        with model.disable_adapter():
            is_base = torch.allclose(model(ids).logits, base, rtol=1e-5, atol=1e-6)
    assert switches_off(model) is is_base


def test_weights_of_the_base_that_the_caller_trains_stay_when_the_adapter_is_off(lora):
    model = get_peft_model(LlamaForCausalLM(tiny_config()), lora)
    assert switches_off(model)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    assert not switches_off(model)


def test_base_is_quantized_as_in_training_or_not_at_all(trained):
    folder, _ = trained
    quantized = TrainingRecord.load(folder).quantization_config is not None
    assert getattr(load_base(folder), "is_loaded_in_4bit", False) is quantized
    assert not getattr(load_base(folder, "original"), "is_loaded_in_4bit", False)


def test_dtype_is_that_of_the_training(adapter):
    record = TrainingRecord.load(adapter)
    record.dtype = "bfloat16"
    record.save(adapter)
    assert load_base(adapter).dtype == torch.bfloat16


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"^The folder .*nowhere does not exist\. Name the output_dir"):
        load_folder(tmp_path / "nowhere")


def test_folder_that_is_no_warmup_model(model_folder):
    with pytest.raises(ValueError, match="it is not a warmup adapter"):
        load_folder(model_folder)


def test_base_that_is_gone(adapter, tmp_path):
    set_base(adapter, str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"base model .*gone cannot be loaded .*Put it back, or set base_model_name"):
        load_folder(adapter)


def set_base(adapter: Path, name: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))


def test_a_base_may_be_named_relative_to_the_adapter(adapter, model_folder, tmp_path, monkeypatch):
    expected = logits(load_folder(adapter).model)
    shutil.copytree(model_folder, tmp_path / "base")
    set_base(adapter, "../base")
    monkeypatch.chdir("/")
    assert torch.equal(logits(load_folder(adapter).model), expected)
    assert merge_adapter(adapter, tmp_path / "merged").relative_logit_error < 1e-5


@pytest.mark.parametrize("name", ["runs/base", "../base", "/no/base"])
def test_a_base_that_is_no_folder_is_named_with_where_it_was_looked_for(adapter, name, tmp_path, monkeypatch):
    set_base(adapter, name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"base model .*base cannot be loaded \(there is no folder") as error:
        load_folder(adapter)
    assert f" {Path(name).absolute()} or {Path(adapter, name).absolute()}" in str(error.value)
    assert "Put it back, or set base_model_name_or_path" in str(error.value)


def test_a_base_that_is_an_adapter_is_refused(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "other")
    set_base(adapter, str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"base model .*other is an adapter itself\. Merge it first"):
        load_folder(adapter)


def test_adapter_weights_that_are_cut_off(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors"):
        load_folder(adapter)


# ---- Tokenizers ----


def copy_with_tokenizer_settings(model_folder, folder, drop=()) -> str:
    shutil.copytree(model_folder, folder)
    path = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop}
    path.write_text(json.dumps(kept))
    return str(folder)


def test_pad_token_falls_back_to_the_end_token(model_folder, tmp_path):
    tokenizer = load_tokenizer(copy_with_tokenizer_settings(model_folder, tmp_path / "copy", drop=["pad_token"]))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|eos|>"
    assert load_tokenizer(model_folder).pad_token == "<|pad|>"


@pytest.mark.parametrize("drop", [["eos_token"], ["eos_token", "pad_token"]])
def test_tokenizer_without_end_token_is_refused(model_folder, tmp_path, drop):
    folder = copy_with_tokenizer_settings(model_folder, tmp_path / "copy", drop)
    with pytest.raises(ValueError, match=r"has no eos_token.*Set eos_token in its tokenizer_config.json"):
        load_tokenizer(folder)


def test_folder_without_tokenizer(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match=r"copy gives no tokenizer .*Save the model's tokenizer"):
        load_tokenizer(tmp_path / "copy")


def test_model_that_names_no_end_token_ends_where_its_tokenizer_says(model_folder, tmp_path, tokenizer, lora):
    """In training a warmup, and every target, ends at the tokenizer's end token; so must they in use."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    base = str(tmp_path / "base")
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    loaded = load_folder(save_adapter(tmp_path / "adapter", random_adapter(base, lora), tokenizer, base))
    assert loaded.tokenizer.eos_token_id in end_token_ids(loaded.model)


def test_a_separator_that_the_tokenizer_splits_otherwise_is_refused(adapter):
    config = WarmupConfig.load(adapter)
    dataclasses.replace(config, warmup_separator_ids=[5, 6]).save(adapter)
    with pytest.raises(ValueError, match=r"had the token ids \[5, 6\] in training, but the tokenizer"):
        load_folder(adapter)


def test_a_base_of_another_size_is_refused(tmp_path, model_folder, tokenizer, lora):
    LlamaForCausalLM(tiny_config(hidden_size=128)).save_pretrained(tmp_path / "wider")
    model = random_adapter(model_folder, lora)
    folder = save_adapter(tmp_path / "adapter", model, tokenizer, str(tmp_path / "wider"))
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace(model_folder, str(tmp_path / "wider")))
    with pytest.raises(ValueError, match=r"does not fit its base .*wider .*another architecture or size"):
        load_folder(folder)


def test_context_length():
    assert context_length(tiny_config(max_position_embeddings=77)) == 77
    assert context_length(T5Config()) is None


# ---- Devices, and code that models bring ----


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"device": "gpu"}, r"^device=gpu is no device\. Choose cpu, cuda, cuda:1 or mps"),
        ({"device": "cuda:1"}, r"^device=cuda:1 is not there: torch sees 0 of that kind"),
        ({"device": "mps"}, r"^device=mps is not there"),
        ({"device": "meta"}, r"^device=meta is not there"),
        ({"device": "cpu", "device_map": "auto"}, r"^device=cpu and device_map=auto are both given"),
    ],
)
def test_devices_that_are_not_there_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        Loading(**options)


def test_a_device_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    assert Loading("cuda:1").keywords["device_map"] == {"": "cuda:1"}
    with pytest.raises(ValueError, match="torch sees 2 of that kind"):
        Loading("cuda:2")
    with pytest.raises(ValueError, match="torch sees 0 of that kind"):
        Loading("mps")


def written_by(loaded):
    prompt = Tokens(torch.arange(3, 20).unsqueeze(0), torch.ones(1, 17, dtype=torch.bool))
    return write_warmups(loaded.model, prompt, loaded.warmup_config).ids


def test_an_adapter_is_spread_over_what_there_is(adapter):
    whole, spread = load_folder(adapter), load_folder(adapter, Loading(device_map="auto"))
    assert torch.equal(logits(spread.model), logits(whole.model))
    assert torch.equal(written_by(spread), written_by(whole))


def test_a_model_that_is_spread_answers_as_on_one_device(adapter, tmp_path):
    """Layers on the disk, for a model that is larger than a card. (peft loads no adapter on them without a GPU.)"""
    merge_adapter(adapter, tmp_path / "merged")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
              "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "disk"}  # fmt: skip
    whole, spread = (load_folder(tmp_path / "merged", Loading(device_map=each)) for each in (None, places))
    assert spread.model.lm_head.weight.device.type == "meta"
    assert torch.equal(logits(spread.model), logits(whole.model))
    assert torch.equal(written_by(spread), written_by(whole))
    scores = [
        Predictor(each.model, each.tokenizer, each.warmup_config).answer([Question("Q:", (" a", " b"))], 0)[0]
        for each in (whole, spread)
    ]
    assert scores[0] == scores[1]


def test_code_of_the_base_runs_only_if_the_user_says_so(tmp_path, model_folder, tokenizer, lora, monkeypatch, capsys):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    folder = save_adapter(tmp_path / "adapter", random_adapter(str(base), lora), tokenizer, str(base))
    expected = logits(load_folder(folder).model)
    with_code_of_its_own(base)
    argv = argv_of("generate", adapter=folder, prompt="Q: one?", max_new_tokens=2)
    assert main(argv) == BAD_INPUT
    assert "base brings Python code of its own, which was not run. Read it, and add" in capsys.readouterr().err
    with pytest.raises(ValueError, match="brings Python code of its own"):
        merge_adapter(folder, tmp_path / "merged")
    assert not (base / "ran").exists()
    assert main([*argv, "--trust_remote_code", "true"]) == 0
    assert (base / "ran").exists()
    assert torch.equal(logits(load_folder(folder, Loading(trust_remote_code=True)).model), expected)
