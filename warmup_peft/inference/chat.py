"""Conversations, and what stands around a warmup: `prompt | opening | warmup | separator | target`.

In the plain format the opening is empty and the separator is text of your choice. In the thinking format both are what
the model itself writes around its thoughts (`<think>\\n` and `</think>\\n\\n`), read from its chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from warmup_peft.inference.folder import WarmupConfig

Messages = list[dict[str, Any]]
Prompt = str | Messages

PLAIN_SEPARATOR = " || "
THOUGHT, ANSWER = "Th0ught", "Answ3r"  # sentinels, which no template changes
THOUGHT_KEYS = ("reasoning_content", "thinking")
THINK, END_THINK = "<think>", "</think>"  # of models whose template knows no thoughts


class ThinkingTexts(NamedTuple):
    """What a chat template puts before a thought, between thought and answer, and behind the answer.

    The white space between a thought and the token that closes it is `thought_end`: the model's own to write.
    """

    opening: str
    separator: str
    end: str
    thought_end: str


@dataclass(frozen=True)
class WarmupFormat:
    """What stands around a warmup.

    Attributes:
        opening, opening_ids: stands between prompt and warmup.
        separator, separator_ids: stands between warmup and target.
        thinking: what the chat template puts around a thought; None in the plain format.
        is_chat: whether the prompts are conversations.
        chat_template_kwargs: what their chat template is given.
    """

    opening: str
    opening_ids: tuple[int, ...]
    separator: str
    separator_ids: tuple[int, ...]
    thinking: ThinkingTexts | None = None
    is_chat: bool = False
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def is_conversation(prompt: Any) -> bool:
    """Whether this is a list of messages."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict) and "role" in prompt[0]


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, **template: Any) -> str:
    """The text that the chat template makes of the messages. `template` is `tools` and what the template takes."""
    messages = [with_text_content(message) for message in messages]
    return tokenizer.apply_chat_template(messages, tokenize=False, **template)


