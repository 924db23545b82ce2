"""The registry: which metrics there are, which fit a task, and a task's own ones."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from answers import WRITTEN

from warmup_peft.evaluation.metric import Metric
from warmup_peft.evaluation.metrics import METRICS, add_metrics, check_metrics, metric_names, score_rows, try_metrics


def test_a_metric_whose_package_is_missing_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    scored, left_out = score_rows(["rougeL", "bertscore"], WRITTEN)
    assert list(scored) == ["rougeL"]
    assert left_out == {"bertscore": "the package bert-score is not installed"}


def test_a_metric_whose_weights_are_missing_is_left_out_with_the_reason(monkeypatch):
    def download_model(name):
        raise OSError("no network\nat all")

    monkeypatch.setitem(
        sys.modules, "comet", SimpleNamespace(download_model=download_model, load_from_checkpoint=None)
    )
    assert score_rows(["bleu", "comet"], WRITTEN)[1] == {"comet": "its weights could not be loaded (no network)"}


def test_a_missing_package_of_the_extra_is_an_error_that_says_how_to_fix_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'warmup_peft\[compare\]'"):
        score_rows(["bleu"], WRITTEN)


@pytest.mark.parametrize(
    ("names", "is_choice", "words"),
    [
        (("bleau",), False, "no metric 'bleau'. Did you mean 'bleu'?"),
        (("Exact_Match",), False, r"no metric 'Exact_Match'\. Did you mean 'exact_match'\?"),
        (("wer",), False, r"no metric 'wer'\. Choose from accuracy, macro_f1, exact_match"),
        (("accuracy",), False, "needs options"),
        (("comet", "bleu"), False, "need no package"),
        (("macro_f1",), True, "first metric"),
        ((), True, "first metric"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(names, is_choice, words):
    with pytest.raises(ValueError, match=words):
        check_metrics(names, is_choice)


def test_metrics_as_an_option_names_them():
    assert metric_names("exact_match") == ("exact_match",)
    assert metric_names(" bleu, rougeL,") == ("bleu", "rougeL")
    for text in ("", " , ", "bleu,bleu"):
        with pytest.raises(ValueError, match="name none, or one twice"):
            metric_names(text)


# ---- A task's own metrics ----


@pytest.fixture(autouse=True)
def registry():
    """What a test enters is gone after it."""
    with patch.dict(METRICS):
        yield


def same_words(predictions, references):
    return [len({*p.split()} & {*r.split()}) / len(r.split()) for p, r in zip(predictions, references)]


def same_length(predictions, references):
    return sum(len(p) == len(r) for p, r in zip(predictions, references)) / len(references)


def own(*metrics):
    return add_metrics(metrics, "mine/task.py")


def test_a_function_of_one_score_a_row_counts_as_their_mean():
    """5 of 6 words, 4 of 5, none of 2, all."""
    names = own("rougeL", same_words)
    assert names == ("rougeL", "same_words")
    statistics = score_rows(names, WRITTEN)[0]["same_words"]
    assert statistics.row_scores == pytest.approx([5 / 6, 4 / 5, 0, 1])
    assert statistics.total() == pytest.approx((5 / 6 + 4 / 5 + 1) / 4)
    assert statistics.score_samples(np.array([[0, 0], [2, 3]])) == pytest.approx([5 / 6, 1 / 2])


def test_a_function_of_one_score_for_all_rows_is_asked_again_for_every_sample():
    """Lengths agree in the second and the last row."""
    statistics = score_rows(own(same_length), WRITTEN)[0]["same_length"]
    assert statistics.total() == 1 / 2
    assert statistics.row_scores.tolist() == [0, 1, 0, 1]
    assert statistics.score_samples(np.array([[0, 1], [1, 3], [0, 2]])).tolist() == [1 / 2, 1, 0]


def test_a_sample_without_a_score_is_nan_where_the_whole_has_one():
    def spread(predictions, references):
        if len(predictions) < 2:
            raise ValueError("one row has no spread")
        return 0.5

    statistics = score_rows(own(spread), WRITTEN)[0]["spread"]
    assert statistics.total() == 0.5
    assert np.isnan(statistics.row_scores).all()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0, 0.0], "returned a list of 2 for 4 rows. Return one number per row, or a single one for all rows."),
        ([[1.0]] * 4, "returned a table for 4 rows"),
        ({"f1": 1.0}, "returned dict. Return"),
        (["good"] * 4, "returned list. Return"),
        ([1.0, np.nan, 1.0, 1.0], "is nan for row 2, but a score must be a finite number."),
        (float("inf"), "is inf, but a score must be a finite number."),
        (OSError("no disk"), "cannot be computed: OSError: no disk"),
    ],
)
def test_what_is_no_score_is_one_sentence_with_metric_and_task(returned, words):
    def odd(predictions, references):
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(ValueError, match="^The metric odd of the task mine/task.py " + re.escape(words)):
        score_rows(own(odd), WRITTEN)


@pytest.mark.parametrize(("kind", "returned", "words"), [
    ("graded", 0.5, "returned one number for 4 rows. Return one number per row."),
    ("right_or_wrong", [1, 0, 0.5, 1], "the score of a row is neither 0 nor 1"),
])  # fmt: skip
def test_a_metric_keeps_to_its_kind(kind, returned, words):
    with pytest.raises(ValueError, match=words):
        score_rows(own(Metric("odd", "odd", 1, kind, lambda answers: returned)), WRITTEN)


def test_a_trial_finds_what_does_not_work_but_lets_a_missing_number_pass():
    try_metrics(own(lengthless := named("lengthless", lambda p, r: [1.0])), WRITTEN.take([0]))
    with pytest.raises(ValueError, match=r"The metric lengthless of the task mine/task\.py returned a list of 1 for"):
        try_metrics(own(lengthless), WRITTEN)
    try_metrics(own(named("nothing", lambda p, r: np.nan)), WRITTEN)


def test_a_trial_finds_what_fails_on_empty_answers():
    with pytest.raises(ValueError, match=r"share of the task .* cannot be computed: ZeroDivisionError"):
        try_metrics(own(named("share", lambda p, r: [1 / len(text) for text in p])), WRITTEN)
    with pytest.raises(ValueError, match=r"The metric mean .* is nan for row 1, but a score must be a finite number"):
        try_metrics(own(named("mean", lambda p, r: [1.0 if text else np.nan for text in p])), WRITTEN)


def named(name, function):
    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ((lambda p, r: 1.0,), r"Use a name \(accuracy, .*\), a named function"),
        ((3,), "lists the metric 3. Use a name"),
        ((named("bleu", lambda p, r: 1.0),), "a metric called bleu, but this name is already in use"),
        ((named("perplexity", lambda p, r: 1.0),), "already in use"),
        ((same_words, same_words), "lists a metric twice: same_words, same_words"),
        (("bleu", "bleu"), "lists a metric twice"),
        ("bleu", "has metrics='bleu'. Write a tuple"),
    ],
)
def test_metrics_that_have_no_name_of_their_own_are_refused(metrics, words):
    with pytest.raises(ValueError, match=words):
        add_metrics(metrics, "mine/task.py")
