"""Tasks: how a row of a data set becomes a prompt and a completion, and how answers are scored.

`logiqa` comes with the package; any other task is a Python file of its own that defines `TASK`, named by its path
(`--task recipes/translation/task.py`). Knows no model and no trainer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LETTERS = "ABCD"
AnswerFormat = Literal["text", "letter"]


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
        metrics: names of scores in `warmup_peft.evaluation.metrics`; the first is what arms are compared by.
        max_new_tokens: limit of an answer that is written freely.
    """

    read: Callable[..., list[Question]]
    metrics: tuple[str, ...]
    max_new_tokens: int = 32


def find_task(name: str) -> Task:
    """A task by its name, or by the path of a Python file that defines `TASK`.

    Raises:
        ValueError: neither is there, or the file defines no `Task`.
    """
    if name in TASKS:
        return TASKS[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"There is no task '{name}'. Choose {' or '.join(TASKS)}, or give the path of a Python file that defines "
            "TASK, as recipes/translation/task.py does."
        )
    spec = importlib.util.spec_from_file_location(f"warmup_peft_task_{path.resolve().parent.name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file. A task's file ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"The task {path} cannot be loaded: {type(error).__name__}: {error}") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ValueError(f"{path} defines no TASK. Let it say: TASK = Task(read=..., metrics=(...)).")
    return task


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


# ---- LogiQA ----


def format_logiqa_prompt(row: dict) -> str:
    """The prompt that lm-evaluation-harness uses for its task `logiqa2`, up to and including `Answer:`."""
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, row["options"], strict=True))
    return f"Passage: {row['text']}\nQuestion: {row['question']}\n{options}Answer:"


def logiqa(rows: Iterable[dict], answer_format: AnswerFormat = "text") -> list[Question]:
    """LogiQA 2.0's multiple choice: `text`, `question`, four `options`, `answer` (0 to 3).

    Raises:
        ValueError: naming the first row (counted from 1) that is not of this form.
    """
    if answer_format not in ("text", "letter"):
        raise ValueError(f"answer_format={answer_format!r} cannot work. Choose text or letter.")
    return [_logiqa_question(number, row, answer_format) for number, row in enumerate(rows, 1)]


def _logiqa_question(number: int, row: dict, answer_format: AnswerFormat) -> Question:
    for column in ("text", "question", "options", "answer"):
        if row.get(column) is None:
            raise ValueError(
                f"Row {number} has no `{column}`. LogiQA rows have the columns text, question, options (4) and answer "
                "(0 to 3)."
            )
    options, answer = _list_of(row["options"]), row["answer"]
    if not isinstance(options, list) or len(options) != len(LETTERS):
        found = f"{len(options)} options" if isinstance(options, list) else "no list of options"
        raise ValueError(f"Row {number} has {found}. LogiQA questions have {len(LETTERS)}; mend or remove the row.")
    if isinstance(answer, bool) or answer not in range(len(LETTERS)):
        raise ValueError(f"Row {number} has answer={answer!r}. It is the index of the right option, 0 to 3.")
    row = {**row, **{key: str(row[key]).strip() for key in ("text", "question")}}
    row["options"] = [str(option).strip() for option in options]
    answers = LETTERS if answer_format == "letter" else row["options"]
    return Question(format_logiqa_prompt(row), tuple(f" {text}" for text in answers), int(answer))


def _list_of(value: object) -> object:
    """CSV files hold the options as a JSON list in a string."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value


TASKS = {"logiqa": Task(read=logiqa, metrics=("accuracy", "macro_f1"))}