def with_text_content(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of text parts, which many templates leave out, with their text as content."""
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(part, dict) and part.get("text") for part in content):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def prompt_token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, config: WarmupConfig | None = None, **template: Any
) -> list[int]:
    """Token ids that the model reads before its warmup: the prompt, and the opening unless it stands there already.

    Args:
        prompt: text, taken as it is; or messages, which go through the chat template with its generation prompt.
        config: of a warmup adapter; None for other models.
        template: `tools`, and what the template takes beside the adapter's `chat_template_kwargs`.

    Raises:
        ValueError: messages for a tokenizer without a chat template, or a thought that they switch off.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        check_template(tokenizer)
        known = {} if config is None else config.chat_template_kwargs
        text = render(tokenizer, prompt, add_generation_prompt=True, **{**known, **template})
        closing = "" if config is None else config.warmup_separator.strip()
        if closing and text.rstrip().endswith(closing):
            raise ValueError(
                f"The chat template, given {template or known}, ends a prompt with {closing!r}, and the adapter was "
                "trained to think first. Leave that out of chat_template_kwargs."
            )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if config is None else opened(ids, config.warmup_opening_ids)


def opened(ids: list[int], opening_ids: list[int] | tuple[int, ...]) -> list[int]:
    """The prompt's ids with the opening behind them, once."""
    opening_ids = list(opening_ids)
    return ids if not opening_ids or ids[-len(opening_ids) :] == opening_ids else ids + opening_ids


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise ValueError(
            "The tokenizer has no chat template, so messages cannot be read. Give the prompt as text, or set "
            "chat_template_path to a template."
        )


# ---- The format ----


def find_format(
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "auto",
    *,
    is_chat: bool = False,
    opening: str | None = None,
    separator: str | None = None,
    template: Mapping[str, Any] | None = None,
) -> WarmupFormat:
    """The format of a training's warmups.

    Args:
        kind: `thinking`; `plain`; or `auto`, which is thinking where the rows are conversations, the chat template
            knows thoughts and no separator is named.
        is_chat: whether the rows are conversations.
        opening, separator: texts to take instead of the format's own.
        template: `tools` and `chat_template_kwargs` of the rows.

    Raises:
        ValueError: `thinking` where the template knows no thoughts or has them switched off, or a text that the
            tokenizer cannot write.
    """
    template, texts = dict(template or {}), None
    if kind == "thinking" or (kind == "auto" and is_chat and separator is None):
        texts = thinking_texts(tokenizer, template, is_asked_for=kind == "thinking")
    own_opening, own_separator = ("", PLAIN_SEPARATOR) if texts is None else texts[:2]
    opening = own_opening if opening is None else opening
    separator = own_separator if separator is None else separator
    return WarmupFormat(
        opening=opening,
        opening_ids=tuple(token_ids_of(tokenizer, "warmup_opening", opening)) if opening else (),
        separator=separator,
        separator_ids=tuple(token_ids_of(tokenizer, "warmup_separator", separator)),
        thinking=texts,
        is_chat=is_chat,
        chat_template_kwargs={name: value for name, value in template.items() if name != "tools"},
    )


def thinking_texts(
    tokenizer: PreTrainedTokenizerBase, template: dict[str, Any], *, is_asked_for: bool
) -> ThinkingTexts | None:
    """What the chat template puts around a thought; None where it knows none.

    Args:
        is_asked_for: raise instead of returning None, and take a vocabulary's `<think>` and `</think>` where the
            template says nothing.

    Raises:
        ValueError: asked for, and not to be had.
    """
    if tokenizer.chat_template is None:
        return _none_or_raise(is_asked_for, "The tokenizer has no chat template")
    user = [{"role": "user", "content": "Hello"}]
    try:
        prompt = render(tokenizer, user, add_generation_prompt=True, **template)
    except Exception as error:  # a template may raise whatever it likes
        return _none_or_raise(is_asked_for, f"The chat template fails ({error})")
    end = render_answer(tokenizer, user, {"role": "assistant", "content": ANSWER}, template).partition(ANSWER)[2]
    for key in THOUGHT_KEYS:
        answer = {"role": "assistant", "content": ANSWER, key: THOUGHT}
        before, found, behind = render_answer(tokenizer, user, answer, template).partition(THOUGHT)
        if found and ANSWER in behind:
            if not before.startswith(prompt):
                return _none_or_raise(is_asked_for, "The chat template has thinking switched off (enable_thinking)")
            between, _, end = behind.partition(ANSWER)
            separator = from_first_added_token(tokenizer, between)
            return ThinkingTexts(before[len(prompt) :], separator, end, between.removesuffix(separator))
    has_tokens = {THINK, END_THINK} <= tokenizer.get_vocab().keys()
    is_open = prompt.rstrip().endswith(THINK)
    if has_tokens and (is_open or is_asked_for):
        return ThinkingTexts("" if is_open else f"{THINK}\n", f"{END_THINK}\n\n", end, "\n")
    return _none_or_raise(is_asked_for, "The chat template knows no thoughts")


def _none_or_raise(is_asked_for: bool, reason: str) -> None:
    if is_asked_for:
        raise ValueError(
            f"{reason}, so warmup_format=thinking cannot work. Set warmup_format to plain, or use the tokenizer of a "
            "model that thinks."
        )


def render_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: dict[str, Any], template: dict[str, Any]
) -> str:
    """The whole conversation as text; empty where the template refuses this message."""
    try:
        return render(tokenizer, [*prompt, answer], **template)
    except Exception:  # a template may raise whatever it likes
        return ""


def token_ids_of(tokenizer: PreTrainedTokenizerBase, option: str, text: str) -> list[int]:
    """Token ids of the text, without special tokens around it.

    Raises:
        ValueError: the tokenizer cannot write the text.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    written = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not ids or tokenizer.unk_token_id in ids or written.split() != text.split():
        raise ValueError(
            f"{option}={text!r} cannot be written by this tokenizer (its ids are {ids}, which read {written!r}). "
            "Choose a text of characters that the tokenizer knows."
        )
    return ids


def from_first_added_token(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text from its first special or added token on, or else from its first letter on.

    White space before it is the model's own to write, and as a closing token it would end a thought with its line.
    """
    start, stop = first_added_token(tokenizer, text)
    return text[start:] if stop and not text[:start].strip() else text.lstrip() or text


def first_added_token(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, int]:
    """Where in the text the first special or added token starts and stops; (0, 0) without any."""
    found = [(text.index(token), -len(token)) for token in added_tokens(tokenizer) if token in text]
    start, size = min(found, default=(0, 0))
    return start, start - size


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of the special and added tokens, without those of white space alone."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()]


# ---- A training row ----


class ChatRow(NamedTuple):
    """One conversation as a training row: token ids of the prompt and of the target, and the data's own thought.

    `thought_ids` is None where the row has none.
    """

    prompt_ids: list[int]
    target_ids: list[int]
    thought_ids: list[int] | None


