"""Texts of rows and models cannot become markup, and long ones are clipped."""

from __future__ import annotations

import jinja2
import pytest
from markupsafe import Markup
from pages import EVIL

from warmup_peft.comparison.report.rendering import (
    are_graded,
    clip_end,
    clip_start,
    mark,
    markdown,
    marks,
    render,
)
from warmup_peft.evaluation.tasks import Row


def row(score: float) -> Row:
    return Row("p", "r", "w", "a", score, 1.0, 1)


def test_texts_cannot_become_markdown():
    assert markdown(EVIL) == r"\<script>alert(1)\</script> \| \`x\` \*\*y\*\* [z\](u) # \&amp;"


@pytest.mark.parametrize("text", ["more_sft", "[+7.3, +17.3]", "Gus > Cid", "a < b", "− 1", "x & y", "2 + 2"])
def test_nothing_else_is_escaped(text):
    assert markdown(text) == text


def test_what_is_escaped_already_stays_and_lines_are_joined():
    assert markdown(Markup("| a |\n| b |")) == "| a |\n| b |"
    assert markdown(" a\n  b ") == "a b"


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render("comparison.md.jinja")


def test_marks():
    assert [mark(row(score), "accuracy", False) for score in (1, 0)] == ["right", "wrong"]
    assert mark(row(0.25), "accuracy", True) == "0.250"
    assert marks([row(1), row(0), row(1)], "accuracy", False) == "2 of 3 right"
    assert marks([row(0.2), row(0.5)], "bleu", True) == "BLEU 20.0 to 50.0"
    assert marks([row(0.5), row(0.5)], "bleu", True) == "BLEU 50.0"


def test_scores_are_graded_by_metric_even_where_all_are_0_or_1():
    assert are_graded("bleu", [row(1), row(0)])
    assert are_graded("accuracy", [row(1), row(0.25)])
    assert not are_graded("accuracy", [row(1), row(0)])


def test_long_prompts_keep_their_end_and_long_answers_their_start():
    assert clip_start("a" * 5000 + "END").endswith("END")
    assert len(clip_start("a" * 5000)) < 610
    assert clip_end("START" + "b" * 5000).startswith("START")
    assert len(clip_end("b" * 5000)) < 1210
    assert clip_start(" a ") == clip_end(" a ") == "a"
