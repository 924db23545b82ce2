"""The task `logiqa`: multiple-choice questions in the format of LogiQA 2.0."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Literal

from warmup_peft.evaluation.tasks import Question, Task

LETTERS = "ABCD"
AnswerFormat = Literal["text", "letter"]


def format_logiqa_prompt(row: dict) -> str:
    """The prompt that lm-evaluation-harness uses for its task `logiqa2`, up to and including `Answer:`."""
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, row["options"], strict=True))
    return f"Passage: {row['text']}\nQuestion: {row['question']}\n{options}Answer:"


def logiqa(rows: Iterable[dict], answer_format: AnswerFormat = "text") -> list[Question]:
    """Questions from rows with `text`, `question`, four `options` and `answer` (0 to 3).

    Raises:
        ValueError: a row is malformed; the message names the first one, counted from 1.
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
        raise ValueError(f"Row {number} has {found}. LogiQA questions have {len(LETTERS)}; fix or remove the row.")
    if isinstance(answer, bool) or answer not in range(len(LETTERS)):
        raise ValueError(f"Row {number} has answer={answer!r}. It is the index of the right option, 0 to 3.")
    row = {**row, **{key: str(row[key]).strip() for key in ("text", "question")}}
    row["options"] = [str(option).strip() for option in options]
    answers = LETTERS if answer_format == "letter" else row["options"]
    return Question(format_logiqa_prompt(row), tuple(f" {text}" for text in answers), int(answer))


def _list_of(value: object) -> object:
    """In CSV files the options are a JSON list in a string."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value


TASK = Task(read=logiqa, metrics=("accuracy", "macro_f1"))
