"""The load-balancing loss of a mixture of experts: what TRL adds on the same rows, gradients included."""

from __future__ import annotations

import pytest
import torch
from conftest import EXAMPLES, TINY_SIZES
from datasets import Dataset
from folders import relative_difference
from torch.nn.utils.rnn import pad_sequence
from trainers import make_trainer, record_warmups
from transformers import MixtralConfig, MixtralForCausalLM, set_seed
from trl import SFTConfig, SFTTrainer

COEFFICIENT = 0.5


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("mixtral")
    set_seed(0)
    config = MixtralConfig(**TINY_SIZES, num_local_experts=4, router_aux_loss_coef=COEFFICIENT)
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def gradient(trainer, batch) -> tuple[torch.Tensor, torch.Tensor]:
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for _, p in sorted(trainer.model.named_parameters())])


def test_loss_and_gradient_are_trls_on_plain_rows(experts, tokenizer, tmp_path):
    ours = make_trainer(experts, tmp_path, tokenizer, num_warmups=2)
    assert not ours.encoder.shares
    sampled = record_warmups(ours)
    batch = next(iter(ours.get_train_dataloader()))
    loss, grad = gradient(ours, batch)
    separator = list(ours.warmup_format.separator_ids)
    rows, labels = [], []
    for (prompt, samples), ids in zip(sampled, batch["labels"], strict=True):
        target = ids[ids != -100].tolist()
        assert samples[0].decided != samples[1].decided
        for sample in samples:
            before = [*prompt, *sample.ids, *separator]
            rows.append(torch.tensor(before + target))
            labels.append(torch.tensor([-100] * len(before) + target))
    rows_of_trl = {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }
    args = SFTConfig(str(tmp_path / "trl"), bf16=False, report_to="none", gradient_checkpointing=False)
    theirs = SFTTrainer(experts, args, train_dataset=Dataset.from_list(EXAMPLES), processing_class=tokenizer)
    expected_loss, expected_grad = gradient(theirs, rows_of_trl)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert relative_difference(grad, expected_grad) < 1e-6
    balance = ours._metrics["train"]["aux_loss"]
    assert balance == pytest.approx(theirs._metrics["train"]["aux_loss"], rel=1e-6)
    assert balance[0] > 0.1  # so that it counts in what was compared


def test_without_it_prompts_are_shared(experts, tokenizer, tmp_path):
    trainer = make_trainer(experts, tmp_path, tokenizer, router_aux_loss_coef=0.0)
    trainer.train()
    assert trainer.encoder.shares
    assert not any("aux_loss" in row for row in trainer.state.log_history)


def test_it_is_logged_and_evaluated(experts, tokenizer, tmp_path, caplog):
    trainer = make_trainer(experts, tmp_path, tokenizer, eval_dataset=Dataset.from_list(EXAMPLES), logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["aux_loss"] > 0.1
    assert trainer.evaluate()["eval_aux_loss"] > 0.1
    assert "router_aux_loss_coef 0 goes without it" in caplog.text
