"""Summarization: a document and its summary."""

from __future__ import annotations

from collections.abc import Iterable

from warmup_peft import Question, Task
from warmup_peft.evaluation.tasks import text_column


def read(rows: Iterable[dict], document: str = "document", summary: str = "summary") -> list[Question]:
    """The columns `document` and `summary`, which may be called otherwise.

    Raises:
        ValueError: naming the first row (counted from 1) without the text.
    """
    questions = []
    for number, row in enumerate(rows, 1):
        texts = [text_column(row, column, number) for column in (document, summary)]
        questions.append(Question(f"Document: {texts[0]}\nSummary:", (f" {texts[1]}",)))
    return questions


TASK = Task(read=read, metrics=("rougeL", "rouge1", "rouge2", "bertscore"), max_new_tokens=64)
