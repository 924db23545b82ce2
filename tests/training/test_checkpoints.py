"""A run that was interrupted and goes on ends, bit by bit, where an unbroken one ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from thinning import every
from trainers import make_trainer
from transformers import BitsAndBytesConfig

from warmup_peft.training.checkpoints import checkpoint_to_resume, checkpoints, is_whole, last_checkpoint

ADAPTER = "adapter_model.safetensors"
STEPS = 7  # of 4 examples one at a time, 3 accumulated: 3 + 1 in each epoch
QLORA = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)


def qlora_trainer(model, folder, tokenizer, lora, **settings):
    """NF4 with a bfloat16 adapter, as the recipes have it; with everything in it that is sampled at random."""
    settings = {
        "model_init_kwargs": {"dtype": "bfloat16"},
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "max_steps": STEPS,
        "learning_rate": 0.01,
        "warmup_anchor": 0.3,
        "warmup_pool_size": 6,
        "warmup_dropout": 0.3,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        **settings,
    }
    return make_trainer(model, folder, tokenizer, peft_config=lora, quantization_config=QLORA, **settings)


@pytest.fixture(scope="module", params=["policy", "base"])
def unbroken(request, model_folder, tokenizer, tmp_path_factory):
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp(request.param)
    trainer = qlora_trainer(model_folder, folder, tokenizer, lora, warmup_source=request.param)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.mark.parametrize("step", every(2, [1, 2, 3, 6, STEPS]))
def test_a_resumed_run_ends_with_the_same_bits(unbroken, model_folder, tokenizer, lora, tmp_path, step):
    whole = Path(unbroken.args.output_dir)
    trainer = qlora_trainer(model_folder, tmp_path, tokenizer, lora, warmup_source=unbroken.args.warmup_source)
    trainer.train(resume_from_checkpoint=str(whole / f"checkpoint-{step}"))
    trainer.save_model()
    resumed = Path(trainer.args.output_dir)
    assert {tensor.dtype for tensor in load_file(resumed / ADAPTER).values()} == {torch.bfloat16}
    assert (resumed / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    for later in range(step + 1, STEPS + 1):
        assert same_optimizer(whole / f"checkpoint-{later}", resumed / f"checkpoint-{later}")
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses == [log["loss"] for log in unbroken.state.log_history if "loss" in log]


def same_optimizer(one: Path, other: Path) -> bool:
    a, b = (torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in (one, other))
    return a.keys() == b.keys() and all(
        a[i][name].dtype == b[i][name].dtype and torch.equal(a[i][name], b[i][name]) for i in a for name in a[i]
    )


def test_the_best_model_comes_back_as_it_was_saved(model_folder, tokenizer, lora, tmp_path):
    trainer = qlora_trainer(model_folder, tmp_path, tokenizer, lora, max_steps=2)
    trainer.train()
    trainer.state.best_model_checkpoint = str(Path(trainer.args.output_dir, "checkpoint-1"))
    trainer._load_best_model()  # as at the end of a training with load_best_model_at_end
    trainer.save_model()
    saved = Path(trainer.state.best_model_checkpoint, ADAPTER).read_bytes()
    assert Path(trainer.args.output_dir, ADAPTER).read_bytes() == saved


# ---- Checkpoints that were cut short ----


def checkpoint(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_last_whole_checkpoint_is_taken(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    whole = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 8)
    checkpoint(tmp_path, 10, None)
    checkpoint(tmp_path, 100, '{"epoch": 1')
    checkpoint(tmp_path, 101, "")
    (tmp_path / "checkpoint-last").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (8, 9, 10, 100, 101)]
    assert last_checkpoint(tmp_path) == whole
    assert checkpoint_to_resume(True, tmp_path) == checkpoint_to_resume("last", tmp_path) == str(whole)
    assert checkpoint_to_resume(None, tmp_path) is checkpoint_to_resume("False", tmp_path) is None


def test_a_checkpoint_that_was_cut_short_is_refused(model_folder, tokenizer, lora, tmp_path):
    half = checkpoint(tmp_path / "run", 3, '{"epoch": 1')
    with pytest.raises(ValueError, match="checkpoint-3 was cut short while it was written"):
        checkpoint_to_resume(str(half), tmp_path / "run")
    trainer = qlora_trainer(model_folder, tmp_path, tokenizer, lora)
    with pytest.raises(ValueError, match=r"There is no checkpoint in .*run to resume from"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(
    unbroken, model_folder, tokenizer, lora, tmp_path, monkeypatch, part
):
    source = unbroken.args.warmup_source
    trainer = qlora_trainer(model_folder, tmp_path, tokenizer, lora, warmup_source=source, max_steps=1)
    path = checkpoint(Path(trainer.args.output_dir), 1)
    seen, save = [], getattr(trainer, part)

    def looking(*positional, **keywords):
        seen.append(is_whole(path))
        save(*positional, **keywords)

    monkeypatch.setattr(trainer, part, looking)
    trainer.train()
    assert seen == [False]
    assert is_whole(path)
