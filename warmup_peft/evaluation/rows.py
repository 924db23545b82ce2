"""Selects the rows that a command works on, and lets the task read them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset

from warmup_peft.evaluation.data import (
    SPLIT_NAMES,
    MissingSplitError,
    has_split,
    is_one_split,
    is_same_source,
    load_split,
    stream_split,
)
from warmup_peft.evaluation.metrics import check_metrics, metric_names, try_metrics
from warmup_peft.evaluation.tasks import (
    BUILT_IN_TASKS,
    PROMPT_COMPLETION,
    Question,
    Task,
    as_answers,
    find_task,
    is_multiple_choice,
    read_questions,
    share_of_right_warmups,
)
from warmup_peft.settings.arguments import EvaluateArguments, RunOptions
from warmup_peft.settings.shipped import RECIPES, is_shipped

TRIAL_ROWS = 8  # number of rows to try a task's own metrics on, before any long work
TASK_NEEDS_ALL_ROWS = "dataset_streaming does not work with a task, which reads all rows at once. Leave it out."


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


def task_args_of(options: RunOptions | EvaluateArguments) -> dict[str, Any]:
    """The option `task_args` as a dictionary, together with `answer_format`.

    Raises:
        ValueError: `task_args` is not a JSON object.
    """
    task_args = options.task_args or {}
    if isinstance(task_args, str):
        try:
            task_args = json.loads(task_args)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'task_args={task_args} is not valid JSON ({error.msg}). Write it as {{"name": "value"}}.'
            ) from error
    if not isinstance(task_args, dict):
        raise ValueError(f'task_args={task_args} cannot work. Write it as {{"name": "value"}}.')
    own_format = {"answer_format": options.answer_format} if options.answer_format else {}
    return {**own_format, **task_args}


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
        return stream if limit is None else stream.take(limit)
    task = None if options.task in (None, PROMPT_COMPLETION) else find_task(options.task)
    check = check_rows if task is None else partial(read_questions, task, task_args=task_args_of(options))
    rows = load_split(script_args.dataset_name, split, script_args.dataset_config, options.test_split_size, check)
    rows = first_rows(rows, limit)
    if task is None:
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


TRAIN_SPLIT = "train"


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
    name = options.dataset_name or data.get("dataset_name")
    own = name is not None and is_same_source(name, data.get("dataset_name"))
    task_name = options.task or recorded_task(data)
    if name is None:
        raise ValueError(
            "--dataset_name is not given, and the adapter's folder does not say what it was trained on (a script's "
            "rows have no name). Name a file, a folder or an id on the Hub whose rows were not trained on."
        )
    task = task_to_score(task_name, eval_metrics, options.metrics)
    share = data.get("test_split_size", 0.0) if own else 0.0
    if own and is_one_split(name) and share == 0:
        raise ValueError(f"The adapter was trained on all rows of {name}. Name other rows with --dataset_name.")
    wanted = options.dataset_test_split or data.get("dataset_test_split") or "test"
    split = split_to_score(name, wanted)
    if split != wanted:
        print(f"{name} has no split {wanted}; scoring on its validation split.")
    task_args = {**recorded_task_args(task_name, data), **task_args_of(options)}
    check = partial(read_questions, task, task_args=task_args)
    rows = load_split(name, split, options.dataset_config or data.get("dataset_config"), share, check)
    are_trained_on = split == TRAIN_SPLIT and (own or data.get("dataset_name") is None)
    where = name if is_one_split(name) else f"{name}, split {split}"
    where += " (rows of the training)" if are_trained_on else ""
    questions = questions_to_score(task, first_rows(rows, options.max_samples), task_args)
    if not questions:
        raise ValueError(f"The task {task_name} reads no question from the rows of {where}. Give it at least one.")
    return RowsToScore(task, questions, where, are_trained_on)


def recorded_task(data: dict[str, Any]) -> str:
    """The task in a training's record that comes with this package; `prompt_completion` if it had none.

    Raises:
        ValueError: the record names another file.
    """
    task = data.get("task") or PROMPT_COMPLETION
    if isinstance(task, str) and is_shipped(task):
        return str(RECIPES.parent / task)
    if str(task) not in BUILT_IN_TASKS:
        raise ValueError(
            f"The adapter was trained with the task {task}, and a Python file that only the adapter's folder names is "
            "not run. If you trust that file, name it with --task path/to/task.py."
        )
    return task


def recorded_task_args(task: str | Task, data: dict[str, Any]) -> dict[str, Any]:
    """The training's `task_args` if the task is the training's. Its file may have moved to another folder since."""
    if isinstance(task, Task):
        return {}
    recorded, task_args = str(data.get("task") or PROMPT_COMPLETION), data.get("task_args") or {}
    if not isinstance(task_args, dict):
        raise ValueError(f"The training's record has task_args={task_args}, and they should be names with values.")
    parts = Path(recorded).parts
    if task == recorded or (task not in BUILT_IN_TASKS and Path(task).resolve().parts[-len(parts) :] == parts):
        return task_args
    if task_args:
        print(f"{task} is not the training's task ({recorded}), so its task_args ({task_args}) are not used.")
    return {}


def rows_to_compare_on(
    script_args, options: RunOptions, max_samples: int | None, curve_samples: int, eval_metrics: str | None = None
) -> tuple[list[Question], list[Question]]:
    """Questions for learning curves and for choosing arms, and other questions for the verdict.

    The first come from the validation split. If there is none, they are every second row of the test split.

    Raises:
        ValueError: rows are missing or malformed.
    """
    if script_args.dataset_streaming:
        raise ValueError(TASK_NEEDS_ALL_ROWS)
    name, split = script_args.dataset_name, script_args.dataset_test_split
    if name is None:
        raise ValueError("No data is named. Set --dataset_name to a file, a folder or a Hub id.")
    if is_one_split(name) and options.test_split_size == 0:
        raise ValueError(f"{name} has no rows to compare on. Keep some out of training with --test_split_size 0.1.")
    split = split_to_score(name, split)
    task, task_args = task_to_score(options.task, eval_metrics), task_args_of(options)
    check = partial(read_questions, task, task_args=task_args)
    rows = load_split(name, split, script_args.dataset_config, options.test_split_size, check)
    curve = None if is_one_split(name) else validation_rows(name, split, script_args.dataset_config)
    if curve is None:
        curve, rows = rows.select(range(0, len(rows), 2)), rows.select(range(1, len(rows), 2))
    curve, rows = first_rows(curve, curve_samples), first_rows(rows, max_samples)
    return questions_of(task, curve, task_args), questions_to_score(task, rows, task_args)


def split_to_score(name: str, wanted: str) -> str:
    """The requested split, or the validation split if a local folder lacks the requested one."""
    return "validation" if not has_split(name, wanted) and has_split(name, "validation") else wanted


def validation_rows(name: str, test_split: str, config: str | None) -> Dataset | None:
    if test_split in SPLIT_NAMES["validation"] or not has_split(name, "validation"):
        return None
    try:
        return load_split(name, "validation", config)
    except MissingSplitError:
        return None
