"""Settings: defaults, and values that cannot work, each refused with its name and how to fix it."""

from __future__ import annotations

import math
import re

import pytest

from warmup_peft import WarmupSFTConfig
from warmup_peft.settings.options import WarmupOptions

REFUSED = [
    ({"num_warmups": 0}, "num_warmups", "1 or more"),
    ({"num_warmups": -2}, "num_warmups", "1 or more"),
    ({"max_warmup_length": 0}, "max_warmup_length", "1 or more"),
    ({"warmup_separator": ""}, "warmup_separator", "some text"),
    ({"warmup_sampling": "greedy"}, "warmup_sampling", "'multinomial' or 'beam'"),
    ({"temperature": 0.0}, "temperature", "above 0"),
    ({"temperature": -1.0}, "temperature", "above 0"),
    ({"temperature": math.inf}, "temperature", "above 0"),
    ({"temperature": math.nan}, "temperature", "above 0"),
    ({"top_k": -1}, "top_k", "0 (off) or more"),
    ({"top_p": 0.0}, "top_p", "above 0 and at most 1"),
    ({"top_p": 1.1}, "top_p", "above 0 and at most 1"),
    ({"min_p": -0.1}, "min_p", "0 to 1"),
    ({"min_p": 1.1}, "min_p", "0 to 1"),
    ({"warmup_anchor": -0.1}, "warmup_anchor", "0 (off) or more"),
    ({"warmup_anchor": math.inf}, "warmup_anchor", "0 (off) or more"),
    ({"warmup_anchor": math.nan}, "warmup_anchor", "0 (off) or more"),
    ({"warmup_num_beams": 4}, "warmup_num_beams", "set warmup_sampling to 'beam'"),
    ({"warmup_sampling": "beam", "warmup_num_beams": 3}, "warmup_num_beams", "4 or more"),
    ({"warmup_sampling": "beam", "num_warmups": 1, "warmup_num_beams": 1}, "warmup_num_beams", "2 or more"),
    ({"warmup_sampling": "beam", "num_warmups": 1}, "warmup_num_beams", "2 or more"),
    ({"prefix_sharing": "yes"}, "prefix_sharing", "auto, always or never"),
    ({"objective": "jensen_"}, "objective", "Did you mean 'jensen'?"),
    ({"objective": "?"}, "objective", "Choose one of warmup, jensen"),
    ({"objective": "latro", "warmup_sampling": "beam"}, "warmup_sampling", "Set it to 'multinomial'"),
    ({"objective": "verifree", "num_warmups": 1}, "num_warmups", "2 or more"),
    ({"advantage_clip": 0.0, "objective": "jensen"}, "advantage_clip", "above 0"),
    ({"advantage_clip": 0.2, "objective": "warmup"}, "advantage_clip", "has no advantages"),
    ({"warmup_loss_type": "grpo"}, "warmup_loss_type", "sum, bnpo or dr_grpo"),
    ({"warmup_loss_type": "bnpo", "objective": "warmup"}, "warmup_loss_type", "has no advantages"),
    ({"mask_truncated_warmups": True, "objective": "log_mean_exp"}, "mask_truncated_warmups", "one of warmup, jensen"),
    ({"hindsight_steps": -1}, "hindsight_steps", "or more"),
    ({"hindsight_steps": 5, "warmup_source": "shuffled"}, "hindsight_steps", "row's own warmups"),
    ({"normalize_advantages": True, "objective": "warmup"}, "normalize_advantages", "has no advantages"),
    (
        {"normalize_advantages": True, "objective": "rlpr", "num_warmups": 1},
        "normalize_advantages",
        "num_warmups to 2",
    ),
    ({"normalize_advantages": True, "objective": "posterior"}, "normalize_advantages", "have no centre"),
    ({"warmup_source": "base", "warmup_anchor": 0.3, "top_k": 5}, "top_k", "temperature works"),
    ({"warmup_source": "base", "objective": "posterior", "top_p": 0.9}, "top_p", "temperature works"),
    ({"warmup_source": "base", "warmup_anchor": 0.3, "min_p": 0.1}, "min_p", "temperature works"),
    ({"warmup_source": "base", "top_k": 5}, "top_k", "temperature works"),
    ({"warmup_dropout": 1.0}, "warmup_dropout", "up to 1"),
    ({"warmup_dropout": -0.1}, "warmup_dropout", "0 (off)"),
    ({"warmup_dropout": 0.1, "objective": "log_mean_exp"}, "warmup_dropout", "one of warmup, jensen"),
    ({"warmup_gain_steps": -1}, "warmup_gain_steps", "0 (never) or more"),
    ({"num_warmups_to_print": 0}, "num_warmups_to_print", "1 or more"),
    ({"warmup_source": "Base"}, "warmup_source", "Did you mean 'base'?"),
    ({"warmup_source": "shuffled", "objective": "jensen"}, "objective", "Set it to 'warmup'"),
    ({"warmup_source": "empty", "warmup_anchor": 0.3}, "warmup_anchor", "nothing to anchor"),
    ({"warmup_pool": "pool"}, "warmup_pool", "set warmup_source to 'base'"),
    ({"warmup_source": "base", "warmup_pool_size": 3}, "warmup_pool_size", "num_warmups=4"),
    ({"warmup_source": "base", "warmup_pool_batch_size": 0}, "warmup_pool_batch_size", "1 or more"),
    ({"warmup_source": "base", "warmup_sampling": "beam"}, "warmup_sampling", "independent samples"),
    ({"warmup_source": "base", "objective": "jensen"}, "objective", "Choose warmup or posterior"),
]
ACCEPTED = [
    {"num_warmups": 1, "max_warmup_length": 1},
    {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"warmup_anchor": 0.3},
    {"warmup_sampling": "beam"},
    {"objective": "log_mean_exp", "num_warmups": 2},
    {"objective": "posterior", "num_warmups": 1},
    {"objective": "rlpr", "num_warmups": 1, "advantage_clip": 1},
    {"objective": "jensen", "normalize_advantages": True, "advantage_clip": 0.2, "warmup_dropout": 0.1},
    {"warmup_source": "base", "warmup_pool": "pool", "warmup_pool_size": 4, "warmup_anchor": 0.3},
    {"warmup_source": "base", "objective": "posterior", "num_warmups": 1, "warmup_pool_size": 1},
    {"warmup_loss_type": "dr_grpo", "mask_truncated_warmups": True},
    {"objective": "warmup", "mask_truncated_warmups": True, "warmup_sampling": "beam"},
    {"warmup_gain_steps": 0},
    {"warmup_source": "base", "objective": "warmup", "warmup_anchor": 0.0, "top_k": 5},
    {"warmup_source": "base", "warmup_anchor": 0.3, "temperature": 0.7},
    {"warmup_sampling": "beam", "num_warmups": 1, "warmup_num_beams": 2},
    {"warmup_sampling": "beam", "num_warmups": 2, "warmup_num_beams": 5},
]


