"""Prompts are shared where the first batch shows that it is exact, and encoded once a warmup elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import EXAMPLES, TINY_SIZES
from datasets import Dataset
from peft import LoraConfig
from trainers import make_trainer, randomise_adapter
from transformers import (
    BertConfig,
    BertLMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from warmup_peft.method.branches import Tokens, split_examples
from warmup_peft.method.prefix import SharedPrefix
from warmup_peft.method.rows import PlainRows


def encoding_used(trainer):
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    used = []
    encode = trainer.encoder
    trainer.encoder = lambda *args, **room: used.append(encode(*args, **room)) or used[-1]
    trainer.compute_loss(trainer.model, batch)
    return type(used[0])


def test_prompts_are_shared_by_default(model_folder, tokenizer, lora, tmp_path):
    assert encoding_used(make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)) is SharedPrefix


@pytest.mark.parametrize(
    ("settings", "dropout", "reason"),
    [
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, 0.0, "reentrant"),
        ({}, 0.1, "dropout"),
    ],
)
def test_what_cannot_be_shared_falls_back_or_refuses(
    model_folder, tokenizer, tmp_path, caplog, settings, dropout, reason
):
    lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=dropout)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
    assert encoding_used(trainer) is PlainRows
    assert reason in caplog.text
    with pytest.raises(ValueError, match=f"prefix_sharing=always cannot be had: .*{reason}"):
        make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, prefix_sharing="true", **settings)


@pytest.mark.parametrize(("window", "kind"), [(16, PlainRows), (256, SharedPrefix)])
def test_rows_longer_than_a_sliding_window_are_not_shared(tokenizer, lora, tmp_path, window, kind):
    config = MistralConfig(**TINY_SIZES, sliding_window=window)
    trainer = make_trainer(MistralForCausalLM(config), tmp_path, tokenizer, peft_config=lora)
    assert encoding_used(trainer) is kind


def scaled(predictions, factor):
    return dataclasses.replace(predictions, head=lambda hidden: predictions.head(hidden) * factor)


def wrong_scores(predictions):
    return lambda self, *args: scaled(predictions(self, *args), 1.1)


def wrong_gradients(predictions):
    def without_the_prompt(self, *args):
        self.layers = {layer: (key.detach(), value.detach()) for layer, (key, value) in self.layers.items()}
        return predictions(self, *args)

    return without_the_prompt


@pytest.mark.parametrize(
    ("fault", "reason"), [(wrong_scores, "tokens would differ"), (wrong_gradients, "the gradient would be off by")]
)
def test_the_first_batch_is_checked_against_plain_rows(
    model_folder, tokenizer, lora, tmp_path, monkeypatch, caplog, fault, reason
):
    monkeypatch.setattr(SharedPrefix, "predictions", fault(SharedPrefix.predictions))
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    assert encoding_used(trainer) is PlainRows
    assert reason in caplog.text
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, prefix_sharing="true")
    with pytest.raises(ValueError, match=f"prefix_sharing=always cannot be had: .*{reason}"):
        trainer.train()


def test_a_longer_batch_is_checked_again(model_folder, tokenizer, lora, tmp_path, monkeypatch):
    """A model that goes wrong beyond some length, as with a window that it does not speak of."""
    predictions = SharedPrefix.predictions

    def wrong_beyond_30_tokens(self, branches, predicted):
        is_long = self.prompt.ids.size(1) + branches.ids.size(-1) > 30
        return scaled(predictions(self, branches, predicted), 1.1 if is_long else 1.0)

    monkeypatch.setattr(SharedPrefix, "predictions", wrong_beyond_30_tokens)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    kinds = []
    for length in (5, 12, 20, 12, 16):
        mask = torch.ones(2, length, dtype=torch.bool)
        prompt = Tokens(torch.arange(2 * length).view(2, length) + 30, mask)
        kinds.append(type(trainer.encoder(trainer.model, prompt, 15)))
    assert kinds == [SharedPrefix, SharedPrefix, PlainRows, SharedPrefix, PlainRows]


def test_reentrant_checkpointing_trains(model_folder, tokenizer, lora, tmp_path):
    """torch computes no gradient of a part there, so none can be tried; plain rows need none."""
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **kwargs)
    trainer.train()
    moved = [parameter for name, parameter in trainer.model.named_parameters() if "lora_B" in name]
    assert all(parameter.abs().max() > 0 for parameter in moved)  # they start at 0


def test_checks_take_no_random_numbers_from_a_training_with_dropout(model_folder, tokenizer, tmp_path):
    """An evaluation is the same the first time, when the checks are made, as ever after."""
    lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.3)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    randomise_adapter(trainer.model)
    rows = Dataset.from_list(EXAMPLES)
    state = torch.get_rng_state()
    losses = [trainer.evaluate(rows)["eval_loss"] for _ in range(3)]
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_check_leaves_no_trace(model_folder, tokenizer, lora, tmp_path):
    """Random numbers, gradients and modes of a training are what they would be without it."""
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    randomise_adapter(trainer.model)
    state = torch.get_rng_state()
    modes = [module.training for module in trainer.model.modules()]
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    prompt, _ = split_examples(batch["input_ids"], batch["labels"], batch["attention_mask"])
    torch.set_rng_state(state)
    encoded = trainer.encoder(trainer.model, prompt, room=12)
    assert torch.equal(torch.get_rng_state(), state)
    ended = []
    for _ in range(2):  # the first time the way of sampling is checked too
        torch.set_rng_state(state)
        ended.append((trainer.source.sample(trainer.model, encoded, epoch=0).ids, torch.get_rng_state()))
    assert all(torch.equal(*pair) for pair in zip(*ended))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert [module.training for module in trainer.model.modules()] == modes


def test_a_model_that_sees_what_follows_is_refused(tokenizer, tmp_path):
    sizes = {**TINY_SIZES, "max_position_embeddings": 300}
    model = BertLMHeadModel(BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    trainer = make_trainer(model, tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"bert lets a token see those behind it .* is_decoder"):
        trainer.train()
