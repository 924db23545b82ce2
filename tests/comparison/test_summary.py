"""From runs to a verdict: worlds where the answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from warmup_peft.comparison.arms import arms_of, swept_arms
from warmup_peft.comparison.results import Comparison, Point, Run
from warmup_peft.comparison.summary import examples_to_reach, mean_curve, summarize
from warmup_peft.evaluation.tasks import Row

ROWS = 200


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("warmup_peft.comparison.significance.RESAMPLES", 199)


def run(arm: str, seed: int, accuracy: float, curve: float | None = None, **more) -> Run:
    """Answers the first rows right, as many as make the accuracy."""
    right = round(accuracy * ROWS)
    rows = [Row("p", "r", "w", "a", float(i < right), 1.0, 2) for i in range(ROWS)]
    metrics = {"accuracy": right / ROWS, "perplexity": 1.5}
    more = {"train_seconds": 10.0, **more}
    points = [Point(4, 64, 1.0, accuracy if curve is None else curve, 0.5)]
    return Run(arm, seed, steps=4, metrics=metrics, curve=points, rows=rows, **more)


def compared(accuracies: dict[str, list[float]], metric: str = "accuracy", **runs: list[Run]) -> Comparison:
    """Of arms' accuracies, one a seed."""
    arms = [arms_of(0.3)[name] for name in (*accuracies, *runs)]
    every = {
        name: [run(name, seed, value) for seed, value in enumerate(values)] for name, values in accuracies.items()
    }
    every |= runs
    return summarize(arms, every, metric, 0.8, sum(map(len, every.values())), num_test_rows=ROWS, num_curve_rows=64)


def test_clearly_better_and_better_than_longer_sft():
    found = compared({"sft": [0.5, 0.52, 0.51], "more_sft": [0.6, 0.62, 0.6], "posterior": [0.9, 0.91, 0.9]})
    assert found.verdict.startswith(
        "Yes, use warmups here: posterior has accuracy 0.903 and the best SFT in as much training time (more_sft) has "
        "0.607, a difference of +29.7 points"
    )
    assert found.notes[0].startswith("At equal steps posterior has +39.3 points of accuracy against sft")


def test_seeds_that_differ_too_much_settle_nothing():
    found = compared({"sft": [0.5, 0.6, 0.97], "anchored": [1.0, 1.0, 1.0]})
    assert found.verdict.startswith(
        "Not decided by 200 test rows and 3 seeds: anchored has accuracy 1.000 and the best"
    )
    assert "run more seeds" in found.verdict


def test_a_sweep_is_judged_by_the_best_sft_arm():
    """Its own learning rate makes a warmup arm look good; SFT's better one does not."""
    arms = swept_arms([arms_of(0.3)[name] for name in ("sft", "warmup")], ["learning_rate=1,2"], ["learning_rate"])
    accuracies = ([0.2, 0.21, 0.2], [0.98, 0.97, 0.98], [0.9, 0.91, 0.9], [0.88, 0.87, 0.88])
    runs = {arm.name: [run(arm.name, i, x) for i, x in enumerate(values)] for arm, values in zip(arms, accuracies)}
    found = summarize(arms, runs, "accuracy", 0.8, 12, num_test_rows=ROWS, num_curve_rows=64)
    assert found.arms[2].versus_sft.estimate > 0.6  # paired, as the table has it
    assert found.verdict.startswith(
        "No, do not use warmups here: even the best warmup arm, warmup learning_rate=1 has"
    )
    assert (
        "the best SFT in as much training time (sft learning_rate=2) has 0.977, a difference of −7." in found.verdict
    )


def test_controls_without_the_arm_anchored_say_nothing():
    found = compared({"sft": [0.5, 0.51, 0.5], "warmup": [0.9, 0.91, 0.9], "shuffled_warmup": [0.6, 0.61, 0.6]})
    assert not any(note.startswith("What the warmups say") for note in found.notes)


def test_seeds_that_only_one_arm_has_do_not_count():
    found = compared(
        {}, sft=[run("sft", seed, 0.5) for seed in (1, 2)], warmup=[run("warmup", s, 0.9) for s in (0, 1)]
    )
    assert found.arms[1].versus_sft.num_seeds == 1
    assert any(note.startswith("With one seed") for note in found.notes)


def test_without_curves_the_first_arm_is_judged_and_it_is_said():
    runs = {
        name: [dataclasses.replace(run(name, seed, value + seed / 100), curve=[]) for seed in range(3)]
        for name, value in (("sft", 0.6), ("warmup", 0.4), ("anchored", 0.9))
    }
    found = compared({}, **runs)
    assert any("the verdict is about the first one, warmup" in note for note in found.notes)
    assert "warmup has accuracy 0.410" in found.verdict


