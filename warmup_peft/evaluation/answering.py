"""Prompts, warmups, answers and options as token ids, batch by batch: what a model writes, and how likely it is.

This module knows no question's answer, no trainer and no file. What the chat template puts around thoughts and answers
is found here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.evaluation.tasks import Question
from warmup_peft.files import first_line
from warmup_peft.inference.chat import (
    ANSWER,
    Messages,
    Prompt,
    all_behind,
    find_format,
    prompt_token_ids,
    render,
    render_answer,
)
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import append_warmups, pad_token_id, write_warmups
from warmup_peft.inference.loading import context_length
from warmup_peft.method.branches import Tokens, Warmups, lay_out_branches, left_padded
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.scoring import branch_logps

ROOM_FOR_MORE = 32  # tokens of an answer beyond the longest reference, to see where it goes on

Ids = list[int]
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


def no_progress(batches: Sequence[Any], what: str) -> Iterable[Any]:
    return batches


@dataclass
class Bars:
    """A progress bar for each step of whatever has this name."""

    name: str = ""

    def __call__(self, batches: Sequence[Any], what: str) -> Iterable[Any]:
        return tqdm(batches, desc=f"{self.name}: {what}", unit="batch")


class OnceEach:
    """A function of questions that is asked once for each, however often they are answered.

    Args:
        function: questions -> one item for each.
    """

    def __init__(self, function: Callable[[Sequence[Question]], Sequence[Any]]):
        self._function = function
        self._known: dict[int, tuple[Question, Any]] = {}  # with the question, so that no other one gets its id

    def __call__(self, questions: Sequence[Question]) -> list[Any]:
        new = [question for question in questions if id(question) not in self._known]
        if new:
            self._known |= {id(question): (question, item) for question, item in zip(new, self._function(new))}
        return [self._known[id(question)][1] for question in questions]


class Marks(NamedTuple):
    """Token ids before and behind a thought that a model writes by itself, and those in place of a thought."""

    opening_ids: tuple[int, ...]
    separator_ids: tuple[int, ...]
    skipped_ids: tuple[int, ...] = ()


# ---- Token ids ----


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    warmup_config: WarmupConfig | None = None,
    template: Mapping[str, Any] | None = None,
) -> list[Ids]:
    """Token ids of the prompts, with the opening of a warmup behind them.

    Raises:
        ValueError: the tokenizer has no chat template, or the template refuses a conversation.
    """
    known, found = template or {}, []
    for number, question in enumerate(questions, 1):
        try:
            found.append(prompt_token_ids(tokenizer, question.prompt, warmup_config, **{**known, **question.template}))
        except ValueError:
            raise
        except Exception as error:  # a template may raise whatever it likes
            raise ValueError(f"The chat template fails on row {number} ({first_line(error)}). Fix it.") from error
    return found


def all_continuations(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text after `prompt`, or after what the chat template puts between a conversation and answers.

    They are those of the text alone if the tokenizer merges tokens across the boundary.
    """
    if isinstance(prompt, str):
        return all_behind(tokenizer, prompt, texts)
    answer = {"role": "assistant", "content": ANSWER}
    head = render_answer(tokenizer, [{"role": "user", "content": "Hello"}], answer, {}).partition(ANSWER)[0]
    return all_behind(tokenizer, head[head.rstrip().rfind("\n") + 1 :], texts)


def ids_before_answer(
    tokenizer: PreTrainedTokenizerBase, question: Question, warmup_config: WarmupConfig | None
) -> Ids:
    """What the chat template puts between a conversation's prompt and its answer, such as an empty thought.

    Nothing stands before the answer to a text, or behind a warmup that is a thought itself.
    """
    if isinstance(question.prompt, str):
        return []
    marks = thought_marks(tokenizer)
    if marks and warmup_config and warmup_config.warmup_separator_ids[:1] == list(marks.separator_ids[:1]):
        return []
    template = {**(warmup_config.chat_template_kwargs if warmup_config else {}), **question.template}
    return ids_without_thought(tokenizer, question.prompt, template)


