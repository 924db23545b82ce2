"""What a metric is: how answers are scored, in a form that a bootstrap can resample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Kind = Literal["right_or_wrong", "graded", "corpus"]


@dataclass(frozen=True)
class Answers:
    """The answers to score, one entry per row.

    Attributes:
        texts: the generated answers, or the chosen options in a multiple-choice task.
        references: the right answers.
        prompts: the prompts.
        choices: (n, 2) indices of the chosen and the right option; None if the answers are generated freely.
        num_options: the number of options.
    """

    texts: Sequence[str]
    references: Sequence[str]
    prompts: Sequence[str]
    choices: NDArray[np.int64] | None = None
    num_options: int = 0

    def take(self, rows: Sequence[int]) -> Answers:
        """The answers of these rows, in this order."""
        texts, references, prompts = ([of[i] for i in rows] for of in (self.texts, self.references, self.prompts))
        choices = None if self.choices is None else self.choices[list(rows)]
        return Answers(texts, references, prompts, choices, self.num_options)


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """The result of one metric, in a form from which a bootstrap can resample rows.

    Attributes:
        row_scores: (n,) score of each row alone.
        score_samples: maps (..., n) row indices to the (...) scores of these resamples.
        signature: version and settings of the metric, as its library reports them.
    """

    row_scores: Array
    score_samples: Callable[[NDArray[np.int64]], Array]
    signature: str = ""

    def total(self) -> float:
        return float(self.score_samples(np.arange(len(self.row_scores))))


def mean_of_rows(row_scores: Sequence[float] | Array, signature: str = "") -> RowStatistics:
    scores = np.asarray(row_scores, dtype=np.float64)
    return RowStatistics(scores, lambda rows: scores[rows].mean(-1), signature)


def score_of_sums(
    values: Array, score: Callable[[Array], Array], row_scores: Array, signature: str = ""
) -> RowStatistics:
    """For a score that is a function of sums over rows. `score` maps (..., d) sums of the (n, d) `values` to (...)."""
    return RowStatistics(row_scores, lambda rows: score(values[rows].sum(-2)), signature)


def recomputed(score: Callable[[Answers], Any], answers: Answers) -> RowStatistics:
    """For a score that has to be computed from the answers again for each resample; NaN if that fails."""

    def score_sample(rows: Sequence[int]) -> float:
        try:
            return float(score(answers.take(rows)))
        except Exception:
            return math.nan

    def score_samples(rows: NDArray[np.int64]) -> Array:
        flat = rows.reshape(-1, rows.shape[-1])
        return np.asarray([score_sample(sample) for sample in flat.tolist()]).reshape(rows.shape[:-1])

    return RowStatistics(score_samples(np.arange(len(answers.texts))[:, None]), score_samples)


@dataclass(frozen=True)
class Metric:
    """One way to score answers.

    Attributes:
        name: the name in tasks, JSON files and model cards.
        title: the name in tables and reports.
        scale: 100 if the score is shown in hundredths (BLEU of 34.2), else 1.
        kind: `right_or_wrong` if a row scores 1 or 0 and the score is the mean, so that McNemar's test applies.
            `graded` if a row scores anything between 0 and 1 and the score is the mean. `corpus` for everything else:
            a significance test calls `compute` again, once for each of thousands of resamples if it returns a single
            number.
        compute: returns one finite number per row, whose mean is the score, or a single finite number for all rows,
            or `RowStatistics`.
        needs_options: whether it scores the chosen options of a multiple-choice task.
        package: optional package that it needs. The metric is left out if the package or its weights are missing.
        task: path of the task's file that defines it; empty for the metrics of this package.
    """

    name: str
    title: str
    scale: int
    kind: Kind
    compute: Callable[[Answers], RowStatistics | Sequence[float] | Array | float]
    needs_options: bool = False
    package: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.scale not in (1, 100):
            raise ValueError(
                f"The metric {self.name} has kind={self.kind!r} and scale={self.scale!r}. The kind is one of "
                f"{', '.join(get_args(Kind))}, the scale is 1 or 100."
            )

    @property
    def ranks_arms(self) -> bool:
        """Whether arms can be compared by it: it is always available and can be computed again from saved texts."""
        return not self.package and not (self.needs_options and self.kind == "corpus")

    def score(self, answers: Answers) -> RowStatistics:
        """Compute the metric.

        Raises:
            ValueError: a task's own metric raised an exception, or did not return such numbers.
        """
        found = self.numbers(answers)
        if isinstance(found, RowStatistics):
            return found
        wrong = np.flatnonzero(~np.isfinite(found))
        if len(wrong):
            where = f" for row {wrong[0] + 1}" if found.ndim else ""
            raise ValueError(f"{self.label} is {found.flat[wrong[0]]}{where}, but a score must be a finite number.")
        return mean_of_rows(found) if found.ndim else recomputed(self.compute, answers)

    def numbers(self, answers: Answers) -> RowStatistics | Array:
        """Result of `compute`, with its shape checked. NaN is allowed here. Raises ValueError as `score` does."""
        try:
            found = self.compute(answers)
        except Exception as error:
            if not self.task or self.package:
                raise
            raise ValueError(f"{self.label} cannot be computed: {type(error).__name__}: {error}") from error
        if isinstance(found, RowStatistics):
            return found
        try:
            scores = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.label} returned {type(found).__name__}. {self._wanted}") from error
        num_rows = len(answers.references)
        if scores.shape != (num_rows,) and (scores.ndim or self.kind != "corpus"):
            given = {0: "one number", 1: f"a list of {scores.size}"}.get(scores.ndim, "a table")
            raise ValueError(f"{self.label} returned {given} for {num_rows} rows. {self._wanted}")
        if self.kind == "right_or_wrong" and not np.isin(scores, (0, 1)).all():
            raise ValueError(f"{self.label} has kind right_or_wrong, but the score of a row is neither 0 nor 1.")
        return scores

    @property
    def label(self) -> str:
        return f"The metric {self.name}{f' of the task {self.task}' if self.task else ''}"

    @property
    def _wanted(self) -> str:
        return "Return one number per row" + (", or a single one for all rows." if self.kind == "corpus" else ".")
