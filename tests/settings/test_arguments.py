"""Counts that cannot work are refused by name, before anything is loaded."""

from __future__ import annotations

import pytest

from warmup_peft.settings.arguments import GenerateArguments, InspectArguments, check_counts


@pytest.mark.parametrize(("value", "least"), [(0, 1), (-1, 0), (-5, 1)])
def test_a_count_below_its_least_value_is_named(value, least):
    with pytest.raises(ValueError, match=f"^batch_size={value} cannot work. Set it to {least} or more.$"):
        check_counts(GenerateArguments("folder", batch_size=value), batch_size=least)


@pytest.mark.parametrize("value", [None, 1, 7])
def test_other_counts_pass_and_so_do_those_that_are_left_out(value):
    check_counts(InspectArguments("folder", max_samples=value), max_samples=1)
