"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest
from summaries import difference

from warmup_peft.comparison.formatting import (
    difference_text,
    estimate_text,
    interval_text,
    listed,
    memory_text,
    p_text,
    plain,
    reached_text,
    share_text,
    significance_text,
    significant_text,
    time_unit,
)
from warmup_peft.comparison.results import Estimate


def spaced(text: str) -> str:
    """With ordinary spaces for those where a line may not end."""
    return re.sub(r"\s", " ", text)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0009, "p < 0.001"), (0.001, "p = 0.001"), (0.03, "p = 0.03"), (0.048, "p = 0.048"), (0.239, "p = 0.24"),
     (1.0, "p = 1.00"), (float("nan"), "p undefined")],
)  # fmt: skip
def test_p_values(p, text):
    assert spaced(p_text(p)) == text


def test_differences_are_in_points_with_their_interval():
    assert spaced(difference_text(difference(-0.02))) == "−2.0 [−7.0, +3.0]"
    assert interval_text(difference(0.1)) == "95% interval +5.0 to +15.0"


@pytest.mark.parametrize(
    ("estimate", "is_significant", "text"),
    [(0.1, True, "significant: better"), (-0.1, True, "significant: worse"), (0.1, False, "not significant")],
)
def test_significance_is_said_in_words(estimate, is_significant, text):
    assert significance_text(difference(estimate, is_significant)) == text


def test_a_standard_error_is_there_only_where_it_is_finite():
    def text(value: float) -> str:
        return f"{value:+.1f}"

    assert spaced(estimate_text(Estimate(0.5, 0.1), text)) == "+0.5 ± 0.1"
    assert estimate_text(Estimate(0.5), text) == estimate_text(Estimate(0.5, float("nan")), text) == "+0.5"
    assert estimate_text(None, text) == "–"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1e-5, "below 0.1%"), (0.125, "12.5%"), (0.5, "50%"), (0.9999, "above 99.9%"), (1, "100%")],
)
def test_shares_never_round_to_none_or_all(share, text):
    assert share_text(share) == text


def test_other_texts():
    assert [listed(items) for items in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [significant_text(value) for value in (0.01234, 4.567, 1234.5)] == ["0.0123", "4.57", "1,234"]
    assert [memory_text(value) for value in (1.5 * 2**30, 765 * 2**20)] == ["1.50 GiB", "765 MiB"]
    assert [time_unit(seconds) for seconds in (599, 600, 3 * 3600)] == [("s", 1), ("min", 60), ("h", 3600)]
    assert [reached_text(numbers) for numbers in ([], [None], [8, None, 1600])] == [
        "–",
        "never",
        "8 to 1,600 (2 of 3 seeds)",
    ]
    assert [plain(value) for value in ("a", True, None, 0.5)] == ["a", "true", "null", "0.5"]
