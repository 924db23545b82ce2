"""p-values against a case solved by hand, and under the null: shuffled arms give uniform ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from warmup_peft.comparison.results import Gain
from warmup_peft.comparison.significance import (
    compare_with,
    corrected,
    detectable_effect,
    estimate,
    gain_of,
    least_rows,
    mcnemar_p,
    minimum_detectable_effect,
    paired_bootstrap,
    seeds_p,
)
from warmup_peft.evaluation.metric import Answers, RowStatistics, mean_of_rows
from warmup_peft.evaluation.metrics import METRICS


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("warmup_peft.comparison.significance.RESAMPLES", 1999)


def rows(*scores: float):
    return (mean_of_rows(np.array(scores, dtype=float)),)


def test_mean_and_standard_error_by_hand():
    """Of 1, 2, 3: deviation 1, over the root of 3."""
    assert estimate([1.0, 2.0, 3.0]).mean == 2.0
    assert estimate([1.0, 2.0, 3.0]).error == pytest.approx(1 / np.sqrt(3))
    assert estimate([0.5]).error is None


def test_mcnemar_by_hand():
    """5 rows better, 1 worse: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64; ties do not count."""
    arm, other = rows(1, 1, 1, 1, 1, 0, 1, 0), rows(0, 0, 0, 0, 0, 1, 1, 0)
    assert mcnemar_p(arm, other) == pytest.approx(14 / 64)
    assert mcnemar_p(arm, arm) == 1.0


def test_mcnemar_over_seeds_counts_a_row_once():
    """Six seeds that answer alike are no more evidence than one."""
    arm, other = rows(1, 1, 1, 1, 1, 0), rows(0, 0, 0, 0, 0, 1)
    assert mcnemar_p(arm * 6, other * 6) == mcnemar_p(arm, other) == pytest.approx(14 / 64)


def test_bootstrap_by_hand():
    """One of two rows better: a resample has difference 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.

    The observed difference is 1/2, as far from zero as the resamples of 0 and of 1, half of all, are from it.
    """
    low, high, p, deviation = paired_bootstrap(rows(1, 1), rows(0, 1), 4999)
    assert (low, high) == (0.0, 1.0)
    assert p == pytest.approx(0.5, abs=0.03)
    assert deviation == pytest.approx(np.sqrt(1 / 8), abs=0.01)


def test_bootstrap_interval_is_the_normal_ones_for_many_rows():
    differences = np.random.default_rng(0).normal(0.1, 1.0, 2000)
    low, high, p, deviation = paired_bootstrap(rows(*differences), rows(*np.zeros(2000)), 4999)
    error = stats.sem(differences)
    assert (low, high) == pytest.approx(
        (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.1 * error
    )
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert deviation == pytest.approx(error, rel=0.05)


def test_bootstrap_of_a_corpus_score_resamples_sums_not_means():
    """BLEU of a corpus is not the mean of its rows'; the observed difference lies within the interval."""
    references = ["a cat sat on the mat today", "the dog barked at us again"] * 20
    good = METRICS["bleu"].score(Answers(references, references, references))
    worse = [r.replace("today", "now") for r in references]
    bad = METRICS["bleu"].score(Answers(worse, references, references))
    low, high, p, _ = paired_bootstrap((good,), (bad,), 499)
    assert 0 < low < good.total() - bad.total() < high
    assert p < 0.01


def test_samples_that_have_no_score_make_no_difference_significant():
    """As a correlation where all rows of a sample are the same: nobody knows on which side of zero they lie."""
    whole = np.arange(40)

    def only_the_whole(score):
        def score_samples(rows):
            return np.where((rows == whole).all(-1), score, np.nan)

        return (RowStatistics(np.full(40, np.nan), score_samples),)

    _, _, p, deviation = paired_bootstrap(only_the_whole(0.9), only_the_whole(0.1), 199)
    assert (p, deviation) == (1.0, 0.0)
    (difference,) = compare_with("sft", [(only_the_whole(0.9), only_the_whole(0.1))], is_right_or_wrong=False)
    assert difference.minimum_detectable_effect == minimum_detectable_effect(40)


def test_samples_that_have_no_score_leave_an_effect_that_can_be_detected():
    """Half of the samples have no score; the deviation is that of the others."""
    scores = np.random.default_rng(0).normal(0.5, 0.2, 100)

    def now_and_then(undefined: bool):
        def score_samples(rows):
            means = scores[rows].mean(-1)
            return np.where((rows[..., 0] % 2 == 1) & undefined, np.nan, means)

        return (RowStatistics(scores, score_samples),)

    zero = rows(*np.zeros(100))
    *_, deviation = paired_bootstrap(now_and_then(True), zero, 999)
    *_, whole = paired_bootstrap(now_and_then(False), zero, 999)
    assert deviation == pytest.approx(whole, rel=0.1)
    (difference,) = compare_with("sft", [(now_and_then(True), zero)], is_right_or_wrong=False)
    assert difference.minimum_detectable_effect == pytest.approx(2.8 * scores.std() / 10, rel=0.1)


