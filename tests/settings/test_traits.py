"""What objectives and sources need and allow, against the code that has them."""

from __future__ import annotations

from typing import get_type_hints

import pytest
import torch

from warmup_peft.comparison.run_arm import INSTEAD
from warmup_peft.method import objective
from warmup_peft.method.objective import OBJECTIVES, assign_credit
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.traits import OBJECTIVE_TRAITS, SOURCE_TRAITS, objectives_with
from warmup_peft.training.sources import SOURCES

LOGP = torch.tensor([[-1.0, -2.0, -4.0]])
GAIN = torch.tensor([[0.1, 0.3, 0.2]])


def test_every_objective_has_a_function_a_row_of_traits_a_value_of_the_option_and_a_line_on_the_page():
    assert list(OBJECTIVES) == list(OBJECTIVE_TRAITS)
    literal, none = get_type_hints(WarmupOptions)["objective"].__args__
    assert literal.__args__ == tuple(OBJECTIVES)
    assert none is type(None)
    for name in OBJECTIVES:
        assert f"| `{name}`" in objective.__doc__


@pytest.mark.parametrize("name", OBJECTIVE_TRAITS)
def test_traits_are_those_of_the_equations(name):
    """No advantage where no log P(c|x) is asked for; a gain, and equal weights, exactly where they are said to be."""
    traits = OBJECTIVE_TRAITS[name]
    weight, advantage = assign_credit(LOGP, name, gain_BK=GAIN)
    assert bool(advantage.any()) == traits.has_advantage
    assert torch.equal(weight, torch.full_like(weight, 1 / 3)) == traits.has_equal_weights
    _, without_gain = assign_credit(LOGP, name)
    assert torch.equal(advantage, without_gain) == (not traits.needs_gain)


@pytest.mark.parametrize("name", objectives_with("compares_warmups"))
def test_a_single_warmup_is_refused_where_warmups_are_compared(name):
    with pytest.raises(ValueError, match="Set num_warmups to 2 or more"):
        assign_credit(LOGP[:, :1], name)


@pytest.mark.parametrize("name", OBJECTIVE_TRAITS)
def test_a_target_that_some_warmup_makes_possible_has_a_weight(name):
    weight, _ = assign_credit(torch.tensor([[-2.0, -torch.inf, -1.0]]), name)
    assert weight[0, 1] == 0
    assert weight.sum() > 0


def test_every_source_has_a_class_and_a_value_of_the_option():
    assert list(SOURCES) == list(SOURCE_TRAITS)
    assert get_type_hints(WarmupOptions)["warmup_source"].__args__ == tuple(SOURCES)


def test_every_control_is_scored_as_it_was_trained():
    assert set(INSTEAD) == {name for name, traits in SOURCE_TRAITS.items() if traits.is_control}
