"""The metrics that score answers. Each is one `Metric` in the registry `METRICS`; a task's file may add its own.

Every score is between 0 and 1, and higher is better. Standard libraries compute BLEU, chrF++, ROUGE and the like.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from warmup_peft.files import first_line
from warmup_peft.settings.words import nearest

Array = NDArray[np.float64]
Kind = Literal["right_or_wrong", "graded", "corpus"]
NEEDS_EXTRA = "Run: pip install 'warmup_peft[compare]'"
NOTHING = "–"  # shown where a score is missing


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


# ---- Multiple choice ----


def chosen_and_right(answers: Answers) -> NDArray[np.int64]:
    """(n, 2) indices of options. Raises ValueError for answers that are generated freely."""
    if answers.choices is None:
        raise ValueError("The answers are not options, which this metric scores. Choose another metric.")
    return answers.choices


def accuracy(answers: Answers) -> Array:
    choices = chosen_and_right(answers)
    return choices[:, 0] == choices[:, 1]


def macro_f1(answers: Answers) -> RowStatistics:
    """Unweighted mean over options of F1 = 2 TP / (predicted + true); 0 for an option that never occurs."""
    options = np.arange(answers.num_options)
    choices = chosen_and_right(answers)
    predicted, true = (choices[:, [i]] == options for i in (0, 1))
    counts = np.concatenate([predicted & true, predicted.astype(int) + true], axis=1).astype(np.float64)

    def score(sums: Array) -> Array:
        hits, either = np.split(sums, 2, axis=-1)
        return np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0).mean(-1)

    return score_of_sums(counts, score, accuracy(answers).astype(np.float64))


# ---- Written answers ----


def of_sacrebleu(metric, sentence_metric, answers: Answers) -> RowStatistics:
    texts, references = list(answers.texts), [list(answers.references)]
    values = np.asarray(metric._extract_corpus_statistics(texts, references), dtype=np.float64)

    def score(sums: Array) -> Array:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_score_from_stats(row.tolist()).score / 100 for row in flat]
        return np.asarray(scores).reshape(sums.shape[:-1])

    rows = [sentence_metric.sentence_score(t, [r]).score / 100 for t, r in zip(texts, references[0])]
    return score_of_sums(values, score, np.asarray(rows), str(metric.get_signature()))


def bleu(answers: Answers) -> RowStatistics:
    """Corpus BLEU from sacrebleu; the score of a single row uses effective order."""
    from sacrebleu.metrics import BLEU

    return of_sacrebleu(BLEU(), BLEU(effective_order=True), answers)


def chrf_plus_plus(answers: Answers) -> RowStatistics:
    """chrF with word order 2 from sacrebleu."""
    from sacrebleu.metrics import CHRF

    return of_sacrebleu(CHRF(word_order=2), CHRF(word_order=2), answers)


def rouge(name: str) -> Callable[[Answers], RowStatistics]:
    def rows(answers: Answers) -> RowStatistics:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([name], use_stemmer=True)
        pairs = zip(answers.references, answers.texts)
        return mean_of_rows([scorer.score(*pair)[name].fmeasure for pair in pairs], "rouge-score F1, stemmed")

    return rows


def bertscore(answers: Answers) -> RowStatistics:
    """F1 from bert-score with its default English model."""
    from bert_score import BERTScorer

    scorer = BERTScorer(lang="en")
    return mean_of_rows(scorer.score(list(answers.texts), list(answers.references))[2].tolist(), scorer.hash)


COMET_MODEL = "Unbabel/wmt22-comet-da"


def comet(answers: Answers) -> RowStatistics:
    """COMET. The source text is the last line but one of the prompt."""
    from comet import download_model, load_from_checkpoint

    model = load_from_checkpoint(download_model(COMET_MODEL))
    rows = [
        {"src": source_text(prompt), "mt": text, "ref": reference}
        for prompt, text, reference in zip(answers.prompts, answers.texts, answers.references)
    ]
    return mean_of_rows(model.predict(rows, batch_size=16, progress_bar=False).scores, COMET_MODEL)


def source_text(prompt: str) -> str:
    """`German: Ein Hund.` newline `English:` -> `Ein Hund.`"""
    line = prompt.strip().rsplit("\n", 1)[0]
    return line.split(":", 1)[-1].strip()


ARTICLES = ("a", "an", "the")
QUOTES = "\"'`*“”‘’«»„"
ENDS = QUOTES + ".,;:!?。，！？、"


def normalised(text: str) -> str:
    """A text as `exact_match` and `contains` compare it.

    Lower case; white space is one space; quotation marks and asterisks go at both ends, `.,;:!?` at the end, and an
    article (a, an, the) at the beginning, if something is left. Unlike SQuAD's normalisation it keeps punctuation and
    articles inside a text, so that 3.5 is not 35, -3 is not 3, and the option A is not nothing.
    """
    text = " ".join(text.casefold().split())
    text = text.lstrip(QUOTES).rstrip(ENDS).strip() or text
    first, _, rest = text.partition(" ")
    return rest if first in ARTICLES and rest else text


def exact_match(answers: Answers) -> Array:
    """1 if answer and reference are the same text once both are `normalised`."""
    return np.array([normalised(text) == normalised(right) for text, right in zip(answers.texts, answers.references)])


def contains(answers: Answers) -> Array:
    """1 if the `normalised` reference stands in the `normalised` answer, not only as a part of a word or number."""
    return np.array([is_within(right, text) for text, right in zip(answers.texts, answers.references)])


def is_within(reference: str, text: str) -> bool:
    """`Paris` is within `It is Paris.`, and `12` is neither within `112` nor within `12.5`."""
    wanted = re.escape(normalised(reference))
    return re.search(rf"(?<![a-z0-9])(?<!\d[.,]){wanted}(?![a-z0-9])(?![.,]\d)", normalised(text)) is not None


def math_verify(answers: Answers) -> Array:
    """1 if the package math-verify finds answer and reference mathematically equal.

    As in TRL's `accuracy_reward`, the result in an answer is LaTeX that is marked as such, above all \\boxed{}. Where
    there is none, the package's defaults find it, so that a bare 42 counts too. A reference in which the package finds
    nothing (words, or LaTeX outside of $...$) is compared as by `exact_match`; TRL's reward leaves such a row out.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    is_main = threading.current_thread() is threading.main_thread()  # elsewhere there is no alarm to stop it with
    parse = partial(parse, parsing_timeout=10 if is_main else None)
    marked = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]

    def is_right(text: str, reference: str) -> bool:
        wanted = parse(reference)
        if not wanted:
            return normalised(text) == normalised(reference)
        found = parse(text, extraction_config=marked, extraction_mode="first_match") or parse(text)
        return verify(wanted, found, timeout_seconds=5 if is_main else None)

    with only_errors_of("math_verify"):
        return np.array([is_right(*pair) for pair in zip(answers.texts, answers.references)])


