"""What a comparison found, in sentences. Differences in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from warmup_peft.comparison.arms import SFT, Arm
from warmup_peft.comparison.formatting import count, interval_text, listed, p_text, significance_text, time_unit
from warmup_peft.comparison.results import ArmSummary, Difference, Gain, WarmupUse
from warmup_peft.comparison.significance import LEVEL
from warmup_peft.evaluation.score_texts import metric_name, number_text, points_text, score_text

SLOWER = 1.1  # times as long as SFT; below that the difference may be the machine's
STILL_FALLING = 0.95  # share of the loss that is left at the last point of a learning curve, of that before it
EQUAL_STEPS_ONLY = "; no SFT arm trained as long, so this holds for equal steps only: add the arm more_sft"


def verdict(
    best: ArmSummary | None,
    sft: ArmSummary | None,
    difference: Difference | None,
    is_as_long: bool,
    metric: str,
    cost: float | None = None,
) -> str:
    """Whether to use warmups, in one sentence.

    Args:
        best: the best warmup arm.
        sft: the best SFT arm.
        difference: of the one to the other; None where no seed is done of both.
        is_as_long: whether SFT was given as much training time.
        cost: how many times as long as SFT the best warmup arm trains for as many steps; None where unknown.
    """
    if best is None or sft is None or difference is None:
        missing = "warmup arm" if best is None else "SFT arm with the same seeds"
        return f"No answer: the comparison has no finished {missing}."
    found = scores_text(best, sft, difference, is_as_long, metric)
    slower = f"; step for step it is {cost:.1f} times slower to train than SFT" if cost and cost >= SLOWER else ""
    only = slower + ("" if is_as_long else EQUAL_STEPS_ONLY)
    if difference.is_significant and difference.estimate > 0:
        return f"Yes, use warmups here: {found}{only}."
    if difference.is_significant:
        return f"No, do not use warmups here: even the best warmup arm, {found}{only}."
    rows, seeds = count(difference.num_rows, "test row"), count(difference.num_seeds, "seed")
    return f"Not decided by {rows} and {seeds}: {found}, {why_not_decided(difference)}{only}."


def scores_text(best: ArmSummary, sft: ArmSummary, difference: Difference, is_as_long: bool, metric: str) -> str:
    """Scores of both arms, their difference and their training times."""
    ours, theirs = (score_text(metric, score) for score in (difference.score, difference.reference_score))
    other = f"the best SFT in as much training time ({sft.name})" if is_as_long else f"SFT ({sft.name})"
    seconds = [arm.train_seconds.mean for arm in (best, sft) if arm.train_seconds]
    times = f"; training took {' and '.join(map(duration_text, seconds))}" if len(seconds) == 2 else ""
    return (
        f"{best.name} has {metric_name(metric)} {ours} and {other} has {theirs}, a difference of "
        f"{points_text(difference.estimate)} points ({interval_text(difference)}{times})"
    )


def duration_text(seconds: float) -> str:
    unit, size = time_unit(seconds)
    return f"{number_text(seconds / size, ',.1f' if seconds < 10 else ',.0f')} {unit}"


def why_not_decided(difference: Difference) -> str:
    if difference.seeds_p is not None and is_significant_over_rows(difference):
        return (
            f"which is significant over the test rows but not over the seeds ({p_text(difference.seeds_p)}), so "
            "another training might not repeat it: run more seeds"
        )
    least = number_text(100 * difference.minimum_detectable_effect, ".1f")
    return f"which is not significant; the minimum detectable effect with these test rows is {least} points"


USES = {"read": "read", "a pause": "only a pause", "unused": "unused"}


def use_of_best(best: ArmSummary | None, metric: str) -> str:
    """What the best arm's warmups are to it, in one sentence: read, only a pause, or unused."""
    if best is None or best.use is None:
        return "Whether its warmups are read was not measured."
    use = best.use
    after = score_after_other_text(best, metric)
    return (
        f"The warmups of {best.name} are {seeds_text(use.by_seed)}: they make the reference more likely by "
        f"{gain_text(use.over_none)} than no warmup, and by {gain_text(use.over_others)} than another row's{after}."
    )


def seeds_text(by_seed: Sequence[WarmupUse]) -> str:
    """`read`, or `read in 2 of 3 seeds and only a pause in 1`."""
    counts = [(words, by_seed.count(use)) for use, words in USES.items() if use in by_seed]
    if len(counts) == 1:
        return counts[0][0]
    (first, number), *others = counts
    return listed([f"{first} in {number} of {len(by_seed)} seeds", *(f"{words} in {n}" for words, n in others)])


