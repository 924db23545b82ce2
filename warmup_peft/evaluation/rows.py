"""Selects the rows that a command works on, and lets the task read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset

from warmup_peft.evaluation.data import load_split, stream_split
from warmup_peft.evaluation.held_out import (
    TRAIN_SPLIT,
    HeldOut,
    check_rows_to_compare_on,
    recorded_task_args,
)
from warmup_peft.evaluation.metrics import check_metrics, metric_names, try_metrics
from warmup_peft.evaluation.splits import SPLIT_NAMES, MissingSplitError, check_columns, has_split, is_one_split
from warmup_peft.evaluation.tasks import (
    PROMPT_COMPLETION,
    TASK_NEEDS_ALL_ROWS,
    Question,
    Task,
    as_answers,
    find_task,
    is_multiple_choice,
    read_questions,
    share_of_right_warmups,
    task_args_of,
)
from warmup_peft.settings.arguments import EvaluateArguments, RunOptions

TRIAL_ROWS = 8  # number of rows to try a task's own metrics on, before any long work


def data_record(script_args, options: RunOptions, train_dataset: Dataset | IterableDataset) -> dict[str, Any]:
    """A record of the training data and of how it was read, for `evaluate` and the model card."""
    return {
        "dataset_name": script_args.dataset_name,
        "dataset_config": script_args.dataset_config,
        "dataset_test_split": script_args.dataset_test_split,
        "test_split_size": options.test_split_size,
        "task": options.task,
        "task_args": task_args_of(options),
        "train_rows": len(train_dataset) if isinstance(train_dataset, Dataset) else None,
        "license": train_dataset.info.license or None,
    }


def questions_of(task: Task, rows: Iterable[dict], task_args: dict[str, Any]) -> list[Question]:
    """The questions that the task reads from these rows.

    Raises:
        ValueError: a row is malformed, or a metric is unknown or does not fit the task.
    """
    questions = read_questions(task, rows, task_args)
    if questions:
        check_metrics(task.metrics, is_multiple_choice(questions))
    return questions


def questions_to_score(task: Task, rows: Iterable[dict], task_args: dict[str, Any]) -> list[Question]:
    """As `questions_of`, but first try the task's own metrics, and its check of warmups, on a few right answers."""
    questions = questions_of(task, rows, task_args)
    if first := questions[:TRIAL_ROWS]:
        texts, choices = zip(*((question.completion.strip(), question.answer) for question in first))
        try_metrics(task.metrics, as_answers(first, texts, choices))
        if task.warmup_is_right is not None:
            for tried in (texts, [""] * len(first)):  # a model may write nothing
                share_of_right_warmups(task, first, tried)
    return questions


def training_rows(script_args, options: RunOptions, split: str, limit: int | None) -> Dataset | IterableDataset:
    """Rows with `prompt` and `completion`, or in another format that `SFTTrainer` accepts.

    Raises:
        ValueError: the rows cannot be loaded, or cannot be streamed although `dataset_streaming` is set.
    """
    if script_args.dataset_streaming:
        if options.task not in (None, PROMPT_COMPLETION):
            raise ValueError(TASK_NEEDS_ALL_ROWS)
        stream = stream_split(script_args.dataset_name, split, script_args.dataset_config)
        check_columns(script_args.dataset_name, next(iter(stream), {}))
        return stream if limit is None else stream.take(limit)
    task = None if options.task in (None, PROMPT_COMPLETION) else find_task(options.task)
    check = check_rows if task is None else partial(read_questions, task, task_args=task_args_of(options))
    rows = load_split(script_args.dataset_name, split, script_args.dataset_config, options.test_split_size, check)
    rows = first_rows(rows, limit)
    if task is None:
        check_columns(script_args.dataset_name, rows.column_names)
        return rows
    questions = questions_of(task, rows, task_args_of(options))
    return Dataset.from_list([question.training_row for question in questions])


