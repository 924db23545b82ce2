"""Classes of warmups, the most frequent ones, and the rows they changed; cases solved by hand."""

from __future__ import annotations

import math

import pytest

from warmup_peft.comparison.phrases import CommonWarmup, changed, class_of, content_words, most_common
from warmup_peft.evaluation.tasks import Row


def row(warmup: str, score: float, prompt: str = "") -> Row:
    return Row(prompt, "reference", warmup, "answer", score, 1.0, 1)


@pytest.mark.parametrize(
    ("warmup", "reference", "expected"),
    [
        ("Gus > Cid > Dan .", "Dan", "direct"),
        ("two DOGS", "Dogs bark", "direct"),
        ("a man walking", "He walked home", "similar"),
        ("the dog of the man", "the cat of a house", "neither"),  # what they share has no meaning of its own
        ("It is", "it is not", "direct"),  # nothing but stop words: these count
        ("catalogue", "cat", "neither"),  # a part of a word is none
        ("...", "Dan", "neither"),
        ("", "Dan", "empty"),
        (" \n", "Dan", "empty"),
        ("Dan", "", "neither"),
        ("赤い花", "花が咲く", "direct"),  # signs are words
    ],
)
def test_classes(warmup, reference, expected):
    assert class_of(warmup, reference) == expected


def test_stop_words_count_only_where_there_is_nothing_else():
    assert content_words("The man and the dog") == {"man", "dog"}
    assert content_words("the and") == {"the", "and"}
    assert content_words("?!") == set()


def test_the_most_frequent_come_first_with_their_mean_score():
    rows = [row("a", 1), row("b", 0), row("b", 1), row("c", 0.5), row("b", 1), row("a", 0)]
    assert most_common(rows) == [
        CommonWarmup("b", 3, pytest.approx(2 / 3)),
        CommonWarmup("a", 2, 0.5),
        CommonWarmup("c", 1, 0.5),
    ]
    assert [each.text for each in most_common(rows, most=1)] == ["b"]
    assert most_common([]) == []


def test_empty_warmups_are_counted_too():
    assert most_common([row("", 1), row("", 0)]) == [CommonWarmup("", 2, 0.5)]


def test_changed_rows_are_those_that_changed_most_first():
    """By 0, +0.5, -1, +0.75, -0.25, and by less than rounding."""
    scores = [(1, 1), (1, 0.5), (0, 1), (0.75, 0), (0.5, 0.75), (0.5, 0.5 + 1e-12)]
    after = [row("w", score, str(i)) for i, (score, _) in enumerate(scores)]
    without = [row("", score, str(i)) for i, (_, score) in enumerate(scores)]

    def numbers(sign: int) -> list[str]:
        pairs = changed(after, without, sign)
        assert all((first.prompt, first.warmup, second.warmup) == (second.prompt, "w", "") for first, second in pairs)
        return [first.prompt for first, _ in pairs]

    assert numbers(1) == ["3", "1"]
    assert numbers(-1) == ["2", "4"]


def test_equal_changes_keep_the_order_of_the_rows():
    after, without = ([row("w", score, str(i)) for i in range(4)] for score in (1, 0))
    assert [first.prompt for first, _ in changed(after, without, 1)] == ["0", "1", "2", "3"]


def test_an_undefined_score_is_no_change():
    pair = [row("w", math.nan)], [row("", 0)]
    assert changed(*pair, 1) == changed(*pair, -1) == []
