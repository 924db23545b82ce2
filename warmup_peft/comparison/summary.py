"""From runs to a `Comparison`: means over seeds, differences, and the arms that the verdict is about.

Knows no model and no trainer: only what the runs wrote down.
"""

from __future__ import annotations

import math
import statistics as means
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from warmup_peft.comparison.arms import MORE_SFT, SFT, Arm
from warmup_peft.comparison.results import ArmSummary, Comparison, Difference, Estimate, Point, Run, UseOfWarmups
from warmup_peft.comparison.significance import compare_with, estimate, use_of_warmups
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
from warmup_peft.evaluation.metric import Answers, RowStatistics, mean_of_rows
from warmup_peft.evaluation.metrics import METRICS
from warmup_peft.evaluation.score_texts import is_right_or_wrong

Runs = Mapping[str, Sequence[Run]]  # of each arm's name, those that have ended, in the order of their seeds


def summarize(
    arms: Sequence[Arm], runs: Runs, metric: str, goal: float | None, runs_planned: int, **about: Any
) -> Comparison:
    """All that a report presents.

    Args:
        runs_planned: how many there will be.
        about: further fields of `Comparison`: settings, versions, command, numbers of rows.
    """
    done = {arm.name: [run for run in runs.get(arm.name, []) if run.error is None] for arm in arms}
    warmup_arms = [arm for arm in arms if arm.method not in (SFT, MORE_SFT)]

    def against(method: str) -> dict[str, Difference]:
        """Differences of the other arms to the SFT arm with the same swept values."""
        pairs = [(arm, o) for arm in warmup_arms for o in arms if o.method == method and o.is_paired_with(arm)]
        return differences(method, pairs, done, metric)

    to_sft, to_more_sft = against(SFT), against(MORE_SFT)
    summaries = {
        arm.name: summary_of(arm, runs.get(arm.name, []), goal, to_sft.get(arm.name), to_more_sft.get(arm.name))
        for arm in arms
    }
    candidates = [arm for arm in arms if arm.has_warmups and not arm.is_control]
    best = best_of([summaries[arm.name] for arm in candidates])
    sft, is_as_long = best_sft(best, arms, summaries)
    to_best_sft = None
    if best is not None and sft is not None:  # corrected for all candidates: any could be best
        reference = next(arm for arm in arms if arm.name == sft.name)
        to_best_sft = differences(sft.name, [(arm, reference) for arm in candidates], done, metric).get(best.name)
    every_run = [run for each in done.values() for run in each]
    notes = [control_note(arm, difference) for arm, difference in control_differences(arms, done, metric)]
    return Comparison(
        verdict=verdict(best, sft, to_best_sft, is_as_long, metric, cost_of(best, arms, summaries)),
        use=use_of_best(best, metric),
        notes=[
            *equal_steps_note(best, sft, metric),
            *notes,
            *best_arm_note(best, len(candidates)),
            *rows_note(about.get("num_curve_rows", 0), about.get("num_test_rows", 0)),
            *seeds_note(list(summaries.values())),
            *steps_note(best),
        ],
        metric=metric,
        goal=goal,
        arms=list(summaries.values()),
        runs_done=sum(map(len, runs.values())),
        runs_planned=runs_planned,
        left_out={name: reason for run in every_run for name, reason in run.left_out.items()},
        signatures={name: text for run in every_run for name, text in run.signatures.items()},
        **about,
    )


def cost_of(best: ArmSummary | None, arms: Sequence[Arm], summaries: Mapping[str, ArmSummary]) -> float | None:
    """How many times as long as SFT with as many steps the best arm trains; None where either was not run."""
    named = {arm.name: arm for arm in arms}
    same = [] if best is None else [o for o in arms if o.method == SFT and o.is_paired_with(named[best.name])]
    if best is None or not same:
        return None
    ours, sfts = (summaries[name].train_seconds for name in (best.name, same[0].name))
    return ours.mean / sfts.mean if ours and sfts and sfts.mean else None


# ---- Differences ----


def differences(reference: str, pairs: Sequence[tuple[Arm, Arm]], done: Runs, metric: str) -> dict[str, Difference]:
    """Difference of the first arm of each pair to the second, over the seeds that both have, if there are any.

    Args:
        reference: the name under which the second arms are reported.
    """
    sides = {arm.name: paired_runs(done[arm.name], done[other.name]) for arm, other in pairs}
    known = {
        name: ([statistics_of(run, metric) for run in ours], [statistics_of(run, metric) for run in theirs])
        for name, (ours, theirs) in sides.items()
        if ours
    }
    return dict(zip(known, compare_with(reference, list(known.values()), is_right_or_wrong(metric))))


def control_differences(arms: Sequence[Arm], done: Runs, metric: str) -> list[tuple[Arm, Difference]]:
    """Each control arm, and the difference to it of the arm `anchored` with the same swept values."""
    found = []
    for control in (arm for arm in arms if arm.is_control):
        anchored = [arm for arm in arms if arm.method == "anchored" and dict(arm.swept) == dict(control.swept)]
        pairs = [(arm, control) for arm in anchored]
        found += [(control, each) for each in differences(control.name, pairs, done, metric).values()]
    return found


