"""Sentences of the verdict, one for each way in which the tests can come out."""

from __future__ import annotations

import re

import pytest
from summaries import ANCHORED, FAILED, SFT, difference

from warmup_peft.comparison.arms import arms_of
from warmup_peft.comparison.results import Difference
from warmup_peft.comparison.verdict import best_arm_note, control_note, seeds_note, verdict

SHUFFLED, EMPTY = (arm for arm in arms_of(0.3).values() if arm.is_control)
UNCLEAR = dict(is_significant=False, p_adjusted=0.3, mcnemar_p_adjusted=0.4)
SEEDS_DISAGREE = dict(is_significant=False, p_adjusted=0.001, mcnemar_p_adjusted=0.01, seeds_p=0.24)


def said(to_sft: Difference | None, to_more_sft: Difference | None = None) -> str:
    return re.sub(r"\s", " ", verdict(ANCHORED, to_sft, to_more_sft, "accuracy"))


@pytest.mark.parametrize(
    ("to_sft", "start"),
    [
        (difference(0.393), "Warmups help here: anchored has +39.3 points of accuracy against SFT"),
        (difference(-0.4), "Do not use warmups here: even the best warmup arm, anchored, has −40.0 points"),
        (difference(0.01, **UNCLEAR), "No significant difference: the best warmup arm, anchored, has +1.0 points"),
        (difference(0.31, **SEEDS_DISAGREE), "Inconclusive: the best warmup arm, anchored, has +31.0 points"),
        (None, "No verdict: the comparison has no finished SFT arm"),
    ],
)
def test_against_sft(to_sft, start):
    assert said(to_sft).startswith(start)


def test_without_a_warmup_arm_there_is_no_verdict():
    assert verdict(None, None, None, "accuracy") == "No verdict: the comparison has no finished warmup arm."


def test_where_nothing_is_significant_it_says_what_would_have_been():
    assert "The minimum detectable effect with these test rows is 3.1 points." in said(difference(0.01, **UNCLEAR))
    assert "but not over the seeds (p = 0.24)" in said(difference(0.31, **SEEDS_DISAGREE))


@pytest.mark.parametrize(
    ("to_more_sft", "words"),
    [
        (difference(0.297), "and is also better than SFT with the same training time (+29.7 points"),
        (difference(-0.078), "but SFT with the same training time is better (−7.8 points"),
        (difference(0.0, **UNCLEAR), "warmups save steps, not time."),
        (
            difference(0.22, **SEEDS_DISAGREE),
            "it is better than SFT with the same training time (+22.0 points",
        ),
        (
            difference(-0.22, **SEEDS_DISAGREE),
            "it is worse than SFT with the same training time (−22.0 points",
        ),
        (None, "was not run (arm more_sft)."),
    ],
)
def test_against_sft_with_as_much_time(to_more_sft, words):
    text = said(difference(0.393), to_more_sft)
    assert text.startswith("Warmups help here")
    assert words in text
    assert text.endswith(".")


def test_another_reference_is_named():
    assert "(the best of its kind, sft learning_rate=2)" in said(difference(reference="sft learning_rate=2"))


@pytest.mark.parametrize(
    ("control", "anchored", "start"),
    [
        (SHUFFLED, difference(0.3), "What the warmups say matters: anchored has +30.0 points against"),
        (SHUFFLED, difference(-0.3), "What the warmups say does harm: anchored has −30.0 points"),
        (SHUFFLED, difference(0.3, **SEEDS_DISAGREE), "What the warmups say may matter, but the"),
        (EMPTY, difference(0.0, **UNCLEAR), "That there is a warmup at all makes no significant difference"),
    ],
)
def test_controls(control, anchored, start):
    assert control_note(control, anchored).startswith(start)


def test_how_the_best_arm_was_chosen_is_said_where_there_was_a_choice():
    assert best_arm_note(None, 2) == best_arm_note(ANCHORED, 1) == []
    assert best_arm_note(ANCHORED, 3)[0].startswith("anchored was chosen as the best of 3 warmup arms")


def test_one_seed_and_failures_are_said():
    assert seeds_note([SFT, ANCHORED, FAILED])[0].startswith("With one seed")  # both have one in common
    assert seeds_note([SFT]) == []
    assert "paper, seed 2, failed and is left out: <b>killed</b>" in seeds_note([SFT, FAILED])
