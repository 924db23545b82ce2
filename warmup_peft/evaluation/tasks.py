"""Tasks: how a row of a data set becomes a prompt and a completion, and how answers are scored.

A task is a Python file that defines `TASK`, named by its path (`--task recipes/translation/task.py`); `logiqa` comes
with the package. Knows no model and no trainer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from warmup_peft.evaluation.metrics import Answers, Metric, add_metrics

BUILT_IN_TASKS = ("logiqa",)  # modules beside this one, of the same form as a task's file


@dataclass(frozen=True)
class Question:
    """One row, ready for a model.

    Attributes:
        prompt: what the model reads.
        options: the completions to choose from, each with a space before it; of a task whose answers are written
            freely, the reference alone.
        answer: index of the right option.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int = 0

    @property
    def completion(self) -> str:
        return self.options[self.answer]


@dataclass(frozen=True)
class Row:
    """One test row, as one trained model answered it.

    Attributes:
        prompt, reference: texts.
        warmup, answer: what was written; the answer of a multiple-choice question is the chosen option.
        score: the row's own score on the first metric (1 or 0 for accuracy; a sentence's BLEU, ROUGE, ... else).
        target_nll: -log P(reference | prompt, warmup, separator), in nats, summed over its tokens.
        target_tokens: how many they are.
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
    """What a recipe's own `task.py` defines as `TASK`.

    Attributes:
        read: rows of a data set, as dictionaries, -> questions in their order. Its further parameters, all with
            defaults, are set by `--task_args`. It raises ValueError for a row (counted from 1) not of its form.
        metrics: each a name in `warmup_peft.evaluation.metrics.METRICS`, or a metric of the task's own: a function of
            predictions and references (lists of strings) that returns one score a row, whose mean counts, or one for
            all rows; or a `Metric`. The first is what arms are compared by. `find_task` leaves their names.
        max_new_tokens: limit of an answer that is written freely.
    """

    read: Callable[..., list[Question]]
    metrics: tuple[str | Metric | Callable, ...]
    max_new_tokens: int = 32


def find_task(name: str) -> Task:
    """A task by its name, or by the path of a Python file that defines `TASK`; its own metrics join the registry.

    Raises:
        ValueError: neither is there, or the file defines no `Task`, or one whose metrics cannot work.
    """
    module = built_in_module(name) if name in BUILT_IN_TASKS else run_file(name)
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ValueError(f"{name} defines no TASK. Let it say: TASK = Task(read=..., metrics=(...)).")
    return dataclasses.replace(task, metrics=add_metrics(task.metrics, name))


def built_in_module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")


def run_file(name: str) -> ModuleType:
    """Raises ValueError where there is no such file, or it fails."""
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"There is no task '{name}'. Choose {' or '.join(BUILT_IN_TASKS)}, or give the path of a Python file that "
            "defines TASK, as recipes/translation/task.py does."
        )
    spec = importlib.util.spec_from_file_location(f"warmup_peft_task_{path.resolve().parent.name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file. A task's file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"The task {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def read_questions(task: Task, rows: Iterable[dict], task_args: Mapping[str, Any]) -> list[Question]:
    """The task's questions.

    Raises:
        ValueError: a row that is not of the task's form, or an argument that the task does not take.
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


def is_multiple_choice(questions: Sequence[Question]) -> bool:
    return any(len(question.options) > 1 for question in questions)


def as_answers(questions: Sequence[Question], texts: Sequence[str], choices: Sequence[int]) -> Answers:
    """What a metric scores, of the answers' texts and the indices of the options that were chosen."""
    right = [question.answer for question in questions]
    return Answers(
        texts=list(texts),
        references=[question.completion.strip() for question in questions],
        prompts=[question.prompt for question in questions],
        choices=np.array(list(zip(choices, right))) if is_multiple_choice(questions) else None,
        num_options=max(len(question.options) for question in questions),
    )


def fingerprint(questions: Iterable[Question]) -> str:
    """Of prompts, options and answers, in their order."""
    return hashlib.blake2b(repr(list(questions)).encode(), digest_size=8).hexdigest()


def text_column(row: Mapping[str, Any], column: str, number: int) -> str:
    """The text in a column, without white space at its ends.

    Raises:
        ValueError: naming row and column, where there is none.
    """
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"Row {number} has no text in the column `{column}`. The data has the columns "
            f"{', '.join(map(str, row))}; mend or remove the row, or name another column with task_args."
        )
    return value.strip()
