"""Samples of the model with its adapter off, and the check of somebody else's."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import get_peft_model
from trainers import randomise_adapter
from transformers import AutoModelForCausalLM

from warmup_peft.method.sampling import SamplingSettings
from warmup_peft.training.base_sampler import IDENTITY, BaseSampler

SAMPLING = SamplingSettings(num_warmups=4, max_length=5, end_token_ids=(1,), separator_ids=(8, 9), pad_token_id=0)
PROMPTS = [np.array([30, 31, 32]), np.array([33])]


@pytest.fixture
def model(model_folder, lora):
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), lora)
    randomise_adapter(wrapped)
    return wrapped


@pytest.fixture
def base(model) -> BaseSampler:
    return BaseSampler(model, SAMPLING, nullcontext)


def test_samples_are_those_of_the_model_without_its_adapter(base, model_folder):
    bare = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    found, expected = (sampler.sample(PROMPTS, seed=5) for sampler in (base, BaseSampler(bare, SAMPLING, nullcontext)))
    assert found.ids.shape[:2] == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3]))
    torch.testing.assert_close(found.logp, expected.logp)


def test_a_seed_gives_the_same_samples_and_leaves_random_numbers_alone(base):
    state = torch.get_rng_state()
    first, again, other = (base.sample(PROMPTS, seed).ids for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_external_sampler_that_agrees_is_checked_once(base):
    calls = []
    checked = base.checking(lambda prompts, seed: calls.append(seed) or base.sample(prompts, seed))
    off_by_one = base.sample(PROMPTS, 3)
    off_by_one = off_by_one._replace(logp=off_by_one.logp - 9)
    assert torch.equal(checked(PROMPTS, 3).ids, off_by_one.ids)
    assert calls == [3]
    checked = base.checking(lambda prompts, seed: base.sample(prompts, 3) if seed == 3 else off_by_one)
    checked(PROMPTS, 3)
    assert checked(PROMPTS, 4) is off_by_one  # scoring every batch would cost what the server saves


def test_an_external_sampler_that_disagrees_is_refused(base):
    def of_another_model(prompts, seed):
        sampled = base.sample(prompts, seed)
        return sampled._replace(logp=sampled.logp - 0.5 * sampled.num_decisions)

    with pytest.raises(ValueError, match=r"differ from this base model's by 0\.50 nats a token"):
        base.checking(of_another_model)(PROMPTS, 0)


def test_a_token_beyond_the_vocabulary_is_refused(base, model):
    def beyond(prompts, seed):
        sampled = base.sample(prompts, seed)
        return sampled._replace(ids=sampled.ids + model.config.vocab_size)

    with pytest.raises(ValueError, match="which this base model does not know"):
        base.checking(beyond)(PROMPTS, 0)


def test_the_identity_names_model_tokenizer_and_distribution(base, tokenizer):
    identity = base.identity("abc", tokenizer)
    assert set(identity) == {"base model", "tokenizer", *IDENTITY}
    assert identity["base model"] == "abc"
    assert identity["max_length"] == 5