def gain_text(gain: Gain) -> str:
    mean, low, high = (number_text(value, "+.2f") for value in (gain.mean, gain.low, gain.high))
    return f"{mean} nats (95% interval {low} to {high})"


def score_after_other_text(best: ArmSummary, metric: str) -> str:
    """The first metric after other text than the own warmup, where it was measured."""
    found = {
        words: score_text(metric, best.warmups[name].mean)
        for name, words in (("score_after_others", "another row's"), ("score_after_none", "none"))
        if name in best.warmups
    }
    if not found:
        return ""
    own = score_text(metric, best.metrics[metric].mean)
    others = " and ".join(f"{score} after {words}" for words, score in found.items())
    return f"; {metric_name(metric)} is {own} after its own, {others}"


def equal_steps_note(best: ArmSummary | None, sft: ArmSummary | None, metric: str) -> list[str]:
    """The difference to SFT with as many steps, where the verdict is about another SFT arm."""
    if best is None or sft is None or best.versus_sft is None or sft.name.split()[0] == SFT:
        return []
    equal = best.versus_sft
    return [
        f"At equal steps {best.name} has {points_text(equal.estimate)} points of {metric_name(metric)} against "
        f"{equal.reference} ({interval_text(equal)}; {significance_text(equal)})."
    ]


def is_significant_over_rows(difference: Difference) -> bool:
    """Whether the tests over rows are significant, whatever the test over seeds says."""
    return max(difference.p_adjusted, difference.mcnemar_p_adjusted or 0.0) < LEVEL


def control_note(control: Arm, anchored: Difference) -> str:
    """Whether it matters what the warmups say, or that there are any.

    Args:
        anchored: its difference to the control.
    """
    what, instead = control.question
    name = control.name.replace(control.method, "anchored", 1)
    gained = points_text(anchored.estimate)
    against = f"{name} has {gained} points against {control.name} ({instead}; {interval_text(anchored)})"
    if anchored.is_significant:
        return f"{what} {'matters' if anchored.estimate > 0 else 'does harm'}: {against}."
    if is_significant_over_rows(anchored):
        return f"{what} may matter, but the difference is not significant over the seeds: {against}."
    return f"{what} makes no significant difference: {against}."


def best_arm_note(best: ArmSummary | None, num_candidates: int) -> list[str]:
    """How the arm of the verdict was chosen, where there was a choice."""
    if best is None or num_candidates < 2:
        return []
    if not best.curve:
        return [
            f"There are no learning curves to choose the best of {num_candidates} warmup arms by, so the verdict is "
            f"about the first one, {best.name}."
        ]
    return [
        f"{best.name} was chosen as the best of {num_candidates} warmup arms by its score on the rows of the learning "
        "curves. The table's scores are of the same trained models on other rows."
    ]


def rows_note(num_curve_rows: int, num_test_rows: int) -> list[str]:
    """Which rows are for what: a user who counts the test rows misses some."""
    if not num_curve_rows:
        return []
    return [
        f"The learning curves, and the choice of the best arms, rest on {count(num_curve_rows, 'row')} of the "
        "validation split, or of every other test row where there is no such split; the table and the verdict rest on "
        f"{count(num_test_rows, 'test row')}, which are others. So a curve need not end at the score in the table."
    ]


def steps_note(best: ArmSummary | None) -> list[str]:
    """A warning where the training was too short to judge by."""
    if best is None:
        return []
    losses = [point.nll_per_token for point in best.curve]
    if len(losses) < 3 or not losses[-1] < STILL_FALLING * losses[-2]:
        return []
    return [
        f"The loss of {best.name} still falls at the end of its training ({losses[-2]:.3f} to {losses[-1]:.3f} nats a "
        "token between the last two points), so more steps may change the answer."
    ]


def seeds_note(arms: Sequence[ArmSummary]) -> list[str]:
    """A warning where an arm has fewer than three seeds, and the runs that failed."""
    num_seeds = [arm.versus_sft.num_seeds for arm in arms if arm.versus_sft] or [len(arm.seeds) for arm in arms]
    one_seed = (
        "With one seed, the intervals cover the choice of test rows, but not the randomness of training: two "
        "trainings of the same arm can differ by more. Run three seeds or more."
    )
    two_seeds = (
        "Two seeds settle little: a test over two trainings finds only very regular differences. Run three or more."
    )
    few = {1: [one_seed], 2: [two_seeds]}.get(min(num_seeds, default=3), [])
    failed = [
        f"{arm.name}, seed {seed}, failed and is left out: {error}"
        for arm in arms
        for seed, error in arm.failures.items()
    ]
    return [*few, *failed]
