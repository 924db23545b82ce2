"""Scores of predictions that are made by hand."""

from __future__ import annotations

import math

import pytest

from warmup_peft.evaluation.prediction import (
    Prediction,
    as_rows,
    gains,
    is_an_option,
    score_predictions,
    share_of_options,
)
from warmup_peft.evaluation.tasks import Question

QUESTION = Question("Q: which?", (" A", " no, two", " yes"), 2)


def prediction(*logps: float, text: str | None = None) -> Prediction:
    return Prediction(max(range(len(logps)), key=logps.__getitem__), logps, 3, "", (), text)


def test_scores_of_predictions():
    predictions = [prediction(-1.0, -2.0, -3.0), prediction(-3.0, -2.0, -1.0), prediction(-3.0, -2.5, -2.0)]
    found = score_predictions(("accuracy", "macro_f1"), [QUESTION] * 3, predictions)
    assert (list(found.totals), found.left_out) == (["accuracy", "macro_f1", "perplexity"], {})
    assert found.totals["accuracy"] == pytest.approx(2 / 3)
    assert found.totals["perplexity"] == pytest.approx(math.exp((3 + 1 + 2) / 9))
    assert found.statistics["accuracy"].row_scores.tolist() == [0, 1, 1]


def test_gains_are_of_the_right_option():
    """Where only the right one was scored, that is the one."""
    own, alone, all_three = prediction(-1.0, -2.0, -3.0), prediction(-4.0), prediction(-9.0, -9.0, -2.0)
    found = gains([QUESTION], [own], {"none": [alone], "others": [all_three]})
    assert found["gain_over_none"].tolist() == [1.0]
    assert found["gain_over_others"].tolist() == [-1.0]


def test_rows_have_the_chosen_option_or_else_the_generated_answer():
    free = Question("Say it:", (" a b c",))
    predictions = [prediction(-1.0, -2.0, -3.0, text="of my own"), prediction(-5.0, text=" a b\n")]
    rows = as_rows([QUESTION, free], predictions, [0.5, 0.25])
    assert [(row.answer, row.reference, row.score) for row in rows] == [("A", "yes", 0.5), ("a b", "a b c", 0.25)]
    assert [(row.target_nll, row.target_tokens) for row in rows] == [(3, 3), (5, 3)]


@pytest.mark.parametrize(("written", "share"), [(["", ""], 0.0), (["", "A"], 0.5), ([None, None], None)])
def test_whether_options_are_written_is_scored_where_anything_was_to_be_written(written, share):
    predictions = [prediction(-1.0, -2.0, text=text) for text in written]
    questions = [Question("x", (" A", " B"))] * 2
    assert share_of_options(questions, predictions) == share


def test_is_an_option():
    assert is_an_option("no, two", QUESTION)
    assert is_an_option(" yes\n", QUESTION)
    assert not is_an_option("no", QUESTION)
    assert not is_an_option("", QUESTION)
