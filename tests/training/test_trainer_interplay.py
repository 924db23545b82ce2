"""Options of TRL and transformers beside warmups: what trains with them, and that it trains the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from safetensors.torch import load_file
from trainers import make_trainer
from transformers import EarlyStoppingCallback

RUNS = {"objective": "jensen", "warmup_anchor": 0.3, "learning_rate": 0.01, "per_device_train_batch_size": 2}


def weights(trainer):
    return torch.cat([p.detach().flatten() for _, p in sorted(trainer.model.named_parameters()) if p.requires_grad])


def test_rows_of_like_length_are_trained_together(model_folder, tokenizer, lora, tmp_path):
    """transformers sorts eight rows at a time here: one of their four batches may be mixed, two at first."""
    rows = [{"prompt": "x" * length, "completion": " y"} for length in [2, 30] * 16]
    trainer = make_trainer(
        model_folder,
        tmp_path,
        tokenizer,
        rows=rows,
        peft_config=lora,
        train_sampling_strategy="group_by_length",
        **RUNS,
    )
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in trainer.get_train_dataloader()]
    assert sum(max(each) - min(each) > 5 for each in lengths) <= 6
    assert len(lengths) == 16
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_stream_trains_as_the_same_rows_do(model_folder, tokenizer, lora, tmp_path):
    trained = []
    for rows in (Dataset.from_list(EXAMPLES), IterableDataset.from_generator(lambda: iter(copy.deepcopy(EXAMPLES)))):
        trainer = make_trainer(
            model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora, max_steps=2, shuffle_dataset=False,
            train_sampling_strategy="sequential", **RUNS,
        )  # fmt: skip
        trainer.train()
        trained.append(weights(trainer))
    assert torch.equal(*trained)


def test_the_training_stops_early_and_ends_with_its_best_adapter(model_folder, tokenizer, lora, tmp_path):
    """At a learning rate that ruins the model the first evaluation is the best."""
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, eval_dataset=Dataset.from_list(EXAMPLES), max_steps=20,
        eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=False, **{**RUNS, "learning_rate": 0.3},
    )  # fmt: skip
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert trainer.state.global_step < 20
    best = load_file(Path(trainer.state.best_model_checkpoint, "adapter_model.safetensors"))
    trainer.save_model()
    saved = load_file(Path(trainer.args.output_dir, "adapter_model.safetensors"))
    assert all(torch.equal(saved[name], best[name]) for name in best)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "adafactor"])
def test_other_optimizers_move_the_weights(model_folder, tokenizer, lora, tmp_path, optim):
    if "8bit" in optim:
        pytest.importorskip("bitsandbytes", "0.50", reason="8-bit optimizers run on a CPU from bitsandbytes 0.50")
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, optim=optim, **RUNS)
    before = weights(trainer)
    trainer.train()
    assert torch.isfinite(weights(trainer)).all()
    assert not torch.equal(weights(trainer), before)


@pytest.mark.parametrize("start", ["pissa", True])
def test_an_adapter_resumes_with_the_reference_it_began_with(model_folder, tokenizer, tmp_path, start):
    """The second half of a training, in a new trainer, goes where the whole one went."""
    settings = {**RUNS, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    ended = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-1")):
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], init_lora_weights=start)
        trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
        trainer.train(resume_from_checkpoint=resume)
        ended.append(weights(trainer))
    assert torch.equal(*ended)