def ids_without_thought(tokenizer: PreTrainedTokenizerBase, prompt: Messages, template: Mapping[str, Any]) -> Ids:
    """What the chat template puts between the prompt and an answer without a thought."""
    rendered = render(tokenizer, prompt, add_generation_prompt=True, **template)
    whole = render_answer(tokenizer, prompt, {"role": "assistant", "content": ANSWER}, dict(template))
    if ANSWER not in whole or not whole.startswith(rendered):
        return []
    return tokenizer(whole[len(rendered) : whole.rindex(ANSWER)], add_special_tokens=False)["input_ids"]


def answer_limit(tokenizer: PreTrainedTokenizerBase, references: Sequence[str]) -> int:
    """How many tokens an answer may have: those of the longest reference, and `ROOM_FOR_MORE`."""
    texts = [reference.strip() for reference in references]
    return max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) + ROOM_FOR_MORE


# ---- Thoughts ----


def thought_marks(tokenizer: PreTrainedTokenizerBase) -> Marks | None:
    """What a chat template puts around thoughts; None if it knows none, or the tokenizer cannot write it."""
    try:
        found = find_format(tokenizer, is_chat=True)
    except ValueError:
        return None
    if found.thinking is None:
        return None
    skipped = ids_without_thought(tokenizer, [{"role": "user", "content": "Hello"}], {})
    return Marks(found.opening_ids, found.separator_ids, tuple(skipped))


