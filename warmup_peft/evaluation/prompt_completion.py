"""The task `prompt_completion`: rows as `SFTTrainer` trains on them, whose completion is the reference.

A row has `prompt` and `completion`, both texts or both TRL's lists of messages; or it has `messages` (ShareGPT's
`conversations`), whose last assistant turn is the reference. As in TRL a conversation may have `tools` and
`chat_template_kwargs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from warmup_peft.evaluation.tasks import Question, Task, content_of
from warmup_peft.inference.chat import END_THINK, Messages

SHAREGPT = {"from": "role", "value": "content"}  # names of fields, as TRL reads them


def prompt_completion(rows: Iterable[dict]) -> list[Question]:
    """Questions with one option, the reference.

    Raises:
        ValueError: a row is malformed; the message names the first one, counted from 1.
    """
    return [_question(f"Row {number}", row) for number, row in enumerate(rows, 1)]


def _question(name: str, row: Mapping[str, Any]) -> Question:
    for column in ("messages", "conversations"):
        if row.get(column) is not None and row.get("completion") is None:
            return _of_conversation(name, _messages(name, column, row[column]), row)
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
    return _of_conversation(name, [*turns[0], *turns[1]], row)


def _messages(name: str, column: str, value: Any) -> Messages:
    """Messages without their empty fields, which data sets fill in."""
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        messages = [{SHAREGPT.get(key, key): each[key] for key in each if each[key] is not None} for each in value]
        if all(message.get("role") for message in messages):
            return messages
    raise ValueError(f'{name} has no list of messages in `{column}`. Each is {{"role": ..., "content": ...}}.')


def _of_conversation(name: str, messages: Messages, row: Mapping[str, Any]) -> Question:
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
    answer = content_of(messages[-1]).rpartition(END_THINK)[2].strip()
    if not answer:
        raise ValueError(f"{name} has no text in its answer. Give it some, or remove the row.")
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return Question(messages[:-1], (answer,), template={**(row.get("chat_template_kwargs") or {}), **tools})


TASK = Task(read=prompt_completion, metrics=("exact_match",), max_new_tokens=None)
