"""Predictions in pieces, against all logits at once: values and gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
from architectures import VOCABULARY, build
from peft import LoraConfig, get_peft_model

from warmup_peft.method import predictions as module
from warmup_peft.method.model import adapter_off
from warmup_peft.method.objective import divergence, token_logps
from warmup_peft.method.predictions import (
    Predictions,
    as_they_are,
    find_decoder,
    joined,
    predictions_and_output,
    predictions_at,
)

IDS = torch.randint(3, 120, (2, 6), generator=torch.Generator().manual_seed(2))
POSITIONS = torch.tensor([[False, True, True, True, True, False], [False, False, True, True, True, True]])
TOKENS = IDS.roll(-1, 1)[POSITIONS]
DECODERS = {
    "llama": "model",
    "gpt2": "transformer",
    "opt": "model.decoder",  # and projections behind it
    "bert": "bert",  # whose head is a network with a bias
    "mamba": "backbone",
    "llama4_text": "model",
    "cohere": "model",
    "gemma2": "model",
    "granite": "model",
    "falcon_h1": "model",
    "gptj": "transformer",
    "qwen3_moe": "model",
    "cpmant": None,  # embeds prompts by itself
}
# what stands between the last layer and the logits, far from what leaves them as they are
CHANGES = {
    "cohere": {"logit_scale": 0.3},
    "gemma2": {"final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 3.0},
    "falcon_h1": {"lm_head_multiplier": 0.5, "mamba_d_ssm": 128},
}


def gradient(model, values: torch.Tensor) -> torch.Tensor:
    """Of a sum in which every value has a weight of its own."""
    model.zero_grad()
    (values * torch.arange(1, len(values) + 1).cos()).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_close_gradients(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.fixture
def pieces_of_three(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 3 * VOCABULARY + 1)


@pytest.mark.parametrize("name", [name for name, decoder in DECODERS.items() if decoder])
def test_pieces_equal_all_logits_at_once(name, pieces_of_three):
    model = build(name, **CHANGES.get(name, {}))
    expected = token_logps(model(input_ids=IDS).logits[POSITIONS], TOKENS)
    expected_gradient = gradient(model, expected)
    found = predictions_at(model, model, POSITIONS, input_ids=IDS)
    assert found.head is not as_they_are
    logps = found.logps(TOKENS)
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert_close_gradients(gradient(model, logps), expected_gradient)


@pytest.mark.parametrize("name", DECODERS)
def test_the_decoder_is_found_by_trying(name):
    assert find_decoder(build(name, **CHANGES.get(name, {}))) == DECODERS[name]


def test_without_a_decoder_the_logits_are_kept_as_they_are():
    model = build("cpmant")
    found = predictions_at(model, model, POSITIONS, input_ids=IDS)
    assert found.head is as_they_are
    torch.testing.assert_close(found.logits(), model(input_ids=IDS).logits[POSITIONS])


def test_the_model_makes_one_row_of_logits_and_the_pieces_the_rest(pieces_of_three):
    model = build("llama")
    find = predictions_at(model, model, POSITIONS, input_ids=IDS)  # tries the decoder, the first time
    seen = []
    model.lm_head.register_forward_hook(lambda _, args, output: seen.append(output.shape[:-1].numel()))
    find = predictions_at(model, model, POSITIONS, input_ids=IDS)
    assert seen == [1]
    logps = find.logps(TOKENS)
    assert seen == [1, 3, 3, 2]
    logps.sum().backward()
    assert sorted(seen[4:]) == [2, 3, 3]  # once more


def test_a_single_piece_is_not_made_again():
    model = build("llama")
    found = predictions_at(model, model, POSITIONS, input_ids=IDS)
    seen = []
    model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    found.logps(TOKENS).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize("adapts_head", [False, True])
def test_a_divergence_of_two_heads_in_pieces(adapts_head, pieces_of_three):
    """The reference is the same model with its adapter off, also while the backward pass makes its logits again."""
    targets = ["q_proj", "down_proj", *(["lm_head"] if adapts_head else [])]
    model = get_peft_model(build("llama"), LoraConfig(r=4, target_modules=targets, lora_dropout=0.0)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))

    @contextlib.contextmanager
    def as_reference():
        with torch.no_grad(), adapter_off(model):
            yield

    with as_reference():
        reference_logits = model(input_ids=IDS).logits[POSITIONS]
        reference = predictions_at(model, model, POSITIONS, input_ids=IDS).within(as_reference)
    expected = divergence(reference_logits, model(input_ids=IDS).logits[POSITIONS])
    expected_gradient = gradient(model, expected)
    found = predictions_at(model, model, POSITIONS, input_ids=IDS)
    values = found.measure(lambda own, other: {"kl": divergence(other, own)}, reference)["kl"]
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    assert_close_gradients(gradient(model, values), expected_gradient)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_a_hook_or_a_forward_of_somebody_elses_stays_in_force(pieces_of_three):
    """TRL binds a forward of its own to the model, and a head may be replaced after the decoder was found."""
    model = build("llama")
    model.forward = model.forward
    before = predictions_at(model, model, POSITIONS, input_ids=IDS).logits()
    model.lm_head = torch.nn.Linear(model.config.hidden_size, VOCABULARY)
    after = predictions_at(model, model, POSITIONS, input_ids=IDS).logits()
    torch.testing.assert_close(after, model(input_ids=IDS).logits[POSITIONS])
    assert not torch.allclose(before, after, atol=1e-2)


def test_what_the_model_gives_beside_logits_comes_along():
    model = build("llama")
    found, output = predictions_and_output(model, model, POSITIONS, input_ids=IDS, use_cache=True)
    assert output.past_key_values.get_seq_length() == 6
    assert len(found) == 8


def test_nothing_asked_is_nothing_measured():
    model = build("llama")
    found = predictions_at(model, model, torch.zeros_like(POSITIONS), input_ids=IDS)
    assert found.logps(TOKENS[:0]).shape == (0,)
    assert found.logits().shape == (0, VOCABULARY)


def test_parts_are_chosen_and_joined():
    rows = torch.arange(6.0).view(3, 2)
    every = Predictions(rows, as_they_are, 2)
    chosen = joined([every[torch.tensor([2, 0])], every[1:2]])
    assert chosen.logits().tolist() == [[4, 5], [0, 1], [2, 3]]
    assert every[torch.tensor([True, False, True])].logits().tolist() == [[0, 1], [4, 5]]
