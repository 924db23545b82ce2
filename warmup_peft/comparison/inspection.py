"""What a run's warmups say, and where they change the answer.

The classes are those of "Warmup Generations" (arXiv 2502.12304, section 5). A warmup is *direct* if it contains a word
of the target, *similar* if it only contains a word with the same stem, and *neither* otherwise. Stop words (sklearn's
English list) count only if there are no other words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from nltk.stem.snowball import SnowballStemmer
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from warmup_peft.comparison.results import Difference
from warmup_peft.comparison.significance import compare_with
from warmup_peft.evaluation.answering import Bars
from warmup_peft.evaluation.evaluate import Subject, name_of
from warmup_peft.evaluation.prediction import Scores, as_rows, score_predictions
from warmup_peft.evaluation.predictor import Predictor, empty
from warmup_peft.evaluation.score_texts import is_right_or_wrong, printed
from warmup_peft.evaluation.tasks import Row, Task
from warmup_peft.method.diagnostics import words
from warmup_peft.settings.arguments import EvaluateArguments, InspectArguments, check_counts

PhraseClass = Literal["direct", "similar", "neither", "empty"]
CLASSES: dict[PhraseClass, str] = {
    "direct": "contains a word of the reference",
    "similar": "contains no word of the reference, but one with the same stem",
    "neither": "shares no word and no stem with the reference",
    "empty": "has no text",
}
WITH, WITHOUT = "with its warmup", "without"
MOST_COMMON = 10
STEMMER = SnowballStemmer("english")
SHARED_OPTIONS = ("dataset_config", "dataset_test_split", "task", "task_args", "max_samples")


@dataclass(frozen=True)
class Inspection:
    """What one run's warmups say, and how the run answers with and without them. Prints as tables and sentences.

    Attributes:
        folder: of the run.
        source: where the rows come from, in words.
        metric: the task's first metric.
        scores: each score on the rows: name -> (after the warmup, after the separator alone).
        difference: of the first metric, with - without.
        warmups: gain_over_none, gain_over_others (nats a target), overlap, distinct, mean_length.
        rows: each row as answered with its warmup, and without.
        num_examples: how many warmups of each class are shown.
    """

    folder: str
    source: str
    metric: str
    scores: dict[str, tuple[float, float]]
    difference: Difference
    warmups: dict[str, float]
    rows: list[tuple[Row, Row]]
    num_examples: int = 5

    def report(self, folder: str | Path) -> Path:
        """Write `inspect.md` into a folder, made if need be, and return its path."""
        from warmup_peft.comparison.report.inspection_report import write_inspection

        return write_inspection(self, Path(folder))

    def __str__(self) -> str:
        from warmup_peft.comparison.report.terminal import print_inspection

        return printed(partial(print_inspection, self), 100)

    def classes(self) -> dict[PhraseClass, list[Row]]:
        """The rows of each class of `CLASSES`."""
        found: dict[PhraseClass, list[Row]] = {name: [] for name in CLASSES}
        for row, _ in self.rows:
            found[class_of(row.warmup, row.reference)].append(row)
        return found

    def common(self, most: int = MOST_COMMON) -> list[tuple[str, int, float]]:
        """The most frequent warmups: text, how many rows have it, and their mean score."""
        scores: dict[str, list[float]] = {}
        for row, _ in self.rows:
            scores.setdefault(row.warmup, []).append(row.score)
        by_count = sorted(scores.items(), key=lambda each: -len(each[1]))[:most]
        return [(text, len(of), sum(of) / len(of)) for text, of in by_count]

    def changed(self, sign: int) -> list[tuple[Row, Row]]:
        """Rows whose score the warmup raised (sign 1) or lowered (-1), the largest changes first."""
        pairs = [pair for pair in self.rows if sign * (pair[0].score - pair[1].score) > 1e-9]
        return sorted(pairs, key=lambda pair: -abs(pair[0].score - pair[1].score))


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


def inspect_warmups(
    model: Any, dataset: str | Dataset | Iterable[dict] | None = None, task: str | Task | None = None, **options: Any
) -> Inspection:
    """Answer held-out rows with the model's own warmups and without any, and say what the warmups say. Writes no file.

    Args:
        model: folder of an adapter or of a merged model, or its id on the Hub; or a `WarmupSFTTrainer`, whose model
            answers as it is, where it is.
        dataset: a file, folder or Hub id, of which the test split is answered; or the rows themselves. By default the
            data of the training, if its record names them.
        task: a `Task`, or its name, or the path of its file. By default that of the training, if it is a built-in one;
            without one, `prompt_completion`.
        options: as of `warmup-peft inspect`: `max_samples`, `num_examples`, `batch_size`, `task_args`,
            `dataset_config`, `dataset_test_split`; and how folders are loaded: `device`, `device_map`, `revision`,
            `trust_remote_code`, as in `evaluate`.

    Raises:
        ValueError: bad input, or a model that writes no warmups, before a model is loaded.
        ImportError: a package of warmup_peft[compare] is missing, when this function is imported.
    """
    inspected = InspectArguments(name_of(model), task=task, **options)  # type: ignore[arg-type]  # or a Task
    check_counts(inspected, batch_size=1, max_samples=1, num_examples=0)
    subject = Subject.of(model, inspected)
    if subject.config.max_warmup_length == 0:
        raise ValueError(
            f"{inspected.run} writes no warmups (max_warmup_length is 0), so there is nothing to inspect."
        )
    asked = EvaluateArguments(inspected.run, **{name: getattr(inspected, name) for name in SHARED_OPTIONS})
    task, questions, source, _ = subject.questions(dataset, asked)
    first = task.metric_names[0]
    loaded = subject.load()
    answerer = (loaded.model, loaded.tokenizer, loaded.warmup_config, inspected.batch_size)
    scores: list[Scores] = []
    rows: list[list[Row]] = []
    warmups: dict[str, float] = {}
    for arm, instead in ((WITH, None), (WITHOUT, empty)):
        predictor = Predictor(*answerer, instead, Bars(arm))
        predictions = predictor.answer(questions, task.max_new_tokens)
        warmups |= predictor.warmup_metrics(questions, predictions)  # none without warmups
        scores.append(score_predictions(task.metric_names, questions, predictions))
        rows.append(as_rows(questions, predictions, scores[-1].statistics[first].row_scores))
    with_warmup, without = scores
    pair = ([with_warmup.statistics[first]], [without.statistics[first]])
    return Inspection(
        folder=inspected.run,
        source=source + (f", the first {len(questions)}" if inspected.max_samples else ""),
        metric=first,
        scores={name: (score, without.totals[name]) for name, score in with_warmup.totals.items()},
        difference=compare_with(WITHOUT, [pair], is_right_or_wrong(first))[0],
        warmups=warmups,
        rows=list(zip(*rows)),
        num_examples=inspected.num_examples,
    )
