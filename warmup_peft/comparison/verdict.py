"""What a comparison found, in sentences. Differences in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from warmup_peft.comparison.arms import SFT, Arm
from warmup_peft.comparison.formatting import interval_text, p_text
from warmup_peft.comparison.results import ArmSummary, Difference
from warmup_peft.comparison.significance import LEVEL
from warmup_peft.evaluation.metrics import metric_name, number_text, points_text


def verdict(best: ArmSummary | None, to_sft: Difference | None, to_more_sft: Difference | None, metric: str) -> str:
    """Whether to use warmups, in one sentence: the best warmup arm against the best SFT arm."""
    if best is None or to_sft is None:
        missing = "warmup arm" if best is None else "SFT arm with the same seeds"
        return f"No verdict: the comparison has no finished {missing}."
    swept = f" (the best of its kind, {to_sft.reference})" if to_sft.reference != SFT else ""
    gained = f"{points_text(to_sft.estimate)} points of {metric_name(metric)}"
    against = f"{gained} against SFT with as many steps{swept} ({interval_text(to_sft)})"
    if not to_sft.is_significant and not is_significant_over_rows(to_sft):
        return (
            f"No significant difference: the best warmup arm, {best.name}, has {against}. The minimum detectable "
            f"effect with these test rows is {number_text(100 * to_sft.minimum_detectable_effect, '.1f')} points."
        )
    if not to_sft.is_significant:
        return (
            f"Inconclusive: the best warmup arm, {best.name}, has {against}. This is significant over the test rows, "
            f"but not over the seeds ({p_text(to_sft.seeds_p)}), so another training might not repeat it. Run more "
            "seeds."
        )
    if to_sft.estimate < 0:
        return f"Do not use warmups here: even the best warmup arm, {best.name}, has {against}."
    return f"Warmups help here: {best.name} has {against}{after_more_sft(to_more_sft)}."


def is_significant_over_rows(difference: Difference) -> bool:
    """Whether the tests over rows are significant, whatever the test over seeds says."""
    return max(difference.p_adjusted, difference.mcnemar_p_adjusted or 0.0) < LEVEL


def after_more_sft(to_more: Difference | None) -> str:
    """The comparison with SFT that was trained for as long, as the end of a sentence."""
    if to_more is None:
        return "; SFT with the same training time was not run (arm more_sft)"
    against = f"{points_text(to_more.estimate)} points, {interval_text(to_more)}"
    is_ahead = to_more.estimate > 0
    if to_more.is_significant and is_ahead:
        return f", and is also better than SFT with the same training time ({against})"
    if to_more.is_significant:
        return f", but SFT with the same training time is better ({against}): train SFT longer instead"
    if is_significant_over_rows(to_more):
        side = "better" if is_ahead else "worse"
        return (
            f"; on these test rows it is {side} than SFT with the same training time ({against}), but this is not "
            "significant over the seeds"
        )
    return (
        f", but there is no significant difference to SFT with the same training time ({against}): warmups save "
        "steps, not time"
    )


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


def seeds_note(arms: Sequence[ArmSummary]) -> list[str]:
    """A warning where an arm has one seed only, and the runs that failed."""
    num_seeds = [arm.versus_sft.num_seeds for arm in arms if arm.versus_sft] or [len(arm.seeds) for arm in arms]
    one_seed = (
        "With one seed, the intervals cover the choice of test rows, but not the randomness of training: two "
        "trainings of the same arm can differ by more. Run three seeds or more."
    )
    failed = [
        f"{arm.name}, seed {seed}, failed and is left out: {error}"
        for arm in arms
        for seed, error in arm.failures.items()
    ]
    return [*([one_seed] if 1 in num_seeds else []), *failed]