def test_the_best_arm_is_chosen_on_other_rows_than_it_is_judged_on():
    lucky = [run("paper", seed, 0.9, curve=0.6) for seed in range(3)]
    chosen = [run("base_warmups", seed, 0.8, curve=0.7) for seed in range(3)]
    found = compared({"sft": [0.5, 0.51, 0.5]}, paper=lucky, base_warmups=chosen)
    assert found.verdict.startswith("Yes, use warmups here: base_warmups has")
    assert any(note.startswith("base_warmups was chosen as the best of 2 warmup arms") for note in found.notes)


def test_controls_are_never_the_best_and_are_compared_with_anchored():
    found = compared(
        {"sft": [0.5, 0.52, 0.5], "anchored": [0.9, 0.91, 0.9], "shuffled_warmup": [0.9, 0.9, 0.91],
         "empty_warmup": [0.6, 0.62, 0.6]}
    )  # fmt: skip
    assert ": anchored has" in found.verdict
    says, is_there = [note for note in found.notes if note.startswith(("What the", "That there"))]
    assert says.startswith("What the warmups say makes no significant difference: anchored has")
    assert is_there.startswith("That there is a warmup at all matters: anchored has +29.7 points against empty_warmup")


def test_one_seed_says_what_one_seed_cannot_show():
    found = compared({"sft": [0.5], "paper": [0.9]})
    assert found.arms[1].versus_sft.seeds_p is None
    assert found.arms[1].metrics["accuracy"].error is None
    assert any(note.startswith("With one seed, the intervals cover") for note in found.notes)
    assert not any(
        note.startswith("With one seed") for note in compared({"sft": [0.5, 0.5], "paper": [0.9, 0.9]}).notes
    )


def test_a_failed_run_is_left_out_and_named_with_its_reason():
    ran = [run("paper", 0, 0.9), Run("paper", 1, error="no memory"), run("paper", 2, 0.92)]
    failed = [Run("base_warmups", seed, error="broke") for seed in range(3)]
    found = compared({"sft": [0.5, 0.9, 0.5]}, paper=ran, base_warmups=failed)
    paper, base = found.arms[1:]
    assert (paper.seeds, paper.failures) == ([0, 2], {1: "no memory"})
    assert paper.versus_sft.estimate == pytest.approx(0.41)  # seeds 0 and 2 of both
    assert (base.seeds, base.versus_sft) == ([], None)
    assert "paper, seed 1, failed and is left out: no memory" in found.notes
    assert (found.runs_done, found.runs_planned, found.is_finished) == (9, 9, True)


def test_a_corpus_metric_is_recomputed_from_texts():
    rows = [Row("p", f"the cat number {i} sat down", "", f"the cat number {i} sat up", 0.5, 1.0, 2) for i in range(40)]
    exact = [Row("p", row.reference, "", row.reference, 1.0, 1.0, 2) for row in rows]
    runs = {
        name: [Run(name, 0, steps=4, metrics={"bleu": score, "perplexity": 1.5}, train_seconds=1.0, rows=of)]
        for name, score, of in (("sft", 0.5, rows), ("paper", 1.0, exact))
    }
    found = compared({}, "bleu", **runs)
    difference = found.arms[1].versus_sft
    assert difference.low <= difference.estimate <= difference.high
    assert difference.mcnemar_p is None
    assert "paper has BLEU 100.0 and" in found.verdict


# ---- The first two sentences ----

SEEDS = range(3)
ANSWERS = {
    "Yes, use warmups here: warmup has": ([0.5, 0.51, 0.5], [0.9, 0.9, 0.91]),
    "No, do not use warmups here: even the best warmup arm, warmup has": ([0.9, 0.91, 0.9], [0.5, 0.5, 0.51]),
    "Not decided by 200 test rows and 3 seeds: warmup has": ([0.5, 0.51, 0.5], [0.5, 0.515, 0.505]),
}
USES = {"read": (2.0, 1.0), "only a pause": (2.0, 0.0), "unused": (0.0, 0.0)}


def row_gains(over_none: float, over_others: float, spread: float = 1.0) -> dict[str, list[float]]:
    """Gains of these means, spread evenly around them."""
    around = np.linspace(-spread, spread, ROWS)
    return {"gain_over_none": list(over_none + around), "gain_over_others": list(over_others + around[::-1])}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_with_every_use(answer, use):
    more_sft, warmup = ANSWERS[answer]
    own = [run("warmup", seed, warmup[seed], row_gains=row_gains(*USES[use])) for seed in SEEDS]
    found = compared({"sft": [0.3, 0.3, 0.3], "more_sft": more_sft}, warmup=own)
    assert found.verdict.startswith(answer)
    assert "the best SFT in as much training time (more_sft)" in found.verdict
    assert found.use.startswith(f"The warmups of warmup are {use}: they make the reference more likely by ")