def paired_runs(arm: Sequence[Run], other: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of the seeds that both have, in the same order."""
    seeds = sorted({run.seed for run in arm} & {run.seed for run in other})
    ours, theirs = ([next(run for run in side if run.seed == seed) for seed in seeds] for side in (arm, other))
    return ours, theirs


@lru_cache(maxsize=1024)
def statistics_of(run: Run, metric: str) -> RowStatistics:
    """A run's rows as the bootstrap takes them."""
    if METRICS[metric].kind != "corpus":
        return mean_of_rows([row.score for row in run.rows])
    texts, references, prompts = (
        [getattr(row, name) for row in run.rows] for name in ("answer", "reference", "prompt")
    )
    return METRICS[metric].score(Answers(texts, references, prompts))


def best_of(summaries: Sequence[ArmSummary]) -> ArmSummary | None:
    """The arm with the highest score at the end of its learning curve, whose rows are not the test rows.

    Among equal ones, the one with the lower loss on the references. Without learning curves, the first.
    """

    def merit(summary: ArmSummary) -> tuple[float, float]:
        if not summary.curve or math.isnan(summary.curve[-1].score):
            return -math.inf, -math.inf
        return summary.curve[-1].score, -summary.curve[-1].nll_per_token

    return max((summary for summary in summaries if summary.seeds), key=merit, default=None)


def best_sft(
    best: ArmSummary | None, arms: Sequence[Arm], summaries: Mapping[str, ArmSummary]
) -> tuple[ArmSummary | None, bool]:
    """The SFT arm that the best warmup arm has to beat, and whether SFT was given as much training time.

    It was if there is a `more_sft` for the warmup arm, or an SFT arm (of a sweep) that trained at least as long. The
    best SFT may still be a shorter one: more time must not make SFT look worse. Without learning curves to choose by,
    it is one with as much time.
    """
    every = [arm for arm in arms if arm.method in (SFT, MORE_SFT) and summaries[arm.name].seeds]
    if best is None or not every:
        return None, False
    trained = next(arm for arm in arms if arm.name == best.name)

    def is_as_long(arm: Arm) -> bool:
        is_made_for_it = arm.method == MORE_SFT and arm.is_paired_with(trained)
        return is_made_for_it or seconds_of(summaries[arm.name]) >= seconds_of(best)

    as_long = [arm for arm in every if is_as_long(arm)]
    chosen_from = every if best.curve or not as_long else as_long
    return best_of([summaries[arm.name] for arm in chosen_from]), bool(as_long)


def seconds_of(summary: ArmSummary) -> float:
    return summary.train_seconds.mean if summary.train_seconds else 0.0


# ---- One arm ----


def summary_of(
    arm: Arm,
    runs: Sequence[Run],
    goal: float | None,
    versus_sft: Difference | None,
    versus_more_sft: Difference | None,
) -> ArmSummary:
    done = [run for run in runs if run.error is None]
    failures = {run.seed: run.error for run in runs if run.error is not None}
    if not done:
        return ArmSummary(arm.name, arm.description, failures=failures)
    is_trained = any(run.train_seconds for run in done)

    def over_seeds(value: Callable[[Run], float]) -> Estimate:
        return estimate([value(run) for run in done])

    def each_over_seeds(values: Callable[[Run], Mapping[str, float]]) -> dict[str, Estimate]:
        return {name: estimate([values(run)[name] for run in done]) for name in values(done[0])}

    return ArmSummary(
        name=arm.name,
        description=arm.description,
        seeds=[run.seed for run in done],
        failures=failures,
        metrics=each_over_seeds(lambda run: run.metrics),
        train_seconds=over_seeds(lambda run: run.train_seconds) if is_trained else None,
        examples_per_second=over_seeds(lambda run: run.examples_per_second) if is_trained else None,
        peak_memory=over_seeds(lambda run: run.peak_memory),
        seconds_per_answer=over_seeds(lambda run: run.seconds_per_answer),
        warmups=each_over_seeds(lambda run: run.warmups),
        use=use_of(done) if not arm.is_control and all(run.row_gains for run in done) else None,
        versus_sft=versus_sft,
        versus_more_sft=versus_more_sft,
        examples_to_reach=[examples_to_reach(run.curve, goal) for run in done if run.curve and goal is not None],
        curve=mean_curve([run.curve for run in done]),
        rows=done[0].rows,
    )


def use_of(runs: Sequence[Run]) -> UseOfWarmups:
    gains = ([run.row_gains[name] for run in runs] for name in ("gain_over_none", "gain_over_others"))
    return use_of_warmups(*gains)


def examples_to_reach(curve: Sequence[Point], goal: float) -> int | None:
    return next((point.examples for point in curve if point.score >= goal), None)


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Means over seeds, point by point; None where a seed has None."""

    def mean(name: str, points: Sequence[Point]) -> Any:
        values = [getattr(point, name) for point in points]
        return None if None in values else means.fmean(values)

    names = ("seconds", "score", "nll_per_token", "gain_over_none", "gain_over_others", "overlap")
    return [
        Point(points[0].step, points[0].examples, **{name: mean(name, points) for name in names})
        for points in zip(*curves)
    ]
