"""Rows that leave the batch while others go on: what is sampled then is what the model would write alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from architectures import assert_samples_have_their_probability, build, ragged_batch
from transformers import set_seed

from warmup_peft.method import sampling
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.prefix import SharedPrefix, install
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler, end_warmups
from warmup_peft.method.ways import CachedDecoding, RowDecoding, from_cache, from_copies, from_kept_keys

# a third of all tokens end a warmup, so that half of the rows have soon ended, and then half of the others
SETTINGS = SamplingSettings(
    num_warmups=8, max_length=12, end_token_ids=tuple(range(7, 128, 3)), separator_ids=(5, 6), pad_token_id=0
)
WAYS = {"llama": from_kept_keys, "gemma3_text": from_kept_keys, "lfm2": from_cache, "qwen3_next": from_cache}


@pytest.fixture
def kept(monkeypatch) -> list[list[int]]:
    """Rows that were kept, each time that others were dropped; that happens however few tokens are left."""
    found = []
    monkeypatch.setattr(sampling, "TOKENS_WORTH_A_COPY", 1)
    for kind in (CachedDecoding, RowDecoding):
        keep = kind.keep_rows
        monkeypatch.setattr(
            kind, "keep_rows", lambda self, rows, keep=keep: found.append(rows.tolist()) or keep(self, rows)
        )
    return found


@pytest.mark.parametrize("name", WAYS)
def test_rows_that_go_on_alone_have_their_probability(name, kept):
    """Full attention, windows, convolutions, recurrent states, and linear attention."""
    model = build(name)
    prompt, _ = ragged_batch(1)
    encoded = PromptEncoder(model)(model, prompt, 20)
    sampler = WarmupSampler()
    set_seed(0)
    warmups = sampler(model, encoded, SETTINGS)
    assert len(kept) >= 2
    assert warmups.lengths.max() > 3
    assert_samples_have_their_probability(model, prompt, warmups)
    assert sampling.WAYS[sampler._way(model, encoded, SETTINGS)] is WAYS[name]


def test_whole_rows_are_dropped_too(kept):
    model = build("llama")
    prompt, _ = ragged_batch(1)
    set_seed(0)
    with evaluation_mode(model):
        warmups = sampling.sample(RowDecoding, model, PlainRows(model, model, prompt), SETTINGS)
    assert len(kept) >= 2
    assert_samples_have_their_probability(model, prompt, warmups)


@pytest.mark.parametrize("way", [from_copies, RowDecoding])
def test_what_cannot_drop_rows_keeps_them(way, kept):
    model = build("llama")
    prompt, _ = ragged_batch(1)
    room = 20 if way is RowDecoding else None
    set_seed(0)
    with evaluation_mode(model):
        sampling.sample(way, model, PlainRows(model, model, prompt, room), SETTINGS)
    assert kept == []


def test_short_warmups_are_not_worth_a_copy(monkeypatch):
    assert not sampling.pays_to_drop(torch.tensor([True, True, False]), sampling.TOKENS_WORTH_A_COPY - 1)
    assert sampling.pays_to_drop(torch.tensor([True, True, False]), sampling.TOKENS_WORTH_A_COPY)
    assert not sampling.pays_to_drop(torch.tensor([True, False, False]), 100)


def test_looking_every_few_tokens_changes_no_warmup(monkeypatch):
    """As on an accelerator: rows end between two looks, and what was sampled behind their end is cut."""
    model = build("llama")
    install(model)
    prompt, _ = ragged_batch(1)
    settings = dataclasses.replace(SETTINGS, max_length=11)
    found = []
    for every in (1, 4):
        monkeypatch.setattr(sampling, "tokens_between_looks", lambda device, every=every: every)
        set_seed(0)
        found.append(WarmupSampler()(model, SharedPrefix(model, model, prompt), settings))
    assert torch.equal(found[0].lengths, found[1].lengths)
    assert torch.equal(found[0].logp, found[1].logp)
    width = found[0].ids.size(-1)
    assert torch.equal(found[0].ids, found[1].ids[..., :width])


def test_an_end_is_seen_when_it_is_sampled():
    settings = dataclasses.replace(SETTINGS, end_token_ids=(1,))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 8, (200, 12), generator=generator)
    has_ended = torch.zeros(200, dtype=torch.bool)
    ends = settings.ends_on(tokens.device)
    for length in range(1, 13):
        has_ended |= ends(tokens[:, max(length - 2, 0) : length])
        assert torch.equal(has_ended, end_warmups(tokens[:, :length], settings).stopped)
