"""Names and scores as text."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
from answers import WRITTEN

from warmup_peft.evaluation.metric import Answers, Metric
from warmup_peft.evaluation.metrics import METRICS, add_metrics, score_rows
from warmup_peft.evaluation.score_texts import (
    is_right_or_wrong,
    metric_name,
    number_text,
    points_text,
    printed,
    score_text,
)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.9814, "0.981"),
        ("bleu", 0.342, "34.2"),
        ("perplexity", 4.561, "4.56"),
        ("perplexity", 15033.35, "15,033"),
        ("perplexity", math.inf, "infinite"),
        ("exact_match", math.nan, "undefined"),
    ],
)
def test_a_score_in_its_units(name, value, text):
    assert score_text(name, value) == text


def test_numbers_have_a_minus_sign_and_no_negative_zero():
    assert [number_text(x, "+.1f") for x in (-1.23, -0.01, 0.04)] == ["−1.2", "+0.0", "+0.0"]
    assert number_text(-math.inf, ".1f") == "minus infinite"
    assert points_text(-0.123) == "−12.3"


def test_scores_that_are_no_metrics_have_names_too():
    assert [metric_name(name) for name in ("chrf++", "n", "mine")] == ["chrF++", "n", "mine"]
    assert (is_right_or_wrong("accuracy"), is_right_or_wrong("bleu")) == (True, False)


def test_what_is_printed_has_no_colours():
    assert printed(lambda console: console.print("[bold]1[/bold] row"), 80) == "1 row"


def test_a_tasks_own_metric_says_how_it_is_named_and_shown():
    def starts_alike(answers: Answers):
        return [text[0] == reference[0] for text, reference in zip(answers.texts, answers.references)]

    with patch.dict(METRICS):
        (name,) = add_metrics((Metric("starts", "starts alike", 100, "right_or_wrong", starts_alike),), "mine/task.py")
        assert score_rows([name], WRITTEN)[0][name].total() == 3 / 4
        assert (metric_name(name), score_text(name, 3 / 4)) == ("starts alike", "75.0")