@contextmanager
def only_errors_of(package: str) -> Iterator[None]:
    """Without the warnings of a package's loggers."""
    logger = logging.getLogger(package)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# ---- The registry ----

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", 1, "right_or_wrong", accuracy, needs_options=True),
        Metric("macro_f1", "Macro F1", 1, "corpus", macro_f1, needs_options=True),
        Metric("exact_match", "exact match", 1, "right_or_wrong", exact_match),
        Metric("contains", "contains", 1, "right_or_wrong", contains),
        Metric("math_verify", "math-verify", 1, "right_or_wrong", math_verify),
        Metric("bleu", "BLEU", 100, "corpus", bleu),
        Metric("chrf++", "chrF++", 100, "corpus", chrf_plus_plus),
        Metric("rouge1", "ROUGE-1", 100, "graded", rouge("rouge1")),
        Metric("rouge2", "ROUGE-2", 100, "graded", rouge("rouge2")),
        Metric("rougeL", "ROUGE-L", 100, "graded", rouge("rougeL")),
        Metric("bertscore", "BERTScore", 1, "graded", bertscore, package="bert-score"),
        Metric("comet", "COMET", 1, "graded", comet, package="unbabel-comet"),
    )
}
BUILT_IN = tuple(METRICS)
OTHER_SCORES = {"perplexity": "perplexity", "generations_that_are_options": "writes an option", "n": "n"}


def add_metrics(metrics: Sequence[str | Metric | Callable], task: str) -> tuple[str, ...]:
    """Add a task's own metrics to the registry, and return the names of all its metrics.

    Raises:
        ValueError: a metric has no name, or a name that is already in use.
    """
    if not isinstance(metrics, tuple | list):
        raise ValueError(f"The task {task} has metrics={metrics!r}. Write a tuple, for example ('rougeL',).")
    own = [as_metric(metric, task) for metric in metrics if not isinstance(metric, str)]
    for metric in own:
        if metric.name in (*BUILT_IN, *OTHER_SCORES):
            raise ValueError(
                f"The task {task} defines a metric called {metric.name}, but this name is already in use. List the "
                f"name '{metric.name}' to use that one, or rename yours."
            )
    METRICS.update((metric.name, metric) for metric in own)
    names = iter(metric.name for metric in own)
    every = tuple(metric if isinstance(metric, str) else next(names) for metric in metrics)
    if len(set(every)) < len(every):
        raise ValueError(f"The task {task} lists a metric twice: {', '.join(every)}.")
    return every


def as_metric(metric: Metric | Callable[[list[str], list[str]], Any], task: str) -> Metric:
    """A `Metric` for a function of predictions and references, named and titled after the function."""
    if isinstance(metric, Metric):
        return dataclasses.replace(metric, task=task)
    name = getattr(metric, "__name__", "")
    if not callable(metric) or not name.isidentifier():
        raise ValueError(
            f"The task {task} lists the metric {metric!r}. Use a name ({', '.join(BUILT_IN)}), a named "
            "function of predictions and references, or a Metric."
        )

    def compute(answers: Answers) -> Any:
        return metric(list(answers.texts), list(answers.references))

    return Metric(name, name.replace("_", " "), 1, "corpus", compute, task=task)


