"""Options of the engine: TRL's, and refusals."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

import pytest
from trl import GRPOConfig

from warmup_peft.settings.engine import EngineOptions
from warmup_peft.settings.options import WarmupOptions


@pytest.mark.parametrize("option", dataclasses.fields(EngineOptions), ids=lambda option: option.name)
def test_names_and_defaults_are_those_of_grpo(option):
    theirs = {field.name: field for field in dataclasses.fields(GRPOConfig)}[option.name]
    assert option.default == theirs.default
    if option.name != "vllm_mode":  # ours names the two
        assert get_type_hints(EngineOptions)[option.name] == get_type_hints(GRPOConfig)[option.name]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vllm_mode": "remote"}, "vllm_mode=remote cannot work. Choose colocate or server"),
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization=1.5 cannot work. Set it between 0 and 1"),
        ({"vllm_tensor_parallel_size": 0}, "vllm_tensor_parallel_size=0 cannot work"),
        ({"vllm_tensor_parallel_size": "2"}, "vllm_tensor_parallel_size=2 cannot work. Set it to a whole number"),
        (
            {"vllm_importance_sampling_mode": "token_truncate"},
            "A warmup counts as a whole.*Choose sequence_mask or sequence_truncate",
        ),
        ({"vllm_importance_sampling_clip_min": 3.0}, "Set it below vllm_importance_sampling_clip_max=3.0"),
        ({"use_vllm": True, "warmup_sampling": "beam", "objective": "warmup"}, "vLLM samples independently"),
        ({"use_vllm": True, "warmup_source": "empty"}, "warmup_source 'empty' samples nothing"),
        (
            {"use_vllm": True, "warmup_source": "base", "vllm_enable_sleep_mode": True},
            "gets the adapter's weights, and the pool needs the base's",
        ),
    ],
)
def test_what_cannot_work_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        WarmupOptions(**settings).check_warmup_options()
