"""Plain rows and the cached prompt, against each row alone and without padding."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from warmup_peft.method.branches import Branches, Tokens
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.predictions import Predictions, as_they_are
from warmup_peft.method.prefix import SharedPrefix, install
from warmup_peft.method.rows import (
    CachedPrompt,
    PlainRows,
    encode_prompt,
    expand_cache,
    fitted,
    with_first_prediction,
)

PROMPTS = [[30], [31, 32, 33, 34]]
BRANCHES = [[[40, 41, 42], [43]], [[44, 45], [46, 47, 48]]]


@pytest.fixture
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture
def prompt() -> Tokens:
    ids = torch.tensor([[0, 0, 0, 30], [31, 32, 33, 34]])
    return Tokens(ids, ids != 0)


@pytest.fixture
def branches() -> Branches:
    ids = torch.tensor([[ids + [0] * (3 - len(ids)) for ids in row] for row in BRANCHES])
    return Branches(ids, ids != 0, ids != 0)


def one_by_one(model) -> torch.Tensor:
    """(N, V) predictions of all branch tokens, each row alone."""
    rows = [(prompt, branch) for prompt, own in zip(PROMPTS, BRANCHES) for branch in own]
    return torch.cat([model(torch.tensor([p + b])).logits[0, len(p) - 1 : -1] for p, b in rows])


@pytest.mark.parametrize("kind", [PlainRows, CachedPrompt])
def test_predictions_are_those_of_each_row_alone(model, prompt, branches, kind):
    with evaluation_mode(model):
        found = kind(model, model, prompt).predictions(branches, branches.mask).logits()
        expected = one_by_one(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [PlainRows, CachedPrompt])
def test_only_the_tokens_that_are_asked_for_are_predicted_in_their_order(model, prompt, branches, kind):
    asked = branches.mask.clone()
    asked[0, 0, 1], asked[1, 1, 0] = False, False
    with evaluation_mode(model):
        encoded = kind(model, model, prompt)
        every, some = (encoded.predictions(branches, mask).logits() for mask in (branches.mask, asked))
    torch.testing.assert_close(some, every[asked[branches.mask]], rtol=1e-4, atol=1e-5)


def test_rows_one_at_a_time_give_the_same_gradients(model, prompt, branches):
    gradients = []
    for room in (None, 3):
        model.zero_grad()
        logits = PlainRows(model, model, prompt, room).predictions(branches, branches.mask).logits()
        logits.log_softmax(-1)[:, 7].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_row_is_cut_or_filled_on_the_right():
    row = torch.tensor([[5, 6, 7]])
    assert fitted(row, 5).tolist() == [[5, 6, 7, 0, 0]]
    assert fitted(row, 2).tolist() == [[5, 6]]


def test_an_expanded_cache_holds_each_prompt_so_many_times(model, prompt):
    with evaluation_mode(model):
        cache, last_B = encode_prompt(model, prompt)
        keys = cache.layers[0].keys.clone()
        expand_cache(cache, 2, 3)
    assert torch.equal(cache.layers[0].keys, keys.repeat_interleave(3, 0))
    assert last_B.logits().shape == (2, model.config.vocab_size)


def test_first_predictions_stand_before_the_later_ones_of_their_branch():
    """Branch 0 is asked for its tokens 0 and 1, branch 1 for its token 1, branch 2 for its token 0."""
    predicted = torch.tensor([[[True, True], [False, True]], [[True, False], [False, False]]])
    first = Predictions(torch.tensor([[1.0], [2.0]]), as_they_are, 1)
    later = Predictions(torch.tensor([[10.0], [20.0]]), as_they_are, 1)
    assert with_first_prediction(first, later, predicted).logits().flatten().tolist() == [1.0, 10.0, 20.0, 2.0]
    assert with_first_prediction(first, later, predicted & torch.tensor([False, True])) is later


# ---- The opening at the prompts' end ----


@pytest.mark.parametrize("room", [None, 3])
@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_the_opening_is_as_likely_as_in_each_prompt_alone(model, kind, room):
    """Two tokens at the end of ragged prompts: log-probability and gradient, without padding by hand."""
    prompts = [[30, 60, 61], [31, 32, 33, 60, 61]]
    ids = torch.tensor([[0, 0, 30, 60, 61], [31, 32, 33, 60, 61]])
    prompt = Tokens(ids, ids != 0)
    expected = [model(torch.tensor([row])).logits[0].log_softmax(-1) for row in prompts]
    expected = torch.stack([logp[-3, 60] + logp[-2, 61] for logp in expected])
    expected.sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    if kind == "shared":
        install(model)
        encoded = SharedPrefix(model, model, prompt, num_opening=2)
    else:
        encoded = PlainRows(model, model, prompt, room, num_opening=2)
    torch.testing.assert_close(encoded.opening_logp_B1, expected.unsqueeze(1), rtol=1e-4, atol=1e-5)
    encoded.opening_logp_B1.sum().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)


def test_without_an_opening_nothing_is_added(model, prompt):
    assert PlainRows(model, model, prompt).opening_logp_B1.tolist() == [[0], [0]]
