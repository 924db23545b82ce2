"""Tasks: how a row of a data set becomes a prompt with its completion, and which metrics score the answers.

A task is a Python file that defines `TASK`, and its path is its name (`--task recipes/translation/task.py`). The tasks
`logiqa` and `prompt_completion` come with the package. This module knows no model and no trainer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from warmup_peft.evaluation.metric import Answers, Metric
from warmup_peft.evaluation.metrics import add_metrics
from warmup_peft.files import near_path
from warmup_peft.settings.arguments import EvaluateArguments, RunOptions
from warmup_peft.settings.words import nearest

if TYPE_CHECKING:  # it loads torch
    from warmup_peft.inference.chat import Prompt

PROMPT_COMPLETION = "prompt_completion"  # where no task is named
BUILT_IN_TASKS = ("logiqa", PROMPT_COMPLETION)  # modules of this folder, written like any task's file
TASK_NEEDS_ALL_ROWS = "dataset_streaming does not work with a task, which reads all rows at once. Leave it out."


@dataclass(frozen=True)
class Question:
    """One row as a model reads it.

    Attributes:
        prompt: what the model reads: a text, or a conversation, which goes through the chat template.
        options: the completions to choose from, each with a leading space after a text. A task whose answers are
            generated freely has one option, the reference.
        answer: index of the right option.
        template: what a conversation gives its chat template: `tools`, and its `chat_template_kwargs`.
    """

    prompt: Prompt
    options: tuple[str, ...]
    answer: int = 0
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def completion(self) -> str:
        return self.options[self.answer]

    @property
    def text(self) -> str:
        """The prompt for tables and reports; a line `role: content` for each turn of a conversation."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(f"{message['role']}: {content_of(message)}" for message in self.prompt)

    @property
    def training_row(self) -> dict[str, Any]:
        """The row that teaches the right option."""
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "completion": self.completion}
        row = {"prompt": self.prompt, "completion": [{"role": "assistant", "content": self.completion}]}
        more = dict(self.template)
        tools = {"tools": more.pop("tools")} if "tools" in more else {}
        return {**row, **tools, **({"chat_template_kwargs": more} if more else {})}


def content_of(message: Mapping[str, Any]) -> str:
    """A message's text; of a list of parts, those with text."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


@dataclass(frozen=True)
class Row:
    """One test row and a trained model's answer to it.

    Attributes:
        prompt, reference: texts of the question, see `Question.text`.
        warmup, answer: texts of the model. The answer to a multiple-choice question is the chosen option.
        score: score of this row alone in the task's first metric (1 or 0 for accuracy, sentence BLEU, ...).
        target_nll: -log P(reference | prompt, warmup, separator) in nats, summed over the reference's tokens.
        target_tokens: number of these tokens.
    """

    prompt: str
    reference: str
    warmup: str
    answer: str
    score: float
    target_nll: float
    target_tokens: int


@dataclass(frozen=True)
class Task:
    """A task, as a `task.py` defines it under the name `TASK`.

    Attributes:
        read: turns the rows of a data set (dictionaries) into questions, in the same order. Further parameters need
            defaults and are set with `--task_args`. It raises ValueError for a malformed row and names its number,
            counted from 1.
        metrics: names from `warmup_peft.evaluation.metrics.METRICS`, or the task's own: a `Metric`, or a function of
            predictions and references (two lists of strings) that returns one score per row, whose mean is the score,
            or a single score for all rows. Arms are compared by the first one. `find_task` replaces each by its name.
        max_new_tokens: maximum length of a generated answer; with None, that of the longest reference among the
            questions and `ROOM_FOR_MORE` tokens more.
        warmup_is_right: where that is known, whether a warmup is right: True or False for a question and the warmup's
            text, without white space at its ends. `compare` reports the share; no training uses it.
    """

    read: Callable[..., list[Question]]
    metrics: tuple[str | Metric | Callable, ...]
    max_new_tokens: int | None = 32
    warmup_is_right: Callable[[Question, str], bool] | None = None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, once `find_task` has replaced each by its name."""
        return tuple(map(str, self.metrics))