def without_thought(ids: Ids, marks: Marks, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The ids behind the last thought; none if they begin with a thought that is not closed."""
    separator = list(marks.separator_ids)
    added = tokenizer.added_tokens_decoder
    for closing in (separator, separator[:1] if separator[0] in added else []):
        starts = [i for i in range(len(ids)) if closing and ids[i : i + len(closing)] == closing]
        if starts:
            return ids[starts[-1] + len(closing) :]
    if marks.skipped_ids and ids[: len(marks.skipped_ids)] == list(marks.skipped_ids):
        return ids[len(marks.skipped_ids) :]
    opening = marks.opening_ids[:1] if set(marks.opening_ids[:1]) <= added.keys() else marks.opening_ids
    is_open = bool(opening) and ids[: len(opening)] == list(opening)
    return [] if is_open else ids


# ---- Batches ----


def right_padded(rows: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Tokens:
    """(B, K) sequences of ids -> (B, K, longest)."""
    width = max(len(ids) for row in rows for ids in row)
    ids = torch.tensor([[list(ids) + [0] * (width - len(ids)) for ids in row] for row in rows], device=device)
    mask = torch.tensor([[[True] * len(ids) + [False] * (width - len(ids)) for ids in row] for row in rows])
    return Tokens(ids, mask.to(device))


def as_warmups(warmup_ids: Sequence[Sequence[int]], device: torch.device) -> Warmups:
    """(B, 1) warmups of these token ids."""
    tokens = right_padded([[ids] for ids in warmup_ids], device)
    lengths = tokens.mask.sum(-1)
    return Warmups(tokens.ids.long(), lengths, lengths)


def batches_of(
    prompts: Sequence[Sequence[int]], batch_size: int, progress: Progress, what: str
) -> Iterable[list[int]]:
    """Batches of prompt indices. Prompts of similar length share a batch, and the longest come first."""
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return progress([by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)], what)


def batches_with(
    prompts: Sequence[Ids],
    warmup_ids: Sequence[Ids],
    device: torch.device,
    batch_size: int,
    progress: Progress,
    what: str,
) -> Iterator[tuple[list[int], Tokens, Warmups]]:
    """Indices, prompts and warmups of one batch after the other."""
    for indices in batches_of(prompts, batch_size, progress, what):
        warmups = as_warmups([warmup_ids[i] for i in indices], device)
        yield indices, left_padded([prompts[i] for i in indices], device), warmups


# ---- The model ----


def write_each(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    warmup_config: WarmupConfig,
    batch_size: int,
    progress: Progress = no_progress,
    **sampling: Any,
) -> list[Ids]:
    """Token ids of one warmup for each prompt: greedy, or sampled as `sampling` (`do_sample`, ...) says."""
    written: dict[int, Ids] = {}
    for indices in batches_of(prompts, batch_size, progress, "warmups"):
        warmups = write_warmups(
            model, left_padded([prompts[i] for i in indices], model.device), warmup_config, **sampling
        )
        lengths = warmups.lengths[:, 0].tolist()
        written |= {i: ids[:n] for i, ids, n in zip(indices, warmups.ids[:, 0].tolist(), lengths)}
    return [written[i] for i in range(len(prompts))]


def answer_each(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    warmup_ids: Sequence[Ids],
    warmup_config: WarmupConfig | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress = no_progress,
    **how: Any,
) -> list[str]:
    """Texts of one greedy answer after each prompt and its warmup; one that fills the model's context ends there.

    Args:
        how: as for `generate_texts`.
    """
    context = context_length(model.config)
    texts: dict[int, str] = {}
    for indices, prompt, warmups in batches_with(prompts, warmup_ids, model.device, batch_size, progress, "answers"):
        limit = max_new_tokens
        if context is not None:
            used = prompt.ids.size(1) + warmups.ids.size(-1) + len(separator_of(warmup_config, model.device))
            limit = max(1, min(limit, context - used))
        with evaluation_mode(model):
            written = generate_texts(model, tokenizer, prompt, warmups, warmup_config, limit, **how)
        texts |= dict(zip(indices, written))
    return [texts[i] for i in range(len(prompts))]


def separator_of(warmup_config: WarmupConfig | None, device: torch.device) -> Tensor:
    ids = [] if warmup_config is None else warmup_config.warmup_separator_ids
    return torch.tensor(ids, dtype=torch.long, device=device)


def option_logps(
    encoder: PromptEncoder,
    prompt: Tokens,
    warmups: Warmups,
    between: Tensor,
    options: list[list[list[int]]],
) -> Tensor:
    """(B, number of options) log-likelihoods in nats. The options of a question are branches with the same warmup.

    Args:
        between: (S,) token ids between a warmup and each option.
    """
    target = right_padded(options, prompt.ids.device)
    warmup = Tokens(*(x.expand(-1, target.ids.size(1), -1) for x in warmups.tokens()))
    branches = lay_out_branches(warmup, between, target)
    encoded = encoder(encoder.model, prompt, room=branches.ids.size(-1))
    return branch_logps(encoded, branches, branches.is_target)


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Tokens,
    warmups: Warmups,
    warmup_config: WarmupConfig | None,
    max_new_tokens: int,
    marks: Marks | None = None,
    **sampling: Any,
) -> list[str]:
    """Answers generated after the warmups: greedy, or sampled as `sampling` (`do_sample`, ...) says.

    Args:
        marks: leave out the thoughts that the model writes into its answers, see `thought_marks`.
    """
    context = prompt if warmup_config is None else append_warmups(prompt, warmups, warmup_config, pad_token_id(model))
    sequences = model.generate(
        input_ids=context.ids,
        attention_mask=context.mask.long(),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id(model),
        **{"do_sample": False, **sampling},
    )
    answers = sequences[:, context.ids.size(1) :].tolist()
    if marks is not None:
        answers = [without_thought(ids, marks, tokenizer) for ids in answers]
    return tokenizer.batch_decode(answers, skip_special_tokens=True)


def check_logps(logps: Tensor) -> None:
    """Raise FloatingPointError if one is NaN, since a comparison with NaN would always choose the first option."""
    if logps.isnan().any():
        raise FloatingPointError(
            "The model's logits are NaN, so its answers cannot be scored. Train it again with a lower learning_rate, "
            "or load it in bfloat16 or float32 where it is in float16."
        )
