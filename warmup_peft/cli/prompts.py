"""The prompts of `generate`: from an option, a file or standard input. Loads no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmup_peft.evaluation.splits import read_json
from warmup_peft.files import near_path, read_text
from warmup_peft.settings.arguments import GenerateArguments

if TYPE_CHECKING:  # it loads torch
    from warmup_peft.inference.chat import Prompt

MESSAGE = {"role", "content"}
SOURCES = ("prompt", "messages", "prompts_file")


def are_given(options: GenerateArguments) -> bool:
    """Whether the prompts are in the options or in a file, not on standard input."""
    return any(getattr(options, name) is not None for name in SOURCES)


def checked_prompts(options: GenerateArguments) -> list[Prompt]:
    """The prompts. Raises ValueError where there is none, or an empty one, or one that cannot be read."""
    prompts = read_prompts(options)
    for number, prompt in enumerate(prompts, 1):
        check_prompt(number, prompt)
    if not prompts:
        raise ValueError("There is no prompt. Pass --prompt, --messages, --prompts_file, or lines on standard input.")
    return prompts


def read_prompts(options: GenerateArguments) -> list[Prompt]:
    given = [name for name in SOURCES if getattr(options, name) is not None]
    if len(given) > 1:
        raise ValueError(f"--{given[0]} and --{given[1]} are both given. Choose one of them.")
    if options.prompt is not None:
        return [options.prompt]
    if options.messages is not None:
        return [read_messages(options.messages)]
    if options.prompts_file is None:
        return [] if sys.stdin.isatty() else sys.stdin.read().splitlines()
    path = Path(options.prompts_file)
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist. Check --prompts_file.{near_path(str(path))}")
    if path.suffix in (".jsonl", ".json"):
        rows = list(read_json(path))
        for number, row in enumerate(rows, 1):
            if not isinstance(prompt_of(row), str | list):
                raise ValueError(f"{path}, row {number} has no text in the field `prompt`, and no list of `messages`.")
            for name in ("tools", "chat_template_kwargs"):
                if row.get(name):
                    raise ValueError(f"{path}, row {number} has `{name}`, which `generate` cannot offer. Remove them.")
        return [prompt_of(row) for row in rows]
    return read_text(path).splitlines()


def prompt_of(row: Mapping[str, Any]) -> Any:
    return row.get("prompt", row.get("messages"))


def read_messages(text: str) -> Any:
    """The JSON value of --messages, or of the file that it names."""
    is_json = text.lstrip().startswith(("[", "{"))
    if not is_json and not Path(text).is_file():
        raise ValueError(f"--messages is neither a JSON list nor a file: {text[:100]}")
    try:
        return json.loads(text if is_json else read_text(Path(text)))
    except json.JSONDecodeError as error:
        raise ValueError(f"--messages is no whole JSON value ({error}).") from error


def check_prompt(number: int, prompt: Any) -> None:
    """Raise ValueError if there is nothing to answer."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"Prompt {number} is empty. Give every prompt some text.")
        return
    messages = prompt if isinstance(prompt, list) else []
    if not messages or not all(isinstance(message, dict) and message.keys() >= MESSAGE for message in messages):
        raise ValueError(
            f"Prompt {number} is no conversation. Write it as a list of messages, each with a role and a content: "
            '[{"role": "user", "content": "..."}].'
        )
    odd = [message["content"] for message in messages if not isinstance(message["content"] or "", str | list)]
    if odd or not messages[-1]["content"]:
        raise ValueError(
            f"Prompt {number} has a message whose content is {odd[0] if odd else 'empty'}. Give it some text."
        )
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"Prompt {number} ends with a message of the assistant, so there is nothing to answer. End it with the "
            "user's."
        )
