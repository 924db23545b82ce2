"""Is a difference significant? Paired tests over test rows and over seeds, from scipy and statsmodels.

Two things make a difference uncertain. The test rows are a sample: the paired bootstrap (Koehn 2004, "Statistical
significance tests for machine translation evaluation") and McNemar's test account for that. And a trained model is a
sample: another seed gives another model. A paired t-test over seeds accounts for that, and more rows cannot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from warmup_peft.comparison.results import Difference, Estimate, Gain, UseOfWarmups, WarmupUse
from warmup_peft.evaluation.metric import Array, RowStatistics
from warmup_peft.method.diagnostics import UNUSED_BELOW

Pair = tuple[Sequence[RowStatistics], Sequence[RowStatistics]]

LEVEL = 0.05
RESAMPLES = 4999
POWER = 0.8


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, and standard error of the mean where there are two or more."""
    error = float(stats.sem(values)) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), error)


@lru_cache(maxsize=256)  # a report is made anew after every run, and few pairs change
def paired_bootstrap(
    arm: tuple[RowStatistics, ...], reference: tuple[RowStatistics, ...], resamples: int
) -> tuple[float, float, float, float]:
    """Resample test rows, the same for both; the score of a resample is its mean over seeds.

    Args:
        arm, reference: statistics of the same rows, one entry a seed.

    Returns:
        Low and high end of the 95% percentile interval of arm - reference; the two-sided p-value, the share of
        resamples whose difference lies as far from the observed one as that from zero; and the standard deviation
        over the resamples that have a score, or 0 where fewer than two have.
    """

    def difference(rows: np.ndarray, axis: int = -1) -> Array:
        """(..., n) row numbers -> (...) differences."""
        scores = [np.mean([each.score_samples(rows) for each in side], axis=0) for side in (arm, reference)]
        return scores[0] - scores[1]

    rows = np.arange(len(arm[0].row_scores))
    observed = float(difference(rows))
    result = stats.bootstrap(
        (rows,), difference, n_resamples=resamples, batch=64, method="percentile", rng=np.random.default_rng(0)
    )
    samples = result.bootstrap_distribution
    scored = samples[np.isfinite(samples)]
    deviation = float(scored.std()) if len(scored) > 1 else 0.0
    is_as_far = np.logical_not(np.abs(samples - observed) < abs(observed) - 1e-12)  # so is a sample without a score
    p = (1 + int(is_as_far.sum())) / (1 + resamples)
    return float(result.confidence_interval.low), float(result.confidence_interval.high), p, deviation


def mcnemar_p(arm: Sequence[RowStatistics], reference: Sequence[RowStatistics]) -> float:
    """McNemar's exact test on the rows that one side answers right in more seeds than the other."""
    balance = np.sum([a.row_scores - b.row_scores for a, b in zip(arm, reference)], axis=0)
    better, worse = int((balance > 1e-9).sum()), int((balance < -1e-9).sum())
    if better + worse == 0:
        return 1.0
    return float(mcnemar([[0, better], [worse, 0]], exact=True).pvalue)


def seeds_p(arm: Sequence[float], reference: Sequence[float]) -> float | None:
    """Paired t-test over seeds; a sign test if all differences are equal; None if there is one seed."""
    differences = np.subtract(arm, reference)
    if len(differences) < 2:
        return None
    if np.allclose(differences, differences[0]):  # no spread to measure by: only the signs count
        return 1.0 if np.isclose(differences[0], 0) else 2.0 ** (1 - len(differences))
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def gain_of(by_seed: Sequence[Sequence[float]]) -> Gain:
    """Mean gain over test rows and seeds.

    Args:
        by_seed: of each seed, the gains of the same test rows.
    """
    rows = np.mean(by_seed, axis=0)
    mean, half = float(rows.mean()), 0.0
    if len(rows) > 1:
        half = float(stats.t.ppf(1 - LEVEL / 2, len(rows) - 1) * stats.sem(rows))
    return Gain(mean, mean - half, mean + half)


