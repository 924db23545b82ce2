"""The task `prompt_completion`: rows as `SFTTrainer` trains on them, whose completion is the reference.

A row has `prompt` and `completion`, both texts or both TRL's lists of messages; or it has `messages`, whose last
assistant turn is the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from warmup_peft.evaluation.tasks import Messages, Question, Task, content_of

END_OF_THOUGHT = "</think>"


def prompt_completion(rows: Iterable[dict]) -> list[Question]:
    """Questions with one option, the reference.

    Raises:
        ValueError: a row is malformed; the message names the first one, counted from 1.
    """
    return [_question(f"Row {number}", row) for number, row in enumerate(rows, 1)]


def _question(name: str, row: Mapping[str, Any]) -> Question:
    if row.get("messages") is not None and row.get("completion") is None:
        return _of_conversation(name, _messages(name, "messages", row["messages"]))
    for column in ("prompt", "completion"):
        if not row.get(column):
            raise ValueError(
                f"{name} has no `{column}`. The data has the columns {', '.join(map(str, row))}; the task "
                "prompt_completion reads `prompt` and `completion`, or `messages`. For other columns, name a --task."
            )
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise ValueError(f"{name} has a `completion` of white space alone. Give it some text, or remove the row.")
        return Question(prompt, (completion,))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError(f"{name} has a text and a list of messages. Write `prompt` and `completion` in the same way.")
    turns = _messages(name, "prompt", prompt), _messages(name, "completion", completion)
    if len(turns[1]) > 1:
        raise ValueError(
            f"{name} has {len(turns[1])} messages in its `completion`. A row has one answer: make one row for each."
        )
    return _of_conversation(name, [*turns[0], *turns[1]])


def _messages(name: str, column: str, value: Any) -> Messages:
    """Messages without their empty fields, which data sets fill in."""
    if not isinstance(value, list) or not all(isinstance(each, Mapping) and each.get("role") for each in value):
        raise ValueError(f'{name} has no list of messages in `{column}`. Each is {{"role": ..., "content": ...}}.')
    return [{key: field for key, field in each.items() if field is not None} for each in value]


def _of_conversation(name: str, messages: Messages) -> Question:
    roles = [message["role"] for message in messages]
    if not roles or roles[-1] != "assistant":
        ending = f"ends with a {roles[-1]} turn" if roles else "has no messages"
        if set(roles) == {"system"}:
            ending = "has only a system prompt"
        raise ValueError(f"{name} {ending}, so there is no answer to learn or to compare with. End it with assistant.")
    if roles[-2:] == ["assistant", "assistant"]:
        raise ValueError(f"{name} ends with two assistant turns. A row has one answer: join them, or make two rows.")
    if set(roles[:-1]) <= {"system", "developer"}:
        raise ValueError(f"{name} has no user turn before its answer. Give it one, or remove the row.")
    answer = content_of(messages[-1]).rpartition(END_OF_THOUGHT)[2].strip()
    if not answer:
        raise ValueError(f"{name} has no text in its answer. Give it some, or remove the row.")
    return Question(messages[:-1], (answer,))


TASK = Task(read=prompt_completion, metrics=("exact_match",), max_new_tokens=None)
