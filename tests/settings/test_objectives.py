"""What objectives need, against the table of equations."""

from __future__ import annotations

from typing import get_type_hints

import pytest
import torch

from warmup_peft.method import objective
from warmup_peft.method.objective import OBJECTIVES, assign_credit
from warmup_peft.settings.objectives import OBJECTIVE_NEEDS, objectives_with
from warmup_peft.settings.options import WarmupOptions

LOGP = torch.tensor([[-1.0, -2.0, -4.0]])
GAIN = torch.tensor([[0.1, 0.3, 0.2]])


def test_every_objective_has_a_function_a_row_of_needs_a_value_of_the_option_and_a_line_on_the_page():
    assert list(OBJECTIVES) == list(OBJECTIVE_NEEDS)
    assert get_type_hints(WarmupOptions)["objective"].__args__ == tuple(OBJECTIVES)
    for name in OBJECTIVES:
        assert f"| `{name}`" in objective.__doc__


@pytest.mark.parametrize("name", OBJECTIVE_NEEDS)
def test_needs_are_what_the_equations_use(name):
    """No advantage where no log P(c|x) is asked for; a gain, and equal weights, exactly where they are said to be."""
    needs = OBJECTIVE_NEEDS[name]
    weight, advantage = assign_credit(LOGP, name, gain_BK=GAIN)
    assert bool(advantage.any()) == needs.warmup_logp
    assert torch.equal(weight, torch.full_like(weight, 1 / 3)) == needs.equal_weights
    _, without_gain = assign_credit(LOGP, name)
    assert torch.equal(advantage, without_gain) == (not needs.gain)


@pytest.mark.parametrize("name", objectives_with("other_warmups"))
def test_a_single_warmup_is_refused_where_warmups_are_compared(name):
    with pytest.raises(ValueError, match="Set num_warmups to 2 or more"):
        assign_credit(LOGP[:, :1], name)
