"""Rows that are conversations: what stands around their warmups, and their token ids in the thinking format."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.data_utils import get_dataset_column_names, maybe_convert_to_chatml

from warmup_peft.inference.chat import (
    Messages,
    ThinkingTexts,
    WarmupFormat,
    check_template,
    find_format,
    is_conversation,
    opened,
    prompt_is_thought_over,
    thinking_row,
    thinking_texts,
    with_text_content,
)
from warmup_peft.method.branches import IGNORE_INDEX
from warmup_peft.training.config import WarmupSFTConfig

logger = logging.getLogger(__name__)


def format_of_rows(arguments: dict[str, Any], args: WarmupSFTConfig) -> WarmupFormat:
    """The format of a training's warmups. Resolves the options in `args` that depend on it.

    Args:
        arguments: what `SFTTrainer` takes, by name, with a tokenizer.

    Raises:
        ValueError: the format that is asked for cannot be had.
    """
    tokenizer = with_chat_template(arguments["processing_class"], args.chat_template_path)
    dataset = arguments.get("train_dataset")
    sample = {} if dataset is None else next(iter(dataset), {})
    is_chat = (
        any(is_conversation(sample.get(column)) for column in ("prompt", "messages")) or "conversations" in sample
    )
    if is_chat:
        check_template(tokenizer)
    found = find_format(
        tokenizer,
        args.warmup_format,
        is_chat=is_chat,
        opening=args.warmup_opening,
        separator=args.warmup_separator,
        template=template_of(sample),
    )
    if found.thinking is not None and not is_chat:
        raise ValueError(
            "warmup_format=thinking needs conversations, but the rows of the train dataset are texts. Give `prompt` "
            "and `completion` as lists of messages, or set warmup_format to plain."
        )
    if found.thinking is not None and args.assistant_only_loss:
        raise ValueError(
            "assistant_only_loss cannot work in the thinking format, whose target is the last message of the "
            "assistant. Leave it out, or set warmup_format to plain."
        )
    if args.warmup_from_data and (found.thinking is None or not isinstance(dataset, Dataset)):
        raise ValueError(
            "warmup_from_data takes the thoughts of conversations in the thinking format, from a dataset that is not "
            "a stream. Leave it out."
        )
    for name, rows in datasets_of(arguments).items():
        if found.thinking is not None:
            check_thinking_is_on(name, rows, tokenizer, found.thinking)
        elif is_chat and args.warmup_format == "auto" and found.chat_template_kwargs:
            check_thinking_is_off(name, rows, tokenizer)
        elif args.learn_separator:
            check_separator_is_new(name, rows, found.separator)
    args.warmup_format = "plain" if found.thinking is None else "thinking"
    args.warmup_opening, args.warmup_separator = found.opening, found.separator
    if args.learn_separator is None:
        args.learn_separator = found.thinking is not None
    return found


def datasets_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """A trainer's data sets by their names, as far as they are given."""
    evaluated = arguments.get("eval_dataset")
    evaluated = evaluated if isinstance(evaluated, dict) else {"eval": evaluated}
    every = {"train": arguments.get("train_dataset"), **evaluated}
    return {name: dataset for name, dataset in every.items() if dataset is not None}


