"""Adapters merged into their bases: the same numbers, whole folders, and refusals before the work."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import tiny_config
from folders import assert_serves, logits, random_adapter, relative_difference, save_adapter, tree
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, set_seed

from warmup_peft import merge_adapter
from warmup_peft.export.merge import device_for, merge_layer_by_layer
from warmup_peft.inference.folder import METRICS_NAME, TrainingRecord, is_adapter
from warmup_peft.inference.loading import Base, load_base, load_folder
from warmup_peft.inference.scores import save_scores


def test_merged_model_is_the_adapter_in_plain_weights(trained, tmp_path):
    folder, expected = trained
    report = merge_adapter(folder, tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").eval()
    assert merged.dtype == torch.float32
    assert getattr(merged.config, "quantization_config", None) is None
    assert report.output_dir == str(tmp_path / "merged")
    assert report.relative_logit_error < 1e-5
    assert relative_difference(logits(merged), expected) < 1e-5


def test_reported_error_is_that_of_the_saved_weights(adapter, tmp_path):
    expected = logits(load_folder(adapter).model)
    exact = merge_adapter(adapter, tmp_path / "exact")
    rounded = merge_adapter(adapter, tmp_path / "rounded", dtype=torch.bfloat16)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded", dtype="auto").eval()
    assert merged.dtype == torch.bfloat16
    assert exact.relative_logit_error < 1e-5 < 1e-3 < rounded.relative_logit_error
    assert rounded.relative_logit_error == pytest.approx(relative_difference(logits(merged), expected), rel=0.5)


def test_nf4_merge_starts_from_the_dequantized_base(tmp_path, model_folder, tokenizer, lora, nf4):
    """Merged into the original weights instead, the logits would be off by as much as the quantization is."""
    model = random_adapter(model_folder, lora, nf4)
    expected = logits(model)
    folder = save_adapter(tmp_path / "adapter", model, tokenizer, model_folder, nf4)
    original = PeftModel.from_pretrained(load_base(folder, "original"), folder)
    merge_adapter(folder, tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert relative_difference(logits(original), expected) > 100 * relative_difference(logits(merged), expected)
    assert_serves(load_folder(folder), tmp_path / "merged")


def test_nf4_merge_into_the_original_base_says_how_far_it_is(tmp_path, model_folder, tokenizer, lora, nf4):
    folder = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora, nf4), tokenizer, model_folder, nf4)
    exact = merge_adapter(folder, tmp_path / "exact", dtype="float32")
    report = merge_adapter(folder, tmp_path / "original", dtype="float32", merge_base="original")
    assert report.relative_logit_error > 100 * exact.relative_logit_error
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "original").eval()
    unquantized = random_adapter(model_folder, lora).eval()  # the same adapter on the original weights
    assert relative_difference(logits(merged), logits(unquantized)) < 1e-5
    with pytest.raises(ValueError, match="merge_base=4bit is unknown"):
        merge_adapter(folder, tmp_path / "other", merge_base="4bit")


def test_merged_folder_is_whole(adapter, tmp_path):
    scores = {"warmup": {"accuracy": 0.5, "macro_f1": 0.25, "n": 8}}
    save_scores(adapter, METRICS_NAME, scores)
    merge_adapter(adapter, tmp_path / "merged")
    loaded = load_folder(tmp_path / "merged")
    assert not is_adapter(tmp_path / "merged")
    assert not isinstance(loaded.model, PeftModel)
    assert (loaded.warmup_config, loaded.record) == (load_folder(adapter).warmup_config, TrainingRecord.load(adapter))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "# merged\n" in card
    assert "0.250" not in card  # the adapter's score, and nobody has scored the merged model
    assert not (tmp_path / "merged" / METRICS_NAME).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_merge_refuses_what_is_no_adapter(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"has no adapter_config.json, so it is not an adapter"):
        merge_adapter(model_folder, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_merge_refuses_a_base_that_is_gone(tmp_path, model_folder, tokenizer, lora):
    base = shutil.copytree(model_folder, tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", random_adapter(str(base), lora), tokenizer, str(base))
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=r"base model .*base cannot be loaded .*Put it back"):
        merge_adapter(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_merge_refuses_what_peft_cannot_merge(tmp_path, model_folder, tokenizer):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_bias=True)  # the layer has no bias
    adapter = save_adapter(tmp_path / "adapter", random_adapter(model_folder, config), tokenizer, model_folder)
    with pytest.raises(ValueError, match=r"^peft cannot merge this adapter \(.*lora_bias=True.*\)\. Use it unmerged"):
        merge_adapter(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_merge_refuses_an_unknown_dtype(adapter, tmp_path):
    with pytest.raises(ValueError, match="float33"):
        merge_adapter(adapter, tmp_path / "merged", dtype="float33")


def test_merge_refuses_a_folder_that_is_taken_until_told_otherwise(adapter, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"taken is not empty\. .*--overwrite_output_dir"):
        merge_adapter(adapter, taken)
    assert tree(taken) == {"config.json": b"{}"}
    merge_adapter(adapter, taken, overwrite=True)
    assert "model.safetensors" in tree(taken)
    assert tree(taken)["config.json"] != b"{}"


def test_large_weights_are_cut_into_files(adapter, tmp_path):
    expected = logits(load_folder(adapter).model)
    merge_adapter(adapter, tmp_path / "merged", max_shard_size="200KB")
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
    assert relative_difference(logits(load_folder(tmp_path / "merged").model), expected) < 1e-5
    with pytest.raises(ValueError, match=r"^max_shard_size=lots is no size\. Write it as in 5GB"):
        merge_adapter(adapter, tmp_path / "other", max_shard_size="lots")


@pytest.mark.parametrize(
    ("quantization", "device"),
    [(None, "cpu"), ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "cpu"), ({"quant_method": "gptq"}, None)],
)
def test_a_merge_takes_the_cpu_where_it_can(quantization, device):
    assert device_for(Base("base", TrainingRecord("base", quantization_config=quantization), None)) == device


def test_merge_into_an_empty_folder_needs_no_leave(adapter, tmp_path):
    (tmp_path / "empty").mkdir()
    merge_adapter(adapter, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_merge_into_a_folder_not_yet_there(adapter, tmp_path):
    merge_adapter(adapter, tmp_path / "new" / "merged")
    assert (tmp_path / "new" / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("target", ["adapter", "base", "parent"])
def test_merge_never_replaces_the_adapter_or_its_base(tmp_path, model_folder, tokenizer, lora, target):
    base = tmp_path / "here" / "base"
    shutil.copytree(model_folder, base)
    adapter = save_adapter(tmp_path / "here" / "adapter", random_adapter(str(base), lora), tokenizer, str(base))
    output_dir = {"adapter": adapter, "base": base, "parent": tmp_path / "here"}[target]
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="output_dir"):
        merge_adapter(adapter, output_dir, overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("part", ["write_model_card", "shutil.copy", "os.replace"])
def test_failed_merge_leaves_nothing_behind(adapter, tmp_path, monkeypatch, part):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = tree(tmp_path)
    monkeypatch.setattr(f"warmup_peft.export.merge.{part}", full)
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(adapter, tmp_path / "merged")
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_embeddings_that_were_trained_are_untied_by_the_merge(tmp_path, tokenizer, lora):
    LlamaForCausalLM(tiny_config(tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    lora.modules_to_save = ["embed_tokens"]
    model = random_adapter(str(tmp_path / "base"), lora)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2.0)
    expected = logits(model)
    folder = save_adapter(tmp_path / "adapter", model, tokenizer, str(tmp_path / "base"))
    merge_adapter(folder, tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.tie_word_embeddings is False
    assert relative_difference(logits(merged), expected) < 1e-5


def merged_logits(tmp_path, base: LlamaForCausalLM, tokenizer, config) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of an adapter that is far from its base, and of what it is merged into; the error is checked too."""
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    expected = logits(model)
    adapter = save_adapter(tmp_path / "adapter", model, tokenizer, str(tmp_path / "base"))
    assert relative_difference(logits(load_folder(adapter).model), expected) < 1e-5
    assert merge_adapter(adapter, tmp_path / "merged").relative_logit_error < 1e-5
    return expected, logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval())


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "q_proj"], ["q_proj"]], ids=" ".join)
@pytest.mark.parametrize("ensure_weight_tying", [False, True], ids=["", "adapter tied too"])
def test_an_adapter_on_tied_embeddings_is_merged_exactly(tmp_path, tokenizer, targets, ensure_weight_tying):
    set_seed(0)
    base = LlamaForCausalLM(tiny_config(tie_word_embeddings=True))
    config = LoraConfig(target_modules=targets, task_type="CAUSAL_LM", ensure_weight_tying=ensure_weight_tying)
    expected, merged = merged_logits(tmp_path, base, tokenizer, config)
    assert relative_difference(merged, expected) < 1e-5
    merged_config = AutoConfig.from_pretrained(tmp_path / "merged")
    assert merged_config.tie_word_embeddings is ("embed_tokens" not in targets)


