"""An adapter that is not called "default": what is saved is as whole as any other, and loads everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES
from datasets import Dataset
from folders import tree
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer, merge_adapter
from warmup_peft.cli.main import main
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
