"""Controls: another row's warmup, and none."""

from __future__ import annotations

import pytest
import torch
from trl import SFTConfig, SFTTrainer

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.method.branches import split_examples
from warmup_peft.training.controls import AnothersWarmupTrainer, EmptyWarmupTrainer

SEPARATOR = " | "


def make(trainer_class, model_folder, tokenizer, examples, lora, tmp_path, **options):
    args = WarmupSFTConfig(
        str(tmp_path), num_warmups=2, max_warmup_length=4, warmup_separator=SEPARATOR, warmup_anchor=0.0, bf16=False,
        report_to="none", gradient_checkpointing=False, per_device_train_batch_size=4, max_steps=2, logging_steps=1,
        **options,
    )  # fmt: skip
    return trainer_class(
        model=model_folder, args=args, train_dataset=examples, processing_class=tokenizer, peft_config=lora
    )


def drawn(trainer, rows: slice = slice(None)):
    batch = trainer.data_collator(list(trainer.train_dataset))
    prompt, target = split_examples(*(batch[name][rows] for name in ("input_ids", "labels", "attention_mask")))
    torch.manual_seed(0)
    return trainer._sample(trainer.model, trainer._encode(trainer.model, prompt, target))


def test_each_row_gets_the_warmups_of_the_row_before(model_folder, tokenizer, examples, lora, tmp_path):
    given = [model_folder, tokenizer, examples, lora, tmp_path]
    own, others = drawn(make(WarmupSFTTrainer, *given)), drawn(make(AnothersWarmupTrainer, *given))
    assert torch.equal(others.ids, own.ids.roll(1, 0))
    assert torch.equal(others.lengths, own.lengths.roll(1, 0))


def test_a_batch_of_one_gets_those_of_the_batch_before(model_folder, tokenizer, examples, lora, tmp_path):
    given = [model_folder, tokenizer, examples, lora, tmp_path]
    trainer, plain = make(AnothersWarmupTrainer, *given), make(WarmupSFTTrainer, *given)
    assert drawn(trainer, slice(0, 1)).lengths.max() == 0  # the first has no other
    assert torch.equal(drawn(trainer, slice(1, 2)).ids, drawn(plain, slice(0, 1)).ids)


@pytest.mark.parametrize("trainer_class", [AnothersWarmupTrainer, EmptyWarmupTrainer])
def test_controls_train(trainer_class, model_folder, tokenizer, examples, lora, tmp_path):
    trainer = make(trainer_class, model_folder, tokenizer, examples, lora, tmp_path)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in trainer.state.log_history if "loss" in log)


def test_without_warmups_the_loss_is_sfts_on_rows_with_the_separator(
    model_folder, tokenizer, examples, lora, tmp_path
):
    """The separator stands at the end of the prompt, and the target's loss is TRL's own."""
    trainer = make(EmptyWarmupTrainer, model_folder, tokenizer, examples, lora, tmp_path)
    trainer.train()
    with_separator = examples.map(lambda row: {"prompt": row["prompt"] + SEPARATOR})
    args = SFTConfig(
        str(tmp_path), bf16=False, report_to="none", gradient_checkpointing=False, per_device_train_batch_size=4,
        max_steps=2, logging_steps=1,
    )  # fmt: skip
    plain = SFTTrainer(
        model=model_folder, args=args, train_dataset=with_separator, processing_class=tokenizer, peft_config=lora
    )
    plain.train()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (trainer, plain)]
    norms = [[log["grad_norm"] for log in t.state.log_history if "grad_norm" in log] for t in (trainer, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