def config(**settings) -> WarmupSFTConfig:
    return WarmupSFTConfig(**{"output_dir": "unused", "bf16": False, "report_to": "none", **settings})


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({}, "jensen"),
        ({"num_warmups": 1}, "warmup"),
        ({"warmup_sampling": "beam"}, "warmup"),
        ({"warmup_source": "shuffled"}, "warmup"),
        ({"warmup_source": "base"}, "posterior"),
        ({"warmup_source": "base", "objective": "warmup"}, "warmup"),
    ],
)
def test_the_objective_follows_the_warmups_that_there_are(settings, objective):
    assert config(**settings).objective == objective


def test_defaults():
    options = WarmupOptions()
    options.check_warmup_options()
    assert (options.num_warmups, options.max_warmup_length, options.warmup_separator) == (4, 8, None)
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (1.0, 0, 1.0, None)
    assert (options.warmup_sampling, options.num_beams, options.objective) == ("multinomial", 1, "jensen")
    assert (options.warmup_source, options.warmup_dropout) == ("policy", 0.0)
    assert options.prefix_sharing == "auto"


@pytest.mark.parametrize(("settings", "field", "fix"), REFUSED)
@pytest.mark.parametrize("build", [WarmupOptions, config], ids=["options", "config"])
def test_refusal_names_the_field_and_how_to_fix_it(build, settings, field, fix):
    with pytest.raises(ValueError, match=f"^{field}=.*{re.escape(fix)}"):
        build(**settings).check_warmup_options()


@pytest.mark.parametrize("settings", ACCEPTED)
@pytest.mark.parametrize("build", [WarmupOptions, config], ids=["options", "config"])
def test_values_that_work_are_kept(build, settings):
    options = build(**settings)
    options.check_warmup_options()
    assert {name: getattr(options, name) for name in settings} == settings


@pytest.mark.parametrize(
    "field", ["num_warmups", "max_warmup_length", "top_k", "warmup_num_beams", "warmup_pool_size"]
)
def test_counts_are_whole_numbers(field):
    with pytest.raises(ValueError, match=f"^{field}=4.5 "):
        config(**{field: 4.5, "warmup_sampling": "beam"})


@pytest.mark.parametrize(
    ("settings", "beams"),
    [
        ({}, 1),
        ({"warmup_sampling": "beam"}, 4),
        ({"warmup_sampling": "beam", "num_warmups": 3}, 3),
        ({"warmup_sampling": "beam", "warmup_num_beams": 6}, 6),
    ],
)
def test_number_of_beams(settings, beams):
    assert WarmupOptions(**settings).num_beams == beams


@pytest.mark.parametrize(
    ("given", "kept"),
    [(True, "always"), (False, "never"), ("True", "always"), ("false", "never"), ("AUTO", "auto"), ("never", "never")],
)
@pytest.mark.parametrize("build", [WarmupOptions, config], ids=["options", "config"])
def test_older_names_of_prefix_sharing_still_work(build, given, kept):
    options = build(prefix_sharing=given)
    options.check_warmup_options()
    assert options.prefix_sharing == kept