@pytest.mark.parametrize(
    "option",
    [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"layer_replication": [[0, 2], [1, 2]]}],
    ids=str,
)
def test_an_adapter_that_changes_its_base_is_merged_into_a_fresh_one(tmp_path, tokenizer, option):
    set_seed(0)
    config = LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **option)
    expected, merged = merged_logits(tmp_path, LlamaForCausalLM(tiny_config()), tokenizer, config)
    assert relative_difference(merged, expected) < 1e-5


@pytest.mark.parametrize(("dtype", "is_refused"), [("float32", True), ("bfloat16", False)])
def test_a_merge_that_is_off_by_more_than_rounding_is_an_error(adapter, tmp_path, monkeypatch, dtype, is_refused):
    """One weight of the merged model is wrong: by two percent of the logits, which bfloat16 rounds away."""

    def spoilt(model, dtype):
        model = merge_layer_by_layer(model, dtype)
        model.lm_head.weight.data[:64] *= 1.05
        return model

    monkeypatch.setattr("warmup_peft.export.merge.merge_layer_by_layer", spoilt)
    before = tree(tmp_path)
    if is_refused:
        with pytest.raises(
            ValueError, match=r"differ from the adapter's by \d\.\d%\. .* 0\.1%, so nothing was written"
        ):
            merge_adapter(adapter, tmp_path / "merged", dtype=dtype)
        assert tree(tmp_path) == before
    else:
        assert 0.01 < merge_adapter(adapter, tmp_path / "merged", dtype=dtype).relative_logit_error < 0.1


def test_a_merge_into_nothing_but_nan_is_an_error(tmp_path, model_folder, tokenizer, lora, nf4, monkeypatch):
    """Also into the original base, whose error has no limit."""
    folder = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora, nf4), tokenizer, model_folder, nf4)

    def spoilt(model, dtype):
        model = merge_layer_by_layer(model, dtype)
        model.lm_head.weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr("warmup_peft.export.merge.merge_layer_by_layer", spoilt)
    with pytest.raises(ValueError, match="nothing was written"):
        merge_adapter(folder, tmp_path / "merged", merge_base="original")