def test_a_gain_by_hand():
    """Means over two seeds: 1, 2, 3; deviation 1, error 1 over the root of 3, t of two degrees of freedom."""
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    gain = gain_of([[0.0, 2.0, 4.0], [2.0, 2.0, 2.0]])
    assert (gain.mean, gain.low, gain.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert gain_of([[0.3]]) == Gain(0.3, 0.3, 0.3)


def shuffled_p_values(test, num_rows: int, trials: int = 300) -> np.ndarray:
    """Each row's two answers belong to the one arm or the other by a coin: there is no difference."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(trials):
        pair = random.normal(size=(2, num_rows))
        swapped = np.where(random.random(num_rows) < 0.5, pair, pair[::-1])
        found.append(test(rows(*swapped[0]), rows(*swapped[1])))
    return np.array(found)


def test_bootstrap_p_values_are_uniform_under_the_null():
    p_values = shuffled_p_values(lambda a, b: paired_bootstrap(a, b, 299)[2], num_rows=100)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 < (p_values < 0.05).mean() < 0.09


def test_a_test_that_forgets_the_pairs_would_be_caught():
    """The check above can fail: p-values of a one-sided test, doubled in error, are not uniform."""
    p_values = shuffled_p_values(lambda a, b: paired_bootstrap(a, b, 299)[2] ** 2, num_rows=100)
    assert stats.kstest(p_values, "uniform").pvalue < 0.01


def test_mcnemar_p_values_are_never_too_small_under_the_null():
    """An exact test of counts is discrete: at each level at most that share lies below it."""
    random = np.random.default_rng(3)
    p_values = np.array(
        [mcnemar_p(rows(*random.integers(0, 2, 60)), rows(*random.integers(0, 2, 60))) for _ in range(500)]
    )
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p_values <= level).mean() <= level + 2 * np.sqrt(level * (1 - level) / 500)
    assert (p_values <= 0.2).mean() > 0.08


def test_seeds_by_hand():
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) with two degrees of freedom."""
    assert seeds_p([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), 2))
    assert seeds_p([1.0], [0.0]) is None
    assert seeds_p([0.5, 0.5], [0.5, 0.5]) == 1.0
    assert seeds_p([0.6, 0.7, 0.8], [0.5, 0.6, 0.7]) == 1 / 4  # equal differences: three signs that agree


def test_holm_by_hand():
    """The smallest times 3, the next times 2, the largest times 1, and none below one before it."""
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([]) == []


def test_a_difference_over_rows_alone_is_not_significant_where_seeds_disagree():
    """One seed of three gains on every row, the others on none: sure on these rows, unsure of another training."""
    zero, one = np.zeros(200), np.ones(200)
    arm = [mean_of_rows(scores) for scores in (one, zero, zero)]
    other = [mean_of_rows(scores) for scores in (zero, zero, zero)]
    (difference,) = compare_with("sft", [(arm, other)], is_right_or_wrong=True)
    assert difference.estimate == pytest.approx(1 / 3)
    assert difference.p_adjusted < 0.001
    assert difference.mcnemar_p < 0.001
    assert difference.seeds_p == pytest.approx(2 * stats.t.sf(1.0, 2))
    assert not difference.is_significant


def test_few_rows_are_not_significant_by_the_bootstrap_alone():
    """Three rows of six better, none worse: McNemar's p is 2/8, whatever the bootstrap says."""
    (difference,) = compare_with("sft", [(rows(1, 1, 1, 0, 0, 1), rows(0, 0, 0, 0, 0, 1))], is_right_or_wrong=True)
    assert difference.mcnemar_p == pytest.approx(0.25)
    assert not difference.is_significant


def test_p_over_seeds_is_corrected_for_the_number_of_arms():
    random = np.random.default_rng(2)
    sft = [mean_of_rows(random.integers(0, 2, 50)) for _ in range(3)]
    arms = [([mean_of_rows(random.integers(0, 2, 50)) for _ in range(3)], sft) for _ in range(3)]
    alone = [seeds_p([r.total() for r in arm], [r.total() for r in sft]) for arm, _ in arms]
    assert [d.seeds_p for d in compare_with("sft", arms, True)] == pytest.approx(corrected(alone))


def test_arms_are_corrected_for_their_number():
    random = np.random.default_rng(1)
    base = rows(*random.integers(0, 2, 100))
    arms = [(rows(*random.integers(0, 2, 100)), base) for _ in range(3)]
    together = compare_with("sft", arms, is_right_or_wrong=True)
    alone = [compare_with("sft", [pair], is_right_or_wrong=True)[0] for pair in arms]
    assert [d.p for d in together] == [d.p for d in alone]
    assert [d.p_adjusted for d in together] == pytest.approx(corrected([d.p for d in alone]))
    assert min(d.p_adjusted for d in together) >= min(d.p_adjusted for d in alone)
    assert all(d.low <= d.estimate <= d.high for d in together)


def test_what_rows_can_detect():
    """2.8 standard errors are found four times out of five; six rows, all one way, have p = 2/64."""
    assert detectable_effect(0.01) == pytest.approx(0.028, abs=1e-4)
    assert minimum_detectable_effect(500) == pytest.approx(2.8 * np.sqrt(0.5 / 500), abs=1e-3)
    assert least_rows(1) == 6
    assert 2 / 2 ** least_rows(1) <= 0.05 < 2 / 2 ** (least_rows(1) - 1)
    assert least_rows(8) == 9
