"""From runs to a verdict. Knows no model and no trainer: only what the runs wrote down."""

from __future__ import annotations

import math
import statistics as means
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from warmup_peft.comparison.arms import MORE_SFT, SFT, Arm
from warmup_peft.comparison.results import ArmSummary, Comparison, Difference, Estimate, Point, Run
from warmup_peft.comparison.significance import LEVEL, compare_with, estimate
from warmup_peft.comparison.wording import p_text
from warmup_peft.evaluation.metrics import (
    METRICS,
    Answers,
    RowStatistics,
    is_right_or_wrong,
    mean_of_rows,
    metric_name,
    number_text,
    points_text,
)

Runs = Mapping[str, Sequence[Run]]  # of each arm's name, those that have ended, in the order of their seeds


def summarize(
    arms: Sequence[Arm], runs: Runs, metric: str, goal: float | None, runs_planned: int, **about: Any
) -> Comparison:
    """Everything a report shows.

    Args:
        runs_planned: how many there will be.
        about: further fields of `Comparison`: settings, versions, command, numbers of rows.
    """
    done = {arm.name: [run for run in runs.get(arm.name, []) if run.error is None] for arm in arms}
    differences = {name: differences_to(name, arms, done, metric) for name in (SFT, MORE_SFT)}
    summaries = [
        summary_of(
            arm, runs.get(arm.name, []), goal, differences[SFT].get(arm.name), differences[MORE_SFT].get(arm.name)
        )
        for arm in arms
    ]
    every_run = [run for each in done.values() for run in each]
    ended = sum(map(len, runs.values()))
    return Comparison(
        verdict=verdict(arms, summaries, done, metric),
        notes=notes(arms, summaries, done, metric),
        metric=metric,
        goal=goal,
        arms=summaries,
        runs_done=ended,
        runs_planned=runs_planned,
        left_out={name: reason for run in every_run for name, reason in run.left_out.items()},
        signatures={name: text for run in every_run for name, text in run.signatures.items()},
        **about,
    )


@lru_cache(maxsize=1024)
def statistics_of(run: Run, metric: str) -> RowStatistics:
    """What a bootstrap needs of a run's rows."""
    if METRICS[metric].kind != "corpus":
        return mean_of_rows([row.score for row in run.rows])
    return METRICS[metric].score(
        Answers(*([getattr(row, name) for row in run.rows] for name in ("answer", "reference", "prompt")))
    )


