"""Memory of a step without a model. That it is what a step takes is measured in tests/cli/test_bench.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import build
from thinning import every
from transformers import AutoModelForCausalLM, LlamaConfig, T5Config

from warmup_peft.training.memory import AliveBytes, PredictedMemory, Step, predicted_memory

STEP = Step(batch_size=2, num_warmups=3, prompt_length=20, max_warmup_length=6, target_length=3)
SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=320)  # fmt: skip


def memory(config: LlamaConfig | None = None, **changes) -> PredictedMemory:
    return predicted_memory(config or LlamaConfig(**SIZES), replace(STEP, **changes))


def test_peak_bytes_are_those_alive_at_once():
    with AliveBytes() as alive:
        alive.moment = "one"
        first = torch.zeros(1000)
        del first
        alive.moment = "two"
        second = torch.zeros(500)
        third = second + 1
    assert alive.peak == 4 * 1000
    assert alive.peaks == {"one": 4 * 1000, "two": 4 * (500 + 500)}
    assert third.numel() == 500


def test_the_parts_are_those_of_the_model():
    whole = sum(p.numel() for p in AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).parameters())
    found = memory()
    assert found.weights == 4 * whole
    # two layers: q and o 64 -> 64, k and v 64 -> 32, gate and up 64 -> 128, down 128 -> 64, with rank 16
    assert found.adapter == 3 * 4 * 2 * 16 * (2 * 128 + 2 * 96 + 3 * 192)
    assert found.prompt_keys_and_values == 4 * 2 * 2 * (2 * 20 * 32)
    assert set(found.moments) == {"prompts", "sampling", "scores", "backward"}
    assert found.total == found.weights + found.adapter + max(found.moments.values())
    kept = found.prompt_keys_and_values + found.prompt_activations + found.branch_activations
    assert kept <= found.moments["scores"]


def test_four_bit_weights_have_the_size_that_bitsandbytes_gives_them(model_folder, nf4):
    model = AutoModelForCausalLM.from_pretrained(model_folder, quantization_config=nf4)
    states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    beside = sum(state.absmax.numel() + 4 * state.state2.absmax.numel() for state in states)
    real = sum(p.numel() * p.element_size() for p in model.parameters()) + beside
    assert memory(model_config(model_folder), load_in_4bit=True).weights == real


def model_config(folder: str) -> LlamaConfig:
    return LlamaConfig.from_pretrained(folder)


def test_what_makes_a_step_larger_or_smaller():
    plain, long = memory(), memory(max_warmup_length=60)
    assert long.prompt_activations == plain.prompt_activations
    assert 5 < long.branch_activations / plain.branch_activations < 7  # 65 tokens instead of 11
    assert memory(gradient_checkpointing=True).branch_activations < plain.branch_activations / 3
    assert memory(dtype=torch.bfloat16).weights == plain.weights / 2
    assert memory(shares=False).branch_activations > 2 * plain.branch_activations
    assert memory(warmup_anchor=0.3).branch_activations > plain.branch_activations
    assert "sampling" not in memory(warmup_source="base").moments


@pytest.mark.parametrize("name", every(2, ["qwen3", "phi3", "gemma2", "gpt_neox"]))
def test_any_architecture(name):
    model = build(name)
    found = memory(model.config)
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert bool(found.prompt_keys_and_values) == (name != "gemma2")  # which cannot share its prompts


def test_what_cannot_be_predicted():
    config = LlamaConfig(**SIZES)
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ValueError, match="stored in gptq is not predicted"):
        memory(config)
    with pytest.raises(ValueError, match="The memory of t5 cannot be predicted"):
        memory(T5Config())
