"""Scores, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from warmup_peft.evaluation.metrics import multiple_choice_metrics


def test_numbers_by_hand():
    """Option 0: 2 of 3 predicted are right, 2 of 2 found: F1 0.8. Option 1: 1 of 1, 1 of 2: 2/3. Option 2: 0."""
    metrics = multiple_choice_metrics([0, 0, 1, 1, 2], [0, 0, 1, 0, 3], num_options=4)
    assert metrics == {"accuracy": pytest.approx(3 / 5), "macro_f1": pytest.approx((0.8 + 2 / 3) / 4), "n": 5}


def test_options_that_never_occur_count_as_zero():
    """Always choosing 0 of four options, right half the time: F1 of option 0 is 2/3, and a quarter of that counts."""
    metrics = multiple_choice_metrics([0, 1, 0, 2], [0, 0, 0, 0], num_options=4)
    assert metrics["accuracy"] == 0.5
    assert metrics["macro_f1"] == pytest.approx(2 / 3 / 4)


def test_all_right():
    assert multiple_choice_metrics([0, 1, 2, 3], [0, 1, 2, 3], 4) == {"accuracy": 1.0, "macro_f1": 1.0, "n": 4}
