"""Arms are changes to a recipe: each goes through the real parser; sweeps multiply what they touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmup_peft.comparison.arms import arms_of, choose_arms, swept_arms
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.config import TRAINING_KINDS, TrainingSettings

ROOT = Path(__file__).resolve().parents[2]
RELAY = ROOT / "recipes" / "logiqa" / "relay.yaml"
ARMS = arms_of(0.3)
FIELDS = Recipe(TRAINING_KINDS).names


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_goes_through_the_parser(name):
    recipe = Recipe.read(["--config", str(RELAY)], *TRAINING_KINDS).with_overrides(ARMS[name].overrides)
    args = TrainingSettings.of(recipe).training
    assert all(getattr(args, key) == value for key, value in ARMS[name].overrides.items())


@pytest.mark.parametrize(
    ("name", "source", "objective", "anchor", "sampling"),
    [
        ("paper", "policy", "warmup", 0.0, "beam"),
        ("anchored", "policy", "warmup", 0.5, "multinomial"),
        ("base_warmups", "base", "warmup", 0.5, "multinomial"),
        ("posterior", "base", "posterior", 0.5, "multinomial"),
        ("shuffled_warmup", "shuffled", "warmup", 0.5, "multinomial"),
        ("empty_warmup", "empty", "warmup", 0.0, "multinomial"),
        ("jensen", "policy", "jensen", 0.5, "multinomial"),
        ("log_mean_exp", "policy", "log_mean_exp", 0.5, "multinomial"),
    ],
)
def test_what_arms_change(name, source, objective, anchor, sampling):
    overrides = arms_of(0.5)[name].overrides
    found = [overrides[key] for key in ("warmup_source", "objective", "warmup_anchor", "warmup_sampling")]
    assert found == [source, objective, anchor, sampling]


@pytest.mark.parametrize("anchor", [None, 0.0])
def test_a_recipe_without_an_anchor_gets_the_default_where_an_arm_needs_one(anchor):
    assert arms_of(anchor)["anchored"].overrides["warmup_anchor"] == 0.3


def test_controls_and_sft_are_no_candidates():
    kinds = {name: (arm.has_warmups, arm.is_control) for name, arm in ARMS.items()}
    assert kinds["sft"] == kinds["more_sft"] == kinds["base_model"] == (False, False)
    assert kinds["shuffled_warmup"] == kinds["empty_warmup"] == (True, True)
    assert kinds["warmup"] == kinds["posterior"] == (True, False)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["sft", "posteriour"], r"no arm 'posteriour'. Did you mean 'posterior'\? The arms are base_model, sft"),
        (["sft", "sft"], "an arm twice"),
        (["base", "base_warmups"], "an arm twice"),
        ([], "no arm"),
        (["more_sft", "warmup"], "Name sft and a warmup arm too"),
        (["sft", "more_sft", "shuffled_warmup"], "Name sft and a warmup arm too"),
    ],
)
def test_names_that_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        choose_arms(names, 0.3)


def test_earlier_names_are_aliases():
    names = [arm.name for arm in choose_arms(["base", "random_warmup", "sft"], 0.3)]
    assert names == ["base_warmups", "shuffled_warmup", "sft"]


def names_of(names: list[str], *sweeps: str) -> list[str]:
    return [arm.name for arm in swept_arms(choose_arms(names, 0.3), sweeps, FIELDS)]


def test_a_sweep_multiplies_the_arms_that_it_changes():
    assert names_of(["sft", "warmup"], "num_warmups=2,4") == ["sft", "warmup num_warmups=2", "warmup num_warmups=4"]
    assert names_of(["sft", "warmup"], "learning_rate=1e-3,2e-3", "num_warmups=2,4") == [
        "sft learning_rate=1e-3",
        "sft learning_rate=2e-3",
        *(f"warmup learning_rate={rate} num_warmups={k}" for rate in ("1e-3", "2e-3") for k in (2, 4)),
    ]


def test_a_swept_arm_is_compared_with_sft_of_the_same_values():
    arms = swept_arms(choose_arms(["sft", "warmup"], 0.3), ["learning_rate=1e-3,2e-3", "num_warmups=2,4"], FIELDS)
    sft = {arm.name: arm for arm in arms if arm.method == "sft"}
    for arm in arms:
        partners = [name for name, other in sft.items() if other.is_paired_with(arm)]
        assert partners == [f"sft learning_rate={arm.swept['learning_rate']}"]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("num_warmup=2,4", r"no option of the recipe \('num_warmup'\). Did you mean 'num_warmups'\?"),
        ("num_warmups", "different values"),
        ("num_warmups=2,2", "different values"),
        ("warmup_anchor=0,0.3", "would undo the arm posterior"),
    ],
)
def test_sweeps_that_are_refused(sweep, words):
    with pytest.raises(ValueError, match=words):
        names_of(["sft", "posterior"], sweep)


def test_an_option_swept_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        names_of(["warmup"], "num_warmups=2", "num_warmups=4")
