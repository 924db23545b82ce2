"""Answers multiple-choice questions with a causal language model, with or without a warmup.

An option's score is the log-likelihood of its tokens after the prompt (and, for a warmup adapter, after the warmup it
writes greedily and the separator). Knows no trainer and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.evaluation.tasks import MultipleChoice
from warmup_peft.inference.warmup_config import WarmupConfig
from warmup_peft.inference.writing import append_warmups, pad_token_id, write_warmups
from warmup_peft.method.branches import Tokens, Warmups, lay_out_branches, left_padded, no_warmups, sums_where
from warmup_peft.method.objective import token_logps
from warmup_peft.method.scoring import evaluation_mode, score_after_prompt


@dataclass(frozen=True)
class Prediction:
    """What a model made of one question.

    Attributes:
        choice: the option with the highest log-likelihood.
        option_logps: log-likelihood of each option, in nats, summed over its tokens.
        warmup: the warmup's text; empty without one.
        generation: what it answers when it writes freely.
    """

    choice: int
    option_logps: tuple[float, ...]
    warmup: str
    generation: str


def right_padded(rows: Sequence[Sequence[Sequence[int]]], device: torch.device) -> Tokens:
    """(B, K) sequences of ids -> (B, K, longest)."""
    width = max(len(ids) for row in rows for ids in row)
    ids = torch.tensor([[list(ids) + [0] * (width - len(ids)) for ids in row] for row in rows], device=device)
    mask = torch.tensor([[[True] * len(ids) + [False] * (width - len(ids)) for ids in row] for row in rows])
    return Tokens(ids, mask.to(device))


def continuation_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> list[int]:
    """Ids of `text` as they stand after `prompt`, or on their own where the two would merge at the boundary."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + text)["input_ids"]
    if ids[: len(prompt_ids)] == prompt_ids and len(ids) > len(prompt_ids):
        return ids[len(prompt_ids) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[MultipleChoice],
    warmup_config: WarmupConfig | None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    write: Callable[[PreTrainedModel, Tokens, WarmupConfig], Warmups] = write_warmups,
    progress: Callable[[Sequence], Iterator] = iter,
) -> list[Prediction]:
    """A prediction for each question, in their order.

    Args:
        warmup_config: how the model warms up; None, or a limit of 0 tokens, answers directly.
        batch_size: questions at a time; those of like length go together.
        max_new_tokens: limit of a free generation; 0 writes none.
        write: writes the warmups.
        progress: wraps the list of batches, to show how far it is.
    """
    if warmup_config is not None and warmup_config.max_warmup_length == 0:
        warmup_config = None
    prompts = [tokenizer(question.prompt)["input_ids"] for question in questions]
    by_length = sorted(range(len(questions)), key=lambda i: len(prompts[i]))
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    predictions: dict[int, Prediction] = {}
    for indices in progress(batches):
        prompt = left_padded([prompts[i] for i in indices], model.device)
        options = [
            [continuation_ids(tokenizer, questions[i].prompt, option) for option in questions[i].options]
            for i in indices
        ]
        with evaluation_mode(model):
            warmups = no_warmups(prompt) if warmup_config is None else write(model, prompt, warmup_config)
            logps = option_logps(model, prompt, warmups, warmup_config, options)
            texts = generate_texts(model, tokenizer, prompt, warmups, warmup_config, max_new_tokens)
        for row, i in enumerate(indices):
            predictions[i] = Prediction(
                choice=int(logps[row].argmax()),
                option_logps=tuple(logps[row].tolist()),
                warmup=tokenizer.decode(warmups.ids[row, 0, : warmups.lengths[row, 0]]),
                generation=texts[row],
            )
    return [predictions[i] for i in range(len(questions))]


def separator_of(warmup_config: WarmupConfig | None, device: torch.device) -> Tensor:
    ids = [] if warmup_config is None else warmup_config.warmup_separator_ids
    return torch.tensor(ids, dtype=torch.long, device=device)


def option_logps(
    model: PreTrainedModel,
    prompt: Tokens,
    warmups: Warmups,
    warmup_config: WarmupConfig | None,
    options: list[list[list[int]]],
) -> Tensor:
    """(B, number of options) log-likelihoods in nats: the options are branches that share one warmup."""
    target = right_padded(options, prompt.ids.device)
    warmup = Tokens(*(x.expand(-1, target.ids.size(1), -1) for x in warmups.tokens()))
    branches = lay_out_branches(warmup, separator_of(warmup_config, prompt.ids.device), target)
    logits = score_after_prompt(model, prompt, branches, branches.is_target)
    return sums_where(branches.is_target, token_logps(logits, branches.ids[branches.is_target]))


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Tokens,
    warmups: Warmups,
    warmup_config: WarmupConfig | None,
    max_new_tokens: int,
    **law: Any,
) -> list[str]:
    """What the model writes after the warmups, greedily unless the `law` (`do_sample`, ...) says otherwise."""
    if max_new_tokens == 0:
        return [""] * len(prompt.ids)
    context = prompt if warmup_config is None else append_warmups(prompt, warmups, warmup_config, pad_token_id(model))
    sequences = model.generate(
        input_ids=context.ids,
        attention_mask=context.mask.long(),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id(model),
        **{"do_sample": False, **law},
    )
    return tokenizer.batch_decode(sequences[:, context.ids.size(1) :], skip_special_tokens=True)


def is_an_option(generation: str, question: MultipleChoice) -> bool:
    """Whether a free generation is one of the question's options, apart from white space at its ends."""
    return generation.strip() in {option.strip() for option in question.options}