def find_task(name: str | Task) -> Task:
    """Load a task by its name or by the path of its file, and add its own metrics to the registry; a task is itself.

    Raises:
        ValueError: there is no such task, the file defines no `Task`, or a metric is not valid.
    """
    if isinstance(name, Task):
        return dataclasses.replace(name, metrics=add_metrics(name.metrics, "The task"))
    module = built_in_module(name) if name in BUILT_IN_TASKS else run_file(name)
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ValueError(f"{name} defines no TASK. Add a line such as: TASK = Task(read=..., metrics=(...)).")
    return dataclasses.replace(task, metrics=add_metrics(task.metrics, name))


def built_in_module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")


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


def check_task_is_there(name: str) -> None:
    """Raise ValueError if this is neither a built-in task nor a Python file. Runs nothing."""
    path = Path(name)
    if name in BUILT_IN_TASKS:
        return
    if not path.is_file():
        meant = near_path(name).strip() or nearest(name, BUILT_IN_TASKS, "")
        raise ValueError(
            f"There is no task '{name}'. {meant}{' ' if meant else ''}Choose {' or '.join(BUILT_IN_TASKS)}, or give "
            "the path of a Python file that defines TASK, as recipes/translation/task.py does."
        )
    if path.suffix != ".py":
        raise ValueError(f"{path} is no Python file. A task's file ends in .py.")


def run_file(name: str) -> ModuleType:
    """Raise ValueError if there is no such file, or if it raises an exception."""
    check_task_is_there(name)
    path = Path(name)
    module_name = f"warmup_peft_task_{path.resolve().parent.name}"
    loader = TaskLoader(module_name, str(path))
    spec = importlib.util.spec_from_loader(module_name, loader)
    assert spec is not None  # as there is a loader
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"The task {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


class TaskLoader(SourceFileLoader):
    """Writes no bytecode beside a task's file, which may lie in an installed package."""

    def set_data(self, path, data, *, _mode=0o666):
        pass


def read_questions(task: Task, rows: Iterable[dict], task_args: Mapping[str, Any]) -> list[Question]:
    """The questions of these rows.

    Raises:
        ValueError: a row is malformed, or the task has no such argument.
    """
    known = list(inspect.signature(task.read).parameters)[1:]
    unknown = [name for name in task_args if name not in known]
    if unknown:
        raise ValueError(
            f"The task takes no argument '{unknown[0]}' (task_args). It takes {', '.join(known) or 'none'}."
        )
    try:
        return task.read(rows, **task_args)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"The task cannot read the rows: {type(error).__name__}: {error}") from error


def share_of_right_warmups(task: Task, questions: Sequence[Question], warmups: Sequence[str]) -> float:
    """Share of the warmups, one a question, that the task's `warmup_is_right` finds right.

    Raises:
        ValueError: the function raised an exception, or returned neither True nor False.
    """
    return float(np.mean([_is_right(task, question, text.strip()) for question, text in zip(questions, warmups)]))


def _is_right(task: Task, question: Question, warmup: str) -> bool:
    if task.warmup_is_right is None:
        raise ValueError("The task has no warmup_is_right, so nobody knows which warmups are right.")
    try:
        found = task.warmup_is_right(question, warmup)
    except Exception as error:
        raise ValueError(
            f"The task's warmup_is_right fails on the warmup {warmup!r}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, bool | np.bool_):
        raise ValueError(f"The task's warmup_is_right returned {found!r}. Return True or False.")
    return bool(found)


def is_multiple_choice(questions: Sequence[Question]) -> bool:
    return any(len(question.options) > 1 for question in questions)


def as_answers(questions: Sequence[Question], texts: Sequence[str], choices: Sequence[int]) -> Answers:
    """The answers to score: generated or chosen texts, and the indices of the chosen options."""
    right = [question.answer for question in questions]
    return Answers(
        texts=list(texts),
        references=[question.completion.strip() for question in questions],
        prompts=[question.text for question in questions],
        choices=np.array(list(zip(choices, right))) if is_multiple_choice(questions) else None,
        num_options=max(len(question.options) for question in questions),
    )


def fingerprint(questions: Iterable[Question]) -> str:
    """A hash of prompts, options and answers, in their order."""
    return hashlib.blake2b(repr(list(questions)).encode(), digest_size=8).hexdigest()


def text_column(row: Mapping[str, Any], column: str, number: int) -> str:
    """The text in a column, without white space at its ends.

    Raises:
        ValueError: there is no text; the message names row and column.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"Row {number} has no text in the column `{column}`. The data has the columns "
            f"{', '.join(map(str, row))}; fix or remove the row, or name another column with task_args."
        )
    return value.strip()