def thinking_row(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    answer: dict[str, Any],
    warmup_format: WarmupFormat,
    template: dict[str, Any],
) -> ChatRow:
    """A conversation with its last answer in the thinking format. The prompt's ids end with the opening."""
    texts = warmup_format.thinking
    text = render(tokenizer, prompt, add_generation_prompt=True, **template)
    prompt_ids = opened(tokenizer(text, add_special_tokens=False)["input_ids"], warmup_format.opening_ids)
    thought, answer = split_thought(answer, texts)
    target = target_text(tokenizer, prompt, answer, texts, template)
    before = texts.opening or text[text.rstrip().rfind("\n") + 1 :]
    return ChatRow(
        prompt_ids,
        ids_behind(tokenizer, texts.separator, target),
        None if thought is None else ids_behind(tokenizer, before, thought),
    )


def ids_behind(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int]:
    """Token ids that `text` has behind `before`: at its start, some tokenizers put a space in front of it.

    They are those of `text` alone if the tokenizer merges tokens across the boundary.
    """
    return all_behind(tokenizer, before, [text])[0]


def all_behind(tokenizer: PreTrainedTokenizerBase, before: str, texts: Sequence[str]) -> list[list[int]]:
    """`ids_behind` of several texts, in one call of the tokenizer."""
    wholes = [before + text for text in texts]
    start, *wholes = tokenizer([before, *wholes], add_special_tokens=False)["input_ids"]
    return [
        whole[len(start) :]
        if whole[: len(start)] == start and len(whole) > len(start)
        else tokenizer(text, add_special_tokens=False)["input_ids"]
        for whole, text in zip(wholes, texts)
    ]


def prompt_is_thought_over(tokenizer: PreTrainedTokenizerBase, template: dict[str, Any], texts: ThinkingTexts) -> bool:
    """Whether the template, so called, ends a prompt with an empty thought (`enable_thinking: false`)."""
    prompt = render(tokenizer, [{"role": "user", "content": "Hello"}], add_generation_prompt=True, **template)
    return prompt.rstrip().endswith(texts.separator.strip())


def split_thought(answer: dict[str, Any], texts: ThinkingTexts) -> tuple[str | None, dict[str, Any]]:
    """The thought that the data has, in a key of its own or in the content; and the message without it."""
    thoughts = [answer[key] for key in THOUGHT_KEYS if answer.get(key)]
    answer = {key: value for key, value in answer.items() if key not in THOUGHT_KEYS}
    content, closing = answer.get("content"), texts.separator.strip()
    if isinstance(content, str) and closing in content:
        thought, _, content = content.rpartition(closing)
        thoughts.append(thought.strip().removeprefix(texts.opening.strip() or THINK))
        answer["content"] = content.lstrip()
    thought = thoughts[0].strip() if thoughts else ""
    return (thought + texts.thought_end if thought else None), answer


def target_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    answer: dict[str, Any],
    texts: ThinkingTexts,
    template: dict[str, Any],
) -> str:
    """What the model is to write behind the separator, up to the token that ends its turn.

    Raises:
        ValueError: the template leaves the answer out, or writes it elsewhere.
    """
    for key in THOUGHT_KEYS:
        whole = render_answer(tokenizer, prompt, {**answer, key: THOUGHT}, template)
        behind = whole.partition(THOUGHT)[2].lstrip()
        if behind.startswith(texts.separator):
            target = behind.removeprefix(texts.separator)
            break
    else:  # the template drops thoughts, so what it makes of the answer begins where the answer does
        whole, content = render(tokenizer, [*prompt, answer], **template), (answer.get("content") or "").strip()
        if content not in whole or (answer.get("tool_calls") and not content):
            raise ValueError(
                "The chat template does not write this answer behind a thought (a tool call in another channel, or a "
                f"role that it does not know): {answer}. Leave such rows out, or set warmup_format to plain."
            )
        target = whole[whole.rindex(content) :]
    if texts.end and not target.endswith(texts.end) and target.endswith(tuple(added_tokens(tokenizer))):
        return target  # the template ends this answer in another way, such as <|call|>
    return target.removesuffix(texts.end) + end_of_turn(tokenizer, texts.end)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, end: str) -> str:
    """What the model writes of this text behind its answer: up to the first special token, or else its end token."""
    _, stop = first_added_token(tokenizer, end)
    return end[:stop] or tokenizer.eos_token or ""
