"""What warmups say, sorted as "Warmup Generations" (arXiv 2502.12304, section 5) sorts them.

A warmup is *direct* where it holds a word of the target as it stands, *similar* where only a word of the same stem,
and *neither* otherwise. Words without a meaning of their own (sklearn's list of English stop words) do not count where
there are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nltk.stem.snowball import SnowballStemmer
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from warmup_peft.comparison.results import Difference
from warmup_peft.evaluation.tasks import Row
from warmup_peft.method.diagnostics import words

PhraseClass = Literal["direct", "similar", "neither", "empty"]
CLASSES: dict[PhraseClass, str] = {
    "direct": "holds a word of the reference as it stands",
    "similar": "holds no word of the reference, but one of the same stem",
    "neither": "shares no word and no stem with the reference",
    "empty": "nothing was written",
}
MOST_COMMON = 10
STEMMER = SnowballStemmer("english")


@dataclass(frozen=True)
class CommonWarmup:
    """A warmup's text, how many rows have it, and their mean score."""

    text: str
    count: int
    score: float


@dataclass(frozen=True)
class Inspection:
    """What one run's warmups say, and what they are worth.

    Attributes:
        folder: of the run.
        metric: the task's first metric.
        source: where the rows come from, in words.
        metrics: each score on the rows: name -> (after the warmup, after the separator alone).
        difference: of the first metric, with - without.
        figures: gain_over_none, gain_over_others (nats a target), overlap, distinct, mean_length.
        classes: share of the rows in each class of `CLASSES`.
        examples: some rows of each class.
        common: the most frequent warmups.
        better, worse: rows whose score the warmup raised or lowered, as answered (with, without), those first that
            changed most.
        num_better, num_worse: how many there are in all.
        num_rows: rows in all.
    """

    folder: str
    metric: str
    source: str
    metrics: dict[str, tuple[float, float]]
    difference: Difference
    figures: dict[str, float]
    classes: dict[PhraseClass, float]
    examples: dict[PhraseClass, list[Row]]
    common: list[CommonWarmup]
    better: list[tuple[Row, Row]]
    worse: list[tuple[Row, Row]]
    num_better: int
    num_worse: int
    num_rows: int


def content_words(text: str) -> set[str]:
    every = set(words(text))
    return every - ENGLISH_STOP_WORDS or every


def class_of(warmup: str, reference: str) -> PhraseClass:
    if not warmup.strip():
        return "empty"
    written, wanted = content_words(warmup), content_words(reference)
    if written & wanted:
        return "direct"
    return "similar" if set(map(STEMMER.stem, written)) & set(map(STEMMER.stem, wanted)) else "neither"


def most_common(rows: Sequence[Row], most: int = MOST_COMMON) -> list[CommonWarmup]:
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row.warmup, []).append(row.score)
    by_count = sorted(scores.items(), key=lambda each: -len(each[1]))[:most]
    return [CommonWarmup(text, len(of), sum(of) / len(of)) for text, of in by_count]


def changed(with_warmup: Sequence[Row], without: Sequence[Row], sign: int) -> list[tuple[Row, Row]]:
    """Rows whose score the warmup raised (sign 1) or lowered (-1), those first that changed most."""
    pairs = [pair for pair in zip(with_warmup, without) if sign * (pair[0].score - pair[1].score) > 1e-9]
    return sorted(pairs, key=lambda pair: -abs(pair[0].score - pair[1].score))