def check_rows(rows: Dataset) -> None:
    """Raise ValueError for the first row, counted from 1, whose `prompt` or `completion` has nothing in it."""
    for column in {"prompt", "completion"} & set(rows.column_names):
        empty = next((number for number, value in enumerate(rows[column], 1) if not value), None)
        if empty is not None:
            raise ValueError(f"Row {empty} has no `{column}`. Fill it in or remove the row.")


def first_rows(rows: Dataset, limit: int | None) -> Dataset:
    return rows.select(range(min(limit or len(rows), len(rows))))


def task_to_score(name: str | Task | None, eval_metrics: str | None = None, metrics: str | None = None) -> Task:
    """The task of this name, or `prompt_completion` where none is named.

    Args:
        eval_metrics: the training's; `prompt_completion` is scored by them.
        metrics: named for this evaluation; any task is scored by them.

    Raises:
        ValueError: there is no such task.
    """
    task = find_task(name or PROMPT_COMPLETION)
    named = metrics if metrics is not None or name not in (None, PROMPT_COMPLETION) else eval_metrics
    return task if named is None else dataclasses.replace(task, metrics=metric_names(named))


class RowsToScore(NamedTuple):
    """A task and what it reads.

    Attributes:
        source: where the rows come from, in words.
        are_trained_on: whether the model was trained on them, or may have been.
    """

    task: Task
    questions: list[Question]
    source: str
    are_trained_on: bool = False


def held_out_questions(
    options: EvaluateArguments, data: dict[str, Any], eval_metrics: str | None = None
) -> RowsToScore:
    """The task, its questions, and where they come from.

    Args:
        data: the training's record in the adapter's folder. Anybody may have written it, so a task file that it names
            is not run, unless it comes with this package.
        eval_metrics: the training's, see `task_to_score`.

    Raises:
        ValueError: the data or the task is missing, or only the adapter's folder names the task's file.
    """
    chosen = HeldOut.of(options, data)
    name, split = chosen.name, chosen.split
    task = task_to_score(chosen.task, eval_metrics, options.metrics)
    if split != chosen.wanted:
        print(f"{name} has no split {chosen.wanted}; scoring on its validation split.")
    task_args = {**recorded_task_args(chosen.task, data), **task_args_of(options)}
    check = partial(read_questions, task, task_args=task_args)
    rows = load_split(name, split, options.dataset_config or data.get("dataset_config"), chosen.share, check)
    are_trained_on = split == TRAIN_SPLIT and (chosen.is_own or data.get("dataset_name") is None)
    where = name if is_one_split(name) else f"{name}, split {split}"
    where += " (rows of the training)" if are_trained_on else ""
    questions = questions_to_score(task, first_rows(rows, options.max_samples), task_args)
    if not questions:
        raise ValueError(f"The task {chosen.task} reads no question from the rows of {where}. Give it at least one.")
    return RowsToScore(task, questions, where, are_trained_on)


def rows_to_compare_on(
    script_args, options: RunOptions, max_samples: int | None, curve_samples: int, eval_metrics: str | None = None
) -> tuple[list[Question], list[Question]]:
    """Questions for learning curves and for choosing arms, and other questions for the verdict.

    The first come from the validation split. If there is none, they are every second row of the test split.

    Raises:
        ValueError: rows are missing or malformed.
    """
    name, split = check_rows_to_compare_on(script_args, options)
    task, task_args = task_to_score(options.task, eval_metrics), task_args_of(options)
    check = partial(read_questions, task, task_args=task_args)
    rows = load_split(name, split, script_args.dataset_config, options.test_split_size, check)
    curve = None if is_one_split(name) else validation_rows(name, split, script_args.dataset_config)
    if curve is None:
        curve, rows = rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2))
    curve, rows = first_rows(curve, curve_samples), first_rows(rows, max_samples)
    return questions_of(task, curve, task_args), questions_to_score(task, rows, task_args)


def validation_rows(name: str, test_split: str, config: str | None) -> Dataset | None:
    if test_split in SPLIT_NAMES["validation"] or not has_split(name, "validation"):
        return None
    try:
        return load_split(name, "validation", config)
    except MissingSplitError:
        return None