def use_of_warmups(over_none: Sequence[Sequence[float]], over_others: Sequence[Sequence[float]]) -> UseOfWarmups:
    """What warmups are to the model, by their gains: of each seed, those of the test rows.

    Each seed is judged alone: gains of models that all read their warmups may differ tenfold, so that a test of their
    mean over three seeds would find nothing.
    """

    def is_gain(rows: Sequence[float]) -> bool:
        gain = gain_of([rows])
        return gain.mean >= UNUSED_BELOW and gain.low > 0

    by_seed: list[WarmupUse] = [
        "read" if is_gain(others) else "a pause" if is_gain(none) else "unused"
        for none, others in zip(over_none, over_others)
    ]
    return UseOfWarmups(by_seed, gain_of(over_none), gain_of(over_others))


def compare_with(name: str, paired: Sequence[Pair], is_right_or_wrong: bool) -> list[Difference]:
    """Differences of arms to the reference arm called `name`; p-values are corrected for the number of arms (Holm).

    Args:
        paired: of each arm and of the reference, the statistics of the same test rows, one entry a seed.
        is_right_or_wrong: whether a row's score is 1 or 0, so that McNemar's test applies.
    """
    intervals = [paired_bootstrap(tuple(arm), tuple(other), RESAMPLES) for arm, other in paired]
    exact = [mcnemar_p(*pair) for pair in paired] if is_right_or_wrong else None
    by_seed = [([each.total() for each in arm], [each.total() for each in other]) for arm, other in paired]
    over_seeds = corrected_where_known([seeds_p(*totals) for totals in by_seed])
    adjusted = corrected([p for _, _, p, _ in intervals])
    exact_adjusted = None if exact is None else corrected(exact)
    of_rows = adjusted if exact_adjusted is None else list(map(max, adjusted, exact_adjusted))
    return [
        Difference(
            reference=name,
            score=float(np.mean(by_seed[i][0])),
            reference_score=float(np.mean(by_seed[i][1])),
            estimate=float(np.mean(by_seed[i][0]) - np.mean(by_seed[i][1])),
            low=low,
            high=high,
            p=p,
            p_adjusted=adjusted[i],
            mcnemar_p=None if exact is None else exact[i],
            mcnemar_p_adjusted=None if exact_adjusted is None else exact_adjusted[i],
            seeds_p=over_seeds[i],
            minimum_detectable_effect=detectable_effect(deviation, len(paired))
            or minimum_detectable_effect(len(paired[i][0][0].row_scores)),
            is_significant=of_rows[i] < LEVEL and (over_seeds[i] or 0) < LEVEL,  # None where there is one seed
            num_rows=len(paired[i][0][0].row_scores),
            num_seeds=len(paired[i][0]),
        )
        for i, (low, high, p, deviation) in enumerate(intervals)
    ]


def corrected(p_values: Sequence[float]) -> list[float]:
    """Holm's correction. (statsmodels' `multipletests` collects garbage at every call, a second with torch loaded.)"""
    order, found = np.argsort(p_values, kind="stable"), np.empty(len(p_values))
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return found.tolist()


def corrected_where_known(p_values: Sequence[float | None]) -> list[float | None]:
    known = iter(corrected([p for p in p_values if p is not None]))
    return [None if p is None else next(known) for p in p_values]


# ---- What this many rows can detect ----


def detectable_effect(standard_error: float, num_arms: int = 1) -> float:
    """The difference that a two-sided test at 5%, corrected for this many arms, detects with a power of 80%."""
    return float((stats.norm.ppf(1 - LEVEL / num_arms / 2) + stats.norm.ppf(POWER)) * standard_error)


def minimum_detectable_effect(num_rows: int) -> float:
    """The same before a run: for two arms with an accuracy of one half and independent errors."""
    return detectable_effect(math.sqrt(0.5 / num_rows))


def least_rows(num_arms: int) -> int:
    """With fewer, nothing is significant, even if one arm is right in every row and the other in none.

    McNemar's exact p is 2 / 2^n then.
    """
    return math.ceil(math.log2(2 * max(num_arms, 1) / LEVEL))
