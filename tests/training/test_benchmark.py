"""The arms of a bench: what they do, and what is counted as their memory."""

from __future__ import annotations

import pytest

from warmup_peft.settings.arguments import BenchArguments
from warmup_peft.settings.bench import ARMS, SHAPES
from warmup_peft.training.benchmark import build_arms, peak_of


@pytest.fixture
def options(monkeypatch):
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=2, vocab_size=320)  # fmt: skip
    monkeypatch.setitem(SHAPES, "small", sizes)
    return BenchArguments(prompt_length=12, target_length=3, max_warmup_length=4, steps=1, arms=list(ARMS))


def test_arms_are_what_their_names_say(options, tmp_path):
    by_name = {arm.name: arm for arm in build_arms(options, str(tmp_path))}
    by_name["base"].step()
    by_name["shared"].step()
    assert all(len(arm.parts["sampling"]) == 1 for arm in (by_name["base"], by_name["shared"]))
    assert ARMS["jensen"] == {"objective": "jensen"}
    assert set(ARMS) >= {"sft", "naive", "plain", "shared", "anchored", "learned", "base", "log_mean_exp", "rlpr"}


def test_measured_memory_has_the_optimizers_states(options, tmp_path):
    options.arms = ["shared"]
    (arm,) = build_arms(options, str(tmp_path))
    arm.step()
    with peak_of(arm):
        pass
    weights = sum(p.numel() for p in arm.model.parameters())
    adapter = [p for p in arm.model.parameters() if p.requires_grad]
    assert arm.peak_bytes == 4 * (weights + sum(2 * p.numel() + 1 for p in adapter))