def paired_runs(arm: Sequence[Run], other: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Those of the seeds that both have, in their order."""
    seeds = sorted({run.seed for run in arm} & {run.seed for run in other})
    return tuple([next(run for run in side if run.seed == seed) for seed in seeds] for side in (arm, other))


def differences_to(method: str, arms: Sequence[Arm], done: Runs, metric: str) -> dict[str, Difference]:
    """Of every arm that is not plain SFT to the SFT arm (`sft` or `more_sft`) with the same swept values."""
    pairs = {}
    for arm in arms:
        other = next((o for o in arms if o.method == method and o.is_paired_with(arm)), None)
        if other is not None and arm.method not in (SFT, MORE_SFT):
            sides = paired_runs(done[arm.name], done[other.name])
            if sides[0]:
                pairs[arm.name] = sides
    return differences_of(method, pairs, metric)


def differences_of(
    reference: str, pairs: Mapping[str, tuple[Sequence[Run], Sequence[Run]]], metric: str
) -> dict[str, Difference]:
    """Of each pair of arms, whose runs have the same seeds in the same order."""
    sides = [tuple([statistics_of(run, metric) for run in side] for side in pair) for pair in pairs.values()]
    return dict(zip(pairs, compare_with(reference, sides, is_right_or_wrong(metric))))


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

    return ArmSummary(
        name=arm.name,
        description=arm.description,
        seeds=[run.seed for run in done],
        failures=failures,
        metrics={name: over_seeds(lambda run, name=name: run.metrics[name]) for name in done[0].metrics},
        train_seconds=over_seeds(lambda run: run.train_seconds) if is_trained else None,
        examples_per_second=over_seeds(lambda run: run.examples_per_second) if is_trained else None,
        peak_memory=over_seeds(lambda run: run.peak_memory),
        seconds_per_answer=over_seeds(lambda run: run.seconds_per_answer),
        warmups={name: over_seeds(lambda run, name=name: run.warmups[name]) for name in done[0].warmups},
        versus_sft=versus_sft,
        versus_more_sft=versus_more_sft,
        examples_to_reach=[examples_to_reach(run.curve, goal) for run in done if run.curve and goal is not None],
        curve=mean_curve([run.curve for run in done]),
        rows=done[0].rows,
        steps=done[0].steps,
    )


def examples_to_reach(curve: Sequence[Point], goal: float) -> int | None:
    return next((point.examples for point in curve if point.score >= goal), None)


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Point by point over seeds; what a point lacks in one seed it lacks in the mean."""

    def mean(name: str, points: Sequence[Point]) -> float | None:
        values = [getattr(point, name) for point in points]
        return None if None in values else means.fmean(values)

    names = ("seconds", "score", "nll_per_token", "gain_over_none", "gain_over_others", "overlap")
    return [
        Point(points[0].step, points[0].examples, **{name: mean(name, points) for name in names})
        for points in zip(*curves)
    ]


# ---- In words ----


def verdict(arms: Sequence[Arm], summaries: Sequence[ArmSummary], done: Runs, metric: str) -> str:
    """Whether to use warmups, in one sentence: the best warmup arm against the best SFT arm."""
    best = best_of(arms, summaries, is_candidate)
    to_sft = difference_to_best(SFT, best, arms, summaries, done, metric)
    if best is None or to_sft is None:
        missing = "warmup arm" if best is None else "SFT arm with the same seeds"
        return f"No verdict: the comparison has no finished {missing}."
    swept = f" (the best of its kind, {to_sft.reference})" if to_sft.reference != SFT else ""
    gained = f"{points_text(to_sft.estimate)} points of {metric_name(metric)}"
    against = f"{gained} against SFT with as many steps{swept} ({interval(to_sft)})"
    if not to_sft.is_shown and not seems_sure(to_sft):
        return (
            f"No difference can be seen: the best warmup arm, {best.name}, has {against}; as far as rows go, a "
            f"difference of {number_text(100 * to_sft.visible, '.1f')} points or more would probably have shown."
        )
    if not to_sft.is_shown:
        return (
            f"Not settled: the best warmup arm, {best.name}, has {against} on these rows, but its seeds differ too "
            f"much to say that another training would do the same ({p_text(to_sft.seeds_p)} over seeds); run more "
            "seeds."
        )
    if to_sft.estimate < 0:
        return f"Do not use warmups here: even the best warmup arm, {best.name}, has {against}."
    to_more = difference_to_best(MORE_SFT, best, arms, summaries, done, metric)
    return f"Warmups help here: {best.name} has {against}{after_more_sft(to_more)}."


def seems_sure(difference: Difference) -> bool:
    """Whether the test rows leave no doubt, whatever the seeds say."""
    return max(difference.p_adjusted, difference.mcnemar_p_adjusted or 0.0) < LEVEL


def after_more_sft(to_more: Difference | None) -> str:
    """What SFT with the same time says to it, as the end of a sentence."""
    if to_more is None:
        return ", while SFT with as much time was not tried (arm more_sft)"
    against = f"{points_text(to_more.estimate)} points, {interval(to_more)}"
    is_ahead = to_more.estimate > 0
    if to_more.is_shown and is_ahead:
        return f", and is ahead of SFT given as much time too ({against})"
    if to_more.is_shown:
        return f", but SFT given as much time does better ({against}): train SFT longer instead"
    if seems_sure(to_more):
        side = "ahead of" if is_ahead else "behind"
        return (
            f", and on these rows is {side} SFT given as much time ({against}), but seeds differ too much to be sure"
        )
    return f", but no difference can be seen to SFT given as much time ({against}): they save steps, not time"


def is_candidate(arm: Arm) -> bool:
    return arm.has_warmups and not arm.is_control


def best_of(
    arms: Sequence[Arm], summaries: Sequence[ArmSummary], is_wanted: Callable[[Arm], bool]
) -> ArmSummary | None:
    """The one with the highest score at the end of its learning curve, whose rows are not those of the verdict.

    Of equal ones the one that is surer of the references. Without curves, the first.
    """

    def merit(summary: ArmSummary) -> tuple[float, float]:
        if not summary.curve or math.isnan(summary.curve[-1].score):
            return -math.inf, -math.inf
        return summary.curve[-1].score, -summary.curve[-1].nll_per_token

    wanted = [summary for arm, summary in zip(arms, summaries) if is_wanted(arm) and summary.seeds]
    return max(wanted, key=merit, default=None)


def difference_to_best(
    method: str,
    best: ArmSummary | None,
    arms: Sequence[Arm],
    summaries: Sequence[ArmSummary],
    done: Runs,
    metric: str,
) -> Difference | None:
    """The best warmup arm's to the best of the SFT arms `sft` or `more_sft`; None where either is missing.

    Corrected for all arms that there are, since any could have been the best.
    """
    other = best_of(arms, summaries, lambda arm: arm.method == method)
    if best is None or other is None:
        return None
    pairs = {
        arm.name: paired_runs(done[arm.name], done[other.name]) for arm in arms if arm.method not in (SFT, MORE_SFT)
    }
    return differences_of(other.name, {name: sides for name, sides in pairs.items() if sides[0]}, metric).get(
        best.name
    )


def notes(arms: Sequence[Arm], summaries: Sequence[ArmSummary], done: Runs, metric: str) -> list[str]:
    """What else has to be known to read the numbers, a sentence each."""
    best = best_of(arms, summaries, is_candidate)
    num_candidates = sum(is_candidate(arm) for arm in arms)
    found = control_notes(arms, done, metric)
    if best is not None and num_candidates > 1:
        found.append(
            f"{best.name} is called the best of {num_candidates} warmup arms for its score on the learning curves' "
            "rows. The table's numbers are from other rows, but of the same trained models."
            if best.curve
            else f"There are no learning curves to choose the best of {num_candidates} warmup arms by; the verdict is "
            f"on the first, {best.name}."
        )
    num_seeds = [s.versus_sft.num_seeds for s in summaries if s.versus_sft] or [len(s.seeds) for s in summaries]
    if 1 in num_seeds:
        found.append(
            "With one seed the intervals say what other test rows would change, not what another training would: two "
            "trainings of the same arm can differ by more. Run three seeds or more."
        )
    for summary in summaries:
        found += [
            f"{summary.name}, seed {seed}, failed and is left out: {error}" for seed, error in summary.failures.items()
        ]
    return found


def control_notes(arms: Sequence[Arm], done: Runs, metric: str) -> list[str]:
    """Does it matter what the warmups say, and that there are any? Controls are `anchored`, less one thing."""
    questions = {
        "shuffled_warmup": ("What the warmups say", "another row's warmup in place of its own"),
        "empty_warmup": ("That there is a warmup at all", "only the separator"),
    }
    found = []
    for arm in arms:
        twin = next((a.name for a in arms if a.method == "anchored" and dict(a.swept) == dict(arm.swept)), None)
        sides = paired_runs(done[twin], done[arm.name]) if arm.is_control and twin else ([], [])
        if not sides[0]:
            continue
        difference = differences_of(arm.name, {twin: sides}, metric)[twin]
        what, instead = questions[arm.method]
        gained = points_text(difference.estimate)
        against = f"{twin} has {gained} points against {arm.name} ({instead}; {interval(difference)})"
        if difference.is_shown and difference.estimate > 0:
            found.append(f"{what} matters: {against}.")
        elif difference.is_shown:
            found.append(f"{what} does harm: {against}.")
        elif seems_sure(difference):
            found.append(f"{what} may matter, but seeds differ too much to be sure: {against}.")
        else:
            found.append(f"{what} does not visibly matter: {against}.")
    return found


def interval(difference: Difference) -> str:
    return f"95% interval {points_text(difference.low)} to {points_text(difference.high)}"
