"""What is saved is whole, whatever the adapter is called: it decodes, loads and merges everywhere."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES, TINY_SIZES
from datasets import Dataset
from folders import puzzles, tree, write_rows
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from trainers import make_trainer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer, merge_adapter
from warmup_peft.cli.main import main
from warmup_peft.inference.folder import TrainingRecord, WarmupConfig
from warmup_peft.inference.loading import load_folder

IDS = torch.arange(3, 60).unsqueeze(0)
SETTINGS = {
    "save_strategy": "steps", "save_steps": 1, "max_steps": 2, "per_device_train_batch_size": 2, "num_warmups": 2,
    "max_warmup_length": 4, "learning_rate": 0.01, "bf16": False, "report_to": "none", "disable_tqdm": True,
    "gradient_checkpointing": False,
}  # fmt: skip


def named(model_folder: str, lora: LoraConfig, name: str) -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    return get_peft_model(base, lora, adapter_name=name)


def trainer_of(model: PeftModel, folder: Path, tokenizer) -> WarmupSFTTrainer:
    args = WarmupSFTConfig(str(folder), **SETTINGS)
    return WarmupSFTTrainer(model, args, train_dataset=Dataset.from_list(EXAMPLES), processing_class=tokenizer)


@pytest.fixture
def trained(tmp_path, model_folder, lora, tokenizer) -> WarmupSFTTrainer:
    trainer = trainer_of(named(model_folder, lora, "mine"), tmp_path / "run", tokenizer)
    trainer.train()
    trainer.save_model()
    return trainer


def test_the_saved_folder_is_that_of_any_adapter(trained, tmp_path, model_folder, lora, tokenizer):
    default = trainer_of(named(model_folder, lora, "default"), tmp_path / "default", tokenizer)
    default.train()
    default.save_model()
    assert set(tree(tmp_path / "run")) == set(tree(tmp_path / "default"))
    for folder in ("", "checkpoint-1", "checkpoint-2"):
        own, other = (load_file(tmp_path / run / folder / "adapter_model.safetensors") for run in ("run", "default"))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)


def test_it_loads_and_merges_and_answers(trained, tmp_path, capsys):
    with torch.no_grad():
        expected = trained.model.eval()(IDS).logits
        assert torch.equal(load_folder(tmp_path / "run").model(IDS).logits, expected)
        assert merge_adapter(tmp_path / "run", tmp_path / "merged").relative_logit_error < 1e-5
        assert (load_folder(tmp_path / "merged").model(IDS).logits - expected).norm() / expected.norm() < 1e-5
    argv = ["generate", "--adapter", str(tmp_path / "run"), "--prompt", "Q: one?", "--max_new_tokens", "4"]
    assert main(argv) == 0


def test_it_resumes(trained, tmp_path, model_folder, lora, tokenizer):
    unbroken = load_file(tmp_path / "run" / "adapter_model.safetensors")
    shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "again" / "checkpoint-1")
    resumed = trainer_of(named(model_folder, lora, "mine"), tmp_path / "again", tokenizer)
    resumed.train(resume_from_checkpoint=True)
    resumed.save_model()
    assert list(resumed.model.peft_config) == ["mine"]
    ended = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(ended[name], unbroken[name]) for name in unbroken)


def test_several_adapters_are_refused(tmp_path, model_folder, lora, tokenizer):
    model = named(model_folder, lora, "default")
    model.add_adapter("mine", lora)
    with pytest.raises(ValueError, match=r"^The model has 2 adapters, and a saved folder holds one\."):
        trainer_of(model, tmp_path / "run", tokenizer)
    model.delete_adapter("mine")
    trainer_of(model, tmp_path / "run", tokenizer)


def test_a_saved_folder_says_how_to_decode_and_how_it_was_made(model_folder, tokenizer, lora, nf4, tmp_path):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, quantization_config=nf4)
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert json.loads((folder / "warmup_config.json").read_text()) == {
        "warmup_separator": " | ",
        "warmup_separator_ids": tokenizer(" | ")["input_ids"],
        "max_warmup_length": 5,
        "end_token_ids": [1, *range(200, 270)],
        "warmup_opening": "",
        "warmup_opening_ids": [],
        "writes_separator": False,
        "uses_chat_template": False,
        "chat_template_kwargs": {},
    }
    record = json.loads((folder / "warmup_training.json").read_text())
    assert record["base_model"] == model_folder
    assert record["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert "two calls" in (folder / "README.md").read_text()


@pytest.mark.parametrize("loaded", [False, True], ids=["by its name", "loaded"])
def test_a_local_base_is_found_from_every_folder(model_folder, tokenizer, lora, tmp_path, monkeypatch, loaded):
    monkeypatch.chdir(Path(model_folder).parent)
    name = Path(model_folder).name
    model = AutoModelForCausalLM.from_pretrained(name) if loaded else name
    trainer = make_trainer(model, tmp_path, tokenizer, peft_config=lora)
    trainer.save_model()
    monkeypatch.chdir("/")
    assert load_folder(tmp_path / "run").record.base_model == model_folder


def test_the_record_has_the_batch_size_that_fitted(model_folder, tokenizer, lora, tmp_path, monkeypatch):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, auto_find_batch_size=True)
    compute_loss = trainer.compute_loss

    def too_large(model, inputs, *positional, **keywords):
        if len(inputs["input_ids"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return compute_loss(model, inputs, *positional, **keywords)

    monkeypatch.setattr(trainer, "compute_loss", too_large)
    trainer.train()
    trainer.save_model()
    assert trainer.args.per_device_train_batch_size == 4
    assert TrainingRecord.load(tmp_path / "run").settings["batch_size"] == 2
    assert "| batch_size | 2 |" in (tmp_path / "run" / "README.md").read_text()


def test_a_chat_template_that_adds_tokens_is_trained_scored_used_and_merged(tokenizer, lora, tmp_path, capsys):
    """TRL makes the base's embeddings longer; whoever loads the adapter has to do the same."""
    base = LlamaForCausalLM(LlamaConfig(**{**TINY_SIZES, "vocab_size": len(tokenizer)}))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    chat = copy.deepcopy(tokenizer)
    chat.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
    chat.add_special_tokens({"eos_token": "<|end|>"})
    chat.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat.save_pretrained(tmp_path / "chat")
    rows = [
        {"prompt": [{"role": "user", "content": "one?"}], "completion": [{"role": "assistant", "content": "yes"}]}
    ] * 4
    trainer = make_trainer(
        str(tmp_path / "base"), tmp_path, copy.deepcopy(tokenizer), rows=rows, peft_config=lora, max_steps=2,
        learning_rate=1e-2, chat_template_path=str(tmp_path / "chat"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    assert lora.trainable_token_indices is None  # the caller's own stays as it was
    loaded = load_folder(tmp_path / "run")
    assert len(loaded.tokenizer) > len(tokenizer)
    ids = loaded.tokenizer("<|user|>one?<|end|><|assistant|>", return_tensors="pt").input_ids
    assert ids.max() >= len(tokenizer)
    with torch.no_grad():
        expected = last_states(trainer.model.eval(), ids)
        torch.testing.assert_close(last_states(loaded.model, ids), expected)
    argv = ["--adapter", str(tmp_path / "run")]
    assert main(["generate", *argv, "--prompt", "<|user|>one?<|end|><|assistant|>", "--max_new_tokens", "2"]) == 0
    data = write_rows(tmp_path / "rows.jsonl", puzzles(4))
    evaluation = ["--dataset_name", str(data), "--task", "logiqa", "--max_new_tokens", "2"]
    assert main(["evaluate", *argv, *evaluation]) == 0
    assert merge_adapter(tmp_path / "run", tmp_path / "merged").relative_logit_error < 1e-5


def last_states(model, ids):
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1]


def test_a_save_that_is_cut_off_leaves_the_card_to_be_written_again(
    model_folder, tokenizer, lora, tmp_path, monkeypatch
):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    trainer.save_model()
    card = tmp_path / "run" / "README.md"
    before = card.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(WarmupConfig, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer.save_model()
    assert card.read_text() == before
    trainer.state.global_step = 7
    trainer.save_model()
    assert "| steps | 7 |" in card.read_text()
