"""Sentences of the verdict, one for each way in which the tests can come out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from summaries import ANCHORED, FAILED, SFT, difference, use

from warmup_peft.comparison.arms import arms_of
from warmup_peft.comparison.results import Difference, Estimate
from warmup_peft.comparison.verdict import (
    best_arm_note,
    control_note,
    equal_steps_note,
    rows_note,
    seeds_note,
    steps_note,
    use_of_best,
    verdict,
)

SHUFFLED, EMPTY = (arm for arm in arms_of(0.3).values() if arm.is_control)
UNCLEAR = dict(is_significant=False, p_adjusted=0.3, mcnemar_p_adjusted=0.4)
SEEDS_DISAGREE = dict(is_significant=False, p_adjusted=0.001, mcnemar_p_adjusted=0.01, seeds_p=0.24)


READ = replace(ANCHORED, use=use("read", "read", "read"))
MORE_SFT = replace(SFT, name="more_sft", train_seconds=Estimate(76.0))


def said(difference: Difference | None, is_as_long: bool = True) -> str:
    return re.sub(r"\s", " ", verdict(READ, MORE_SFT, difference, is_as_long, "accuracy"))


@pytest.mark.parametrize(
    ("found", "start"),
    [
        (
            difference(0.2),
            "Yes, use warmups here: anchored has accuracy 0.950 and the best SFT in as much training time ",
        ),
        (difference(-0.4), "No, do not use warmups here: even the best warmup arm, anchored has accuracy 0.350 and "),
        (difference(0.01, **UNCLEAR), "Not decided by 512 test rows and 3 seeds: anchored has accuracy 0.760 and "),
        (difference(-0.3, **SEEDS_DISAGREE), "Not decided by 512 test rows and 3 seeds: anchored has accuracy 0.450 "),
        (None, "No answer: the comparison has no finished SFT arm"),
    ],
)
@pytest.mark.parametrize("is_as_long", [True, False])
def test_the_answer(found, start, is_as_long):
    text = said(found, is_as_long)
    assert text.startswith(start if is_as_long else start.split("the best SFT in")[0])
    assert text.endswith(".")
    assert text.count(". ") == 0  # one sentence


def test_scores_difference_interval_and_times_are_said():
    assert said(difference(0.2)) == (
        "Yes, use warmups here: anchored has accuracy 0.950 and the best SFT in as much training time (more_sft) has "
        "0.750, a difference of +20.0 points (95% interval +15.0 to +25.0; training took 75 s and 76 s)."
    )


@pytest.mark.parametrize("found", [difference(0.2), difference(-0.4), difference(0.01, **UNCLEAR)])
def test_without_sft_of_as_much_time_the_answer_is_of_equal_steps_only(found):
    only = "no SFT arm trained as long, so this holds for equal steps only: add the arm more_sft."
    assert said(found, is_as_long=False).endswith(only)
    assert only not in said(found)
    assert "as much training time" not in said(found, is_as_long=False)


@pytest.mark.parametrize("missing", [0, 1])
def test_without_a_finished_arm_there_is_no_answer(missing):
    arms = [READ, SFT]
    arms[missing] = None
    assert verdict(*arms, None, False, "accuracy").startswith("No answer: the comparison has no finished ")


def test_where_it_is_not_decided_it_says_what_would_help():
    assert "the minimum detectable effect with these test rows is 3.1 points" in said(difference(0.01, **UNCLEAR))
    assert "but not over the seeds (p = 0.24)" in said(difference(0.31, **SEEDS_DISAGREE))
    assert "run more seeds" in said(difference(0.31, **SEEDS_DISAGREE))


@pytest.mark.parametrize(
    ("by_seed", "words"),
    [
        (["read"] * 3, "are read: they make"),
        (["a pause"] * 3, "are only a pause: they make"),
        (["unused"], "are unused: they make"),
        (["unused", "read", "read"], "are read in 2 of 3 seeds and unused in 1: they make"),
        (["unused", "read", "a pause"], "are read in 1 of 3 seeds, only a pause in 1 and unused in 1: they make"),
    ],
)
def test_what_the_warmups_are(by_seed, words):
    text = use_of_best(replace(ANCHORED, use=use(*by_seed)), "accuracy")
    assert text == (
        f"The warmups of anchored {words} the reference more likely by +1.96 nats (95% interval +1.90 to +2.02) than "
        "no warmup, and by +0.01 nats (95% interval −0.02 to +0.04) than another row's."
    )


def test_scores_after_other_text_are_said_where_they_were_measured():
    after = {"score_after_others": Estimate(0.26), "score_after_none": Estimate(0.25)}
    text = use_of_best(replace(READ, warmups=after), "accuracy")
    assert text.endswith("; accuracy is 0.877 after its own, 0.260 after another row's and 0.250 after none.")


@pytest.mark.parametrize("best", [None, SFT])
def test_warmups_that_were_not_measured(best):
    assert use_of_best(best, "accuracy") == "Whether its warmups are read was not measured."


def test_equal_steps_are_a_note_where_the_answer_is_about_longer_sft():
    (note,) = equal_steps_note(READ, MORE_SFT, "accuracy")
    assert note.startswith("At equal steps anchored has +12.3 points of accuracy against sft (95% interval +7.3")
    assert note.endswith("significant: better).")
    assert equal_steps_note(READ, SFT, "accuracy") == equal_steps_note(None, MORE_SFT, "accuracy") == []


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
    one = replace(ANCHORED, versus_sft=difference(num_seeds=1))  # that both have
    assert seeds_note([SFT, one, FAILED])[0].startswith("With one seed")
    assert seeds_note([replace(SFT, seeds=[0, 1, 2])]) == []
    assert "paper, seed 2, failed and is left out: <b>killed</b>" in seeds_note([SFT, FAILED])


@pytest.mark.parametrize(("cost", "is_said"), [(3.6, True), (1.05, False), (None, False)])
def test_what_a_step_costs_is_part_of_the_answer(cost, is_said):
    text = verdict(READ, MORE_SFT, difference(0.01, **UNCLEAR), True, "accuracy", cost)
    assert ("step for step it is 3.6 times slower to train than SFT." in text) == is_said


def test_two_seeds_settle_little():
    two = replace(SFT, seeds=[0, 1], versus_sft=difference(0.1, num_seeds=2))
    assert seeds_note([two])[0].startswith("Two seeds settle little")


def test_the_rows_of_the_curves_are_not_those_of_the_table():
    assert rows_note(0, 64) == []
    (note,) = rows_note(32, 64)
    assert "rest on 32 rows" in note
    assert "the verdict rest on 64 test rows" in note


@pytest.mark.parametrize(
    ("losses", "is_said"), [((2.0, 1.5, 1.0), True), ((2.0, 1.0, 0.99), False), ((2.0, 1.0), False)]
)
def test_a_training_that_was_too_short(losses, is_said):
    arm = replace(ANCHORED, curve=[replace(ANCHORED.curve[0], nll_per_token=loss) for loss in losses])
    assert bool(steps_note(arm)) == is_said
    assert steps_note(None) == []
