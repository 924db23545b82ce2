"""GSM8K with answers alone: the question as a conversation, and of the answer only its last line, `#### 18`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from warmup_peft import Question, Task
from warmup_peft.evaluation.tasks import text_column

NUMBER = re.compile(r"####\s*(-?[\d.,]*\d)")


def read(rows: Iterable[dict]) -> list[Question]:
    return [question_of(row, number) for number, row in enumerate(rows, start=1)]


def question_of(row: dict, number: int) -> Question:
    found = NUMBER.search(text_column(row, "answer", number))
    if found is None:
        raise ValueError(f"Row {number}: the column `answer` has no number behind ####. Fix or remove the row.")
    messages = [{"role": "user", "content": text_column(row, "question", number)}]
    return Question(prompt=messages, options=(f"#### {found.group(1)}",))


def same_number(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 where the number behind #### is the reference's, whatever commas it has."""
    return [
        float(number_in(text) is not None and number_in(text) == number_in(ref))
        for text, ref in zip(predictions, references)
    ]


def number_in(text: str) -> float | None:
    found = NUMBER.search(text)
    return None if found is None else float(found.group(1).replace(",", ""))


TASK = Task(read=read, metrics=(same_number,), max_new_tokens=16)
