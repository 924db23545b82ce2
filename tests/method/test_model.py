"""Modes, random numbers and the adapter come back as they were, whatever happens in between."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from warmup_peft.method.model import (
    adapter_off,
    evaluation_mode,
    keep_initial_weights,
    positions_for,
    random_numbers_from,
    takes,
    training_mode,
    without_peft_wrapper,
)


@pytest.fixture
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def modes(model) -> list[bool]:
    return [module.training for module in model.modules()]


def test_modes_come_back_module_by_module_even_after_an_error(model):
    model.train()
    model.lm_head.eval()
    before = modes(model)

    def fail_in_the_middle():
        with evaluation_mode(model):
            assert not any(modes(model))
            assert not torch.is_grad_enabled()
            with training_mode(model):
                assert all(modes(model))
            assert not any(modes(model))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_in_the_middle()
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_random_numbers_of_a_seed_leave_the_others_alone():
    state = torch.get_rng_state()
    values = []
    for _ in range(2):
        with random_numbers_from(3, torch.device("cpu")):
            values.append(torch.rand(4))
    assert torch.equal(*values)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_adapter_is_off_and_comes_back_with_frozen_weights_frozen(model, lora):
    ids = torch.arange(3, 20).unsqueeze(0)
    base_logits = model(ids).logits.detach()
    wrapped = get_peft_model(model, lora)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
        elif "lora_A" in name:
            parameter.requires_grad_(False)
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    with adapter_off(wrapped):
        with adapter_off(wrapped):
            pass
        torch.testing.assert_close(wrapped(ids).logits, base_logits)
    assert not torch.allclose(wrapped(ids).logits, base_logits, atol=1e-3)
    assert {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad} == trained
    assert without_peft_wrapper(wrapped) is model

    def fail_in_the_middle():
        with adapter_off(wrapped):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_in_the_middle()
    assert {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad} == trained
    assert not torch.allclose(wrapped(ids).logits, base_logits, atol=1e-3)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_the_initial_weights_come_and_go(model, lora, is_mixed):
    """Also where autocast has kept 16-bit copies of the trained ones; gradients are those of the trained ones."""
    ids = torch.arange(3, 20).unsqueeze(0)
    wrapped = get_peft_model(model, lora)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        initial = wrapped(ids).logits
    keep_initial_weights(wrapped)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)

    def gradient(look_back: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            logits = wrapped(ids).logits
            if look_back:
                with torch.no_grad(), adapter_off(wrapped):
                    assert torch.equal(wrapped(ids).logits, initial)
            assert not torch.allclose(logits, initial, atol=1e-2)
        wrapped.zero_grad()
        logits.float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in wrapped.parameters() if p.grad is not None])

    assert torch.equal(gradient(look_back=True), gradient(look_back=False))


def test_without_an_adapter_there_is_nothing_to_switch_off(model):
    with adapter_off(model):
        assert without_peft_wrapper(model) is model


def test_positions_count_real_tokens(model):
    assert takes(model, "position_ids")
    assert not takes(model, "no_such_argument")
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions_for(model, mask)["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
