"""The registry of metrics, `METRICS`, to which a task's file may add its own; and the scores of a task's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from warmup_peft.evaluation.built_in_metrics import (
    accuracy,
    bertscore,
    bleu,
    chrf_plus_plus,
    comet,
    contains,
    exact_match,
    macro_f1,
    math_verify,
    rouge,
)
from warmup_peft.evaluation.metric import Answers, Metric, RowStatistics
from warmup_peft.files import first_line
from warmup_peft.settings.words import nearest

NEEDS_EXTRA = "Run: pip install 'warmup_peft[compare]'"

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
