"""A metric: its kinds, and its scores on samples of rows."""

from __future__ import annotations

import numpy as np
import pytest
from answers import WRITTEN

from warmup_peft.evaluation.metric import Metric, mean_of_rows, recomputed, score_of_sums


def share_of_length(texts, references) -> float:
    return sum(map(len, texts)) / sum(map(len, references))


SAMPLES = np.array([[3, 0, 0, 1], [0, 1, 2, 3]])


def test_three_ways_to_score_samples_by_hand():
    lengths = [[len(text), len(right)] for text, right in zip(WRITTEN.texts, WRITTEN.references)]
    expected = [share_of_length(*zip(*((WRITTEN.texts[i], WRITTEN.references[i]) for i in rows))) for rows in SAMPLES]
    sums = score_of_sums(np.array(lengths), lambda x: x[..., 0] / x[..., 1], np.zeros(4), "mine")
    again = recomputed(lambda answers: share_of_length(answers.texts, answers.references), WRITTEN)
    assert sums.score_samples(SAMPLES) == pytest.approx(expected)
    assert again.score_samples(SAMPLES) == pytest.approx(expected)
    assert sums.total() == again.total() == pytest.approx(expected[1])
    assert mean_of_rows([1, 0, 0, 0]).score_samples(SAMPLES).tolist() == [1 / 2, 1 / 4]


@pytest.mark.parametrize(("scale", "kind"), [(10, "graded"), (1, "mean")])
def test_a_metric_of_no_known_kind_or_scale_is_refused(scale, kind):
    with pytest.raises(ValueError, match=r"The metric mine has .*The kind is one of right_or_wrong, graded, corpus"):
        Metric("mine", "mine", scale, kind, len)