def check_are_known(names: Sequence[str]) -> None:
    """Raise ValueError if a metric is unknown."""
    for name in names:
        if name not in METRICS:
            meant = nearest(name, METRICS, f"Choose from {', '.join(METRICS)}.")
            raise ValueError(f"There is no metric '{name}'. {meant}")


def check_metrics(names: Sequence[str], is_multiple_choice: bool) -> None:
    """Raise ValueError if a metric is unknown or does not fit the task."""
    check_are_known(names)
    for name in names:
        if METRICS[name].needs_options and not is_multiple_choice:
            raise ValueError(f"The metric {name} needs options to choose from, and the task's questions have none.")
    if not names or not METRICS[names[0]].ranks_arms:
        able = ", ".join(name for name in BUILT_IN if METRICS[name].ranks_arms)
        raise ValueError(
            "The first metric is what models are judged by, so it must score each row and need no package that may be "
            f"missing. Put one of these first: {able}, or a metric of the task's own."
        )


def metric_names(text: str) -> tuple[str, ...]:
    """The metrics that an option names, separated by commas: `exact_match, rougeL`.

    Raises:
        ValueError: none is named, or one twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The metrics '{text}' name none, or one twice. Write them as in exact_match,rougeL.")
    return names


def try_metrics(names: Sequence[str], answers: Answers) -> None:
    """Try the metrics on these answers, and the task's own ones also on empty answers in their place.

    A single score of NaN passes: a correlation has none where all answers are right.

    Raises:
        ImportError: a package of the extra `compare` is missing.
        ValueError: one of the task's own metrics failed.
    """
    score_rows([name for name in names if not (METRICS[name].task or METRICS[name].package)], answers)
    trials = [answers]
    if answers.choices is None:  # a model may write nothing
        trials.append(dataclasses.replace(answers, texts=[""] * len(answers.texts)))
    for metric in map(METRICS.__getitem__, names):
        if metric.task and not metric.package:
            for tried in trials:
                found = metric.numbers(tried)
                if not isinstance(found, RowStatistics) and found.ndim:
                    metric.score(tried)


def score_rows(names: Sequence[str], answers: Answers) -> tuple[dict[str, RowStatistics], dict[str, str]]:
    """The result of each metric, and the reason for each one that was left out.

    Raises:
        ImportError: a package of the extra `compare` is missing.
        ValueError: a task's own metric failed.
    """
    scored, left_out = {}, {}
    for metric in map(METRICS.__getitem__, names):
        try:
            scored[metric.name] = metric.score(answers)
        except Exception as error:
            if not metric.package:
                if isinstance(error, ImportError):
                    raise ImportError(f"The metric {metric.name} needs {error.name}. {NEEDS_EXTRA}") from error
                raise
            left_out[metric.name] = why_left_out(metric, error)
    return scored, left_out


def why_left_out(metric: Metric, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"the package {metric.package} is not installed"
    return f"its weights could not be loaded ({first_line(error)})"


def totals(scored: Mapping[str, RowStatistics]) -> dict[str, float]:
    return {name: rows.total() for name, rows in scored.items()}


# ---- Names and numbers as text ----


def metric_name(name: str) -> str:
    """The title of a metric or of another score in the tables."""
    return METRICS[name].title if name in METRICS else OTHER_SCORES.get(name, name)


def score_text(name: str, value: float) -> str:
    """The score in its usual units: 0.981 for accuracy, 34.2 for BLEU, 4.56 for perplexity."""
    if name == "perplexity":
        return number_text(value, ",.2f" if value < 1000 else ",.0f")
    scale = scale_of(name)
    return number_text(scale * value, ".1f" if scale == 100 else ".3f")


def scale_of(name: str) -> int:
    return METRICS[name].scale if name in METRICS else 1


def is_right_or_wrong(name: str) -> bool:
    """Whether a row scores either 1 or 0, so that McNemar's test applies."""
    return METRICS[name].kind == "right_or_wrong"


def printed(show: Callable[[Console], None], width: int) -> str:
    """What is shown on a console of so many columns, as a text. A notebook's console would display and colour it."""
    out = io.StringIO()
    show(Console(file=out, width=width, force_jupyter=False, force_terminal=False))
    return out.getvalue().rstrip()


def number_text(value: float, form: str) -> str:
    """The number with a typographic minus sign and no negative zero, or a word if it is not finite."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    text = format(value, form)
    if float(text.replace(",", "")) == 0:
        text = format(0.0, form)
    return text.replace("-", "−")


def points_text(value: float) -> str:
    """A difference of two scores in hundredths, with its sign."""
    return number_text(100 * value, "+.1f")