def test_without_more_sft_the_answer_is_of_equal_steps():
    own = [run("warmup", seed, 0.9, train_seconds=30.0) for seed in SEEDS]
    found = compared({"sft": [0.5, 0.51, 0.5]}, warmup=own)
    assert found.verdict.startswith("Yes, use warmups here: warmup has accuracy 0.900 and SFT (sft) has")
    assert found.verdict.endswith("this holds for equal steps only: add the arm more_sft.")


def test_an_sft_arm_that_trained_as_long_is_enough():
    own = [run("warmup", seed, 0.9, train_seconds=10.0) for seed in SEEDS]
    assert "equal steps only" not in compared({"sft": [0.5, 0.51, 0.5]}, warmup=own).verdict


def test_more_time_must_not_make_sft_look_worse():
    """SFT that is trained longer forgets: a user would stop earlier."""
    own = [run("warmup", seed, 0.8 + seed / 100) for seed in SEEDS]
    found = compared({"sft": [0.9, 0.91, 0.9], "more_sft": [0.3, 0.31, 0.3]}, warmup=own)
    assert found.verdict.startswith("No, do not use warmups here")
    assert "the best SFT in as much training time (sft)" in found.verdict


def test_without_curves_the_answer_is_about_sft_with_as_much_time():
    def bare(name: str, value: float, seconds: float) -> list[Run]:
        return [
            dataclasses.replace(run(name, seed, value + seed / 100, train_seconds=seconds), curve=[]) for seed in SEEDS
        ]

    found = compared(
        {}, sft=bare("sft", 0.5, 10.0), more_sft=bare("more_sft", 0.6, 29.0), warmup=bare("warmup", 0.9, 30.0)
    )
    assert "the best SFT in as much training time (more_sft) has 0.61" in found.verdict


@pytest.mark.parametrize(
    ("over_none", "over_others", "spread", "use"),
    [
        (2.0, 0.5, 3.0, "read"),
        (2.0, 0.04, 0.0, "only a pause"),  # certain, and too small to count
        (2.0, 0.2, 3.0, "only a pause"),  # large enough, and it may be chance: 0.2 ± 0.24
        (0.04, 0.0, 0.0, "unused"),
        (0.2, 0.0, 3.0, "unused"),
        (-1.0, 1.0, 0.0, "read"),
    ],
)
def test_a_gain_counts_where_it_is_large_and_certain(over_none, over_others, spread, use):
    own = [run("warmup", 0, 0.9, row_gains=row_gains(over_none, over_others, spread))]
    assert compared({"sft": [0.5]}, warmup=own).use.startswith(f"The warmups of warmup are {use}: ")


def test_seeds_are_judged_one_by_one():
    """A mean would hide that one of three does not read, or, by a t-test over seeds, that any does."""
    others = [9.0, 0.5, 0.0]
    own = [run("warmup", seed, 0.9, row_gains=row_gains(3.0, others[seed])) for seed in SEEDS]
    found = compared({"sft": [0.5, 0.5, 0.5]}, warmup=own)
    assert "are read in 2 of 3 seeds and only a pause in 1: they make" in found.use


def test_controls_and_runs_without_gains_are_not_judged():
    control = [run("shuffled_warmup", 0, 0.9, row_gains=row_gains(2.0, 2.0))]
    found = compared({"sft": [0.5], "warmup": [0.9]}, shuffled_warmup=control)
    assert [arm.use for arm in found.arms] == [None, None, None]
    assert found.use == "Whether its warmups are read was not measured."


def test_examples_to_reach_and_mean_curve():
    def curve(*scores: float) -> list[Point]:
        return [Point(i, 16 * i, float(i), score, 0.1, gain_over_none=score) for i, score in enumerate(scores)]

    assert examples_to_reach(curve(0.1, 0.85, 0.7, 0.9), 0.8) == 16
    assert examples_to_reach(curve(0.1, 0.2), 0.8) is None
    mean = mean_curve([curve(0.0, 0.5), curve(1.0, 0.7)])
    assert [(p.step, p.examples, p.score, p.gain_over_none) for p in mean] == [
        (0, 0, 0.5, 0.5),
        (1, 16, pytest.approx(0.6), pytest.approx(0.6)),
    ]
    assert [p.overlap for p in mean] == [None, None]
    assert np.isfinite([p.seconds for p in mean]).all()