def with_chat_template(tokenizer: PreTrainedTokenizerBase, path: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer as `SFTTrainer` will have it once it has applied `chat_template_path`."""
    if path is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    if Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        return tokenizer
    source = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = source.get_chat_template()
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in source.added_tokens_decoder.values() if token.content not in known])
    tokenizer.eos_token = source.eos_token
    return tokenizer


def template_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a row gives its chat template: TRL's columns `tools` and `chat_template_kwargs`."""
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {**without_none(row.get("chat_template_kwargs") or {}), **tools}


# ---- Checks ----


def check_conversations(name: str, dataset: Any) -> None:
    """Every conversation must be a question with one answer.

    Raises:
        ValueError: naming the first row that is not, and how to fix it.
    """
    sample = next(iter(dataset), {})
    columns = [column for column in ("messages", "prompt") if is_conversation(sample.get(column))]
    if not isinstance(dataset, Dataset) or not columns:
        return
    only_prompts = columns == ["prompt"]
    answers = dataset["completion"] if only_prompts else [None] * len(dataset)
    for row, (messages, answer) in enumerate(zip(dataset[columns[0]], answers), 1):
        reason = why_unusable(
            messages if answer is None else [*messages, *answer], 1 if answer is None else len(answer)
        )
        if reason:
            raise ValueError(f"Row {row} of the {name} dataset {reason}")


def why_unusable(messages: Messages, num_answers: int) -> str | None:
    """In words, why this conversation, whose last messages are the answer, is no question with one answer."""
    if num_answers == 0 or not messages or messages[-1].get("role") != "assistant":
        last = messages[-1].get("role") if messages else "nothing"
        return f"ends with a message of '{last}', so it has no answer to train on. Let an assistant's message end it."
    if num_answers > 1:
        return f"has {num_answers} messages in its answer. Give the last one as completion, the others in the prompt."
    odd = [message["content"] for message in messages if not isinstance(message.get("content") or "", str | list)]
    if odd:
        return f"has a message whose content is {odd[0]}, which is no text. Write it as text."
    before = [message.get("role") for message in messages[:-1]]
    if not set(before) - {"system", "developer"}:
        return "has nothing before its answer but a system prompt. Add the user's message."
    if before[-1] == "assistant":
        return "has two answers of the assistant in a row. Keep one, or join them."
    return None


def check_conversation(messages: Messages, num_answers: int = 1) -> None:
    """Raise ValueError if this is no question with one answer: what `check_conversations` cannot see in a stream."""
    reason = why_unusable(messages, num_answers)
    if reason:
        raise ValueError(f"A conversation {reason} It begins with {str(messages[:1])[:100]}")


def check_thinking_is_on(name: str, dataset: Any, tokenizer: PreTrainedTokenizerBase, texts: ThinkingTexts) -> None:
    """No row may switch its thought off.

    Raises:
        ValueError: naming the first row that does.
    """
    found = first_row_whose_thought(dataset, tokenizer, texts, is_over=True)
    if found is not None:
        raise ValueError(
            f"Row {found[0]} of the {name} dataset switches its thought off ({found[1]}). Leave that out of its "
            "chat_template_kwargs, or set warmup_format to plain."
        )


def check_thinking_is_off(name: str, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Where the first row switches its thought off, all do.

    Raises:
        ValueError: naming the first row that does not.
    """
    texts = thinking_texts(tokenizer, {}, is_asked_for=False)
    if texts is None:
        return
    found = first_row_whose_thought(dataset, tokenizer, texts, is_over=False)
    if found is not None:
        raise ValueError(
            f"Row {found[0]} of the {name} dataset thinks ({found[1] or 'no chat_template_kwargs'}), and the first "
            "row of the training switches its thought off. Give all rows the same enable_thinking in "
            "chat_template_kwargs."
        )
    logger.warning(
        "The rows switch thinking off (chat_template_kwargs), so warmups are plain text behind an empty thought. "
        "Leave that out to train the model's own thoughts."
    )


def first_row_whose_thought(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, texts: ThinkingTexts, *, is_over: bool
) -> tuple[int, dict[str, Any]] | None:
    """Number, from 1, and template arguments of the first row whose prompt ends with an empty thought, or none."""
    if not isinstance(dataset, Dataset) or "chat_template_kwargs" not in dataset.column_names:
        return None
    known: dict[str, bool] = {}
    for row, template in enumerate(dataset["chat_template_kwargs"], 1):
        template = without_none(template or {})
        key = repr(sorted(template.items()))
        if key not in known:
            known[key] = prompt_is_thought_over(tokenizer, template, texts)
        if known[key] == is_over:
            return row, template
    return None


def check_separator_is_new(name: str, dataset: Any, separator: str) -> None:
    """A separator that the model learns to write must not be part of the data, or answers would be cut there.

    Raises:
        ValueError: with the number of targets and of prompts that hold it.
    """
    columns = get_dataset_column_names(dataset)
    if not isinstance(dataset, Dataset) or not ({"prompt", "completion"} <= set(columns) or "messages" in columns):
        return
    if "completion" in columns:
        rows = {name: dataset[name] for name in ("completion", "prompt")}
    else:
        rows = {"completion": [row[-1:] for row in dataset["messages"]]}
        rows["prompt"] = [row[:-1] for row in dataset["messages"]]
    found = {name: sum(holds(value, separator) for value in values) for name, values in rows.items()}
    if any(found.values()):
        raise ValueError(
            f"The separator {separator!r} stands in {found['completion']} targets and {found['prompt']} prompts of "
            f"the {len(dataset)} rows of the {name} dataset, so answers could not be told from warmups. Choose "
            "another warmup_separator."
        )


def holds(value: str | Messages, text: str) -> bool:
    """Whether a prompt or completion, as text or messages, holds this text."""
    messages = [{"content": value}] if isinstance(value, str) else value
    return any(text in message["content"] for message in messages if isinstance(message.get("content"), str))


# ---- Rows ----


def with_one_answer(dataset: Any, args: WarmupSFTConfig) -> Any:
    """`messages` (or ShareGPT's `conversations`) as prompt and completion, which is the last message."""
    columns = set(get_dataset_column_names(dataset))
    if "input_ids" in columns or "prompt" in columns or args.assistant_only_loss:
        return dataset
    if "conversations" in columns:
        dataset = dataset.map(maybe_convert_to_chatml, remove_columns="conversations")
    elif "messages" not in columns:
        return dataset

    def split(row: dict[str, Any]) -> dict[str, Messages]:
        check_conversation(row["messages"])
        return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}

    return dataset.map(split, remove_columns="messages")


def with_texts(dataset: Any) -> Any:
    """Conversations whose contents are lists of text parts, which many chat templates leave out, as texts."""
    sample = next(iter(dataset), {})
    columns = [column for column in ("prompt", "completion") if is_conversation(sample.get(column))]
    if not any(isinstance(message.get("content"), list) for column in columns for message in sample[column]):
        return dataset
    return dataset.map(lambda row: {column: messages_of(row, column) for column in columns})


def as_thinking_rows(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    warmup_format: WarmupFormat,
    *,
    num_proc: int | None = None,
    keeps_thoughts: bool = False,
) -> Any:
    """Token ids of conversations, whose prompts end with the opening and whose targets have no thought.

    Args:
        keeps_thoughts: add a column `thought_ids`, empty where a row has none.
    """
    columns = get_dataset_column_names(dataset)
    if "input_ids" in columns:
        return dataset

    def tokenized(row: dict[str, Any]) -> dict[str, list[int]]:
        prompt, answer = (messages_of(row, name) for name in ("prompt", "completion"))
        check_conversation([*prompt, *answer], len(answer))
        made = thinking_row(tokenizer, prompt, answer[-1], warmup_format, template_of(row))
        mask = [0] * len(made.prompt_ids) + [1] * len(made.target_ids)
        ids = {"input_ids": made.prompt_ids + made.target_ids, "completion_mask": mask}
        return {**ids, "thought_ids": made.thought_ids or []} if keeps_thoughts else ids

    options = {"num_proc": num_proc, "desc": "Tokenizing conversations"} if isinstance(dataset, Dataset) else {}
    return dataset.map(tokenized, remove_columns=columns, **options)


def messages_of(row: dict[str, Any], column: str) -> Messages:
    return [with_text_content(without_none(message)) for message in row[column]]


def without_none(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the keys that a table of messages has filled in with nothing."""
    return {key: value for key, value in message.items() if value is not None}


def with_opening(dataset: Any, opening_ids: tuple[int, ...]) -> Any:
    """Prepared rows whose prompts end with the opening."""
    if not opening_ids:
        return dataset

    def add(row: dict[str, Any]) -> dict[str, list[int]]:
        start = next((i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX), len(row["labels"]))
        prompt = opened(list(row["input_ids"][:start]), opening_ids)
        labels = [IGNORE_INDEX] * len(prompt) + list(row["labels"][start:])
        return {"input_ids": prompt + list(row["input_ids"][start:]), "labels": labels}

    return dataset.map(add)
