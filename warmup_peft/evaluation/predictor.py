"""Answers questions with a causal language model, with or without a warmup: it chooses an option, and writes freely.

An option's score is the log-likelihood of its tokens after the prompt (and, for a warmup adapter, after the warmup it
writes greedily and the separator). Knows no trainer and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.evaluation.metrics import Answers, score_rows, totals
from warmup_peft.evaluation.tasks import Question
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import append_warmups, pad_token_id, write_warmups
from warmup_peft.method.branches import Tokens, Warmups, lay_out_branches, left_padded, sums_where
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.objective import token_logps
from warmup_peft.method.rows import CachedPrompt

Progress = Callable[[Sequence[Any], str], Iterable[Any]]


def no_progress(batches: Sequence[Any], what: str) -> Iterable[Any]:
    return batches


def bars(name: str) -> Progress:
    return lambda batches, what: tqdm(batches, desc=f"{name}: {what}", unit="batch")


@dataclass(frozen=True)
class Prediction:
    """What a model made of one question.

    Attributes:
        choice: the option with the highest log-likelihood.
        option_logps: log-likelihood of each option, in nats, summed over its tokens; of a task whose answers are
            written freely, of the reference alone.
        target_tokens: how many tokens the right option has.
        warmup, warmup_ids: the warmup's text and token ids; empty without one.
        generation: what it answers when it writes freely; None where it was not asked to.
    """

    choice: int
    option_logps: tuple[float, ...]
    target_tokens: int
    warmup: str
    warmup_ids: tuple[int, ...]
    generation: str | None


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


def write_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    warmup_config: WarmupConfig | None,
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> list[list[int]]:
    """Token ids of the warmup that the model writes greedily for each question; empty without a `warmup_config`."""
    written: dict[int, list[int]] = {i: [] for i in range(len(questions))}
    if warmup_config is not None and warmup_config.max_warmup_length > 0:
        for indices, prompt in batches_of(model, tokenizer, questions, batch_size, "warmups", progress):
            with evaluation_mode(model):
                warmups = write_warmups(model, prompt, warmup_config)
            lengths = warmups.lengths[:, 0].tolist()
            written |= {i: ids[:n] for i, ids, n in zip(indices, warmups.ids[:, 0].tolist(), lengths)}
    return [written[i] for i in range(len(questions))]


def score_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    warmup_config: WarmupConfig | None,
    warmup_ids: Sequence[Sequence[int]],
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> list[tuple[float, ...]]:
    """Log-likelihood in nats of each question's options, summed over their tokens, after these warmups.

    Raises:
        FloatingPointError: the model's logits are NaN.
    """
    scores: dict[int, tuple[float, ...]] = {}
    encoder = PromptEncoder(model, fast=CachedPrompt)
    for indices, prompt in batches_of(model, tokenizer, questions, batch_size, "scores", progress):
        options = [
            [continuation_ids(tokenizer, questions[i].prompt, option) for option in questions[i].options]
            for i in indices
        ]
        warmups = as_warmups([warmup_ids[i] for i in indices], prompt.ids.device)
        with evaluation_mode(model):
            logps = option_logps(encoder, prompt, warmups, warmup_config, options)
        check_logps(logps)
        scores |= dict(zip(indices, map(tuple, logps.tolist())))
    return [scores[i] for i in range(len(questions))]


def check_logps(logps: Tensor) -> None:
    """Raise FloatingPointError where one is NaN: every comparison with it would choose the first option."""
    if logps.isnan().any():
        raise FloatingPointError(
            "The model's logits are NaN, so its answers cannot be scored. Train it again with a lower learning_rate, "
            "or load it in bfloat16 or float32 where it is in float16."
        )


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    warmup_config: WarmupConfig | None,
    warmup_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> list[str | None]:
    """What the model writes greedily for each question after these warmups; None where max_new_tokens is 0."""
    if max_new_tokens == 0:
        return [None] * len(questions)
    written: dict[int, str] = {}
    for indices, prompt in batches_of(model, tokenizer, questions, batch_size, "answers", progress):
        warmups = as_warmups([warmup_ids[i] for i in indices], prompt.ids.device)
        with evaluation_mode(model):
            texts = generate_texts(model, tokenizer, prompt, warmups, warmup_config, max_new_tokens)
        written |= dict(zip(indices, texts))
    return [written[i] for i in range(len(questions))]


def batches_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int,
    what: str,
    progress: Progress,
) -> Iterator[tuple[list[int], Tokens]]:
    """Indices and prompts of so many questions at a time; those of like length go together, the longest first."""
    prompts = [tokenizer(question.prompt)["input_ids"] for question in questions]
    by_length = sorted(range(len(questions)), key=lambda i: -len(prompts[i]))
    for indices in progress([by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)], what):
        yield indices, left_padded([prompts[i] for i in indices], model.device)


def as_warmups(warmup_ids: Sequence[Sequence[int]], device: torch.device) -> Warmups:
    """(B, 1) given warmups."""
    tokens = right_padded([[ids] for ids in warmup_ids], device)
    lengths = tokens.mask.sum(-1)
    return Warmups(tokens.ids.long(), lengths, lengths)


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    warmup_config: WarmupConfig | None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    warmup_ids: Sequence[Sequence[int]] | None = None,
    progress: Progress = no_progress,
) -> list[Prediction]:
    """A prediction for each question, in their order.

    Args:
        warmup_config: how the model warms up; None, or a limit of 0 tokens, answers directly.
        batch_size: questions at a time.
        max_new_tokens: limit of a free generation; 0 writes none.
        warmup_ids: warmups to answer after, one a question, instead of those that the model writes.
        progress: wraps a list of batches and a word for what is done with them, to show how far it is.
    """
    if warmup_config is not None and warmup_config.max_warmup_length == 0:
        warmup_config = None
    asked = (model, tokenizer, questions, warmup_config)
    if warmup_ids is None:
        warmup_ids = write_for(*asked, batch_size, progress)
    scores = score_options(*asked, warmup_ids, batch_size, progress)
    texts = write_answers(*asked, warmup_ids, max_new_tokens, batch_size, progress)
    return as_predictions(tokenizer, questions, warmup_ids, scores, texts)


def as_predictions(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    warmup_ids: Sequence[Sequence[int]],
    scores: Sequence[tuple[float, ...]],
    texts: Sequence[str | None],
) -> list[Prediction]:
    """Warmups, options' log-likelihoods and free generations of the same questions, put together."""
    return [
        Prediction(
            choice=max(range(len(logps)), key=logps.__getitem__),
            option_logps=logps,
            target_tokens=len(continuation_ids(tokenizer, question.prompt, question.completion)),
            warmup=tokenizer.decode(ids),
            warmup_ids=tuple(ids),
            generation=text,
        )
        for question, ids, logps, text in zip(questions, warmup_ids, scores, texts)
    ]


def separator_of(warmup_config: WarmupConfig | None, device: torch.device) -> Tensor:
    ids = [] if warmup_config is None else warmup_config.warmup_separator_ids
    return torch.tensor(ids, dtype=torch.long, device=device)


def option_logps(
    encoder: PromptEncoder,
    prompt: Tokens,
    warmups: Warmups,
    warmup_config: WarmupConfig | None,
    options: list[list[list[int]]],
) -> Tensor:
    """(B, number of options) log-likelihoods in nats: the options are branches that share one warmup."""
    target = right_padded(options, prompt.ids.device)
    warmup = Tokens(*(x.expand(-1, target.ids.size(1), -1) for x in warmups.tokens()))
    branches = lay_out_branches(warmup, separator_of(warmup_config, prompt.ids.device), target)
    encoded = encoder(encoder.model, prompt, room=branches.ids.size(-1))
    logits = encoded.predictions(branches, branches.is_target)
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
    context = prompt if warmup_config is None else append_warmups(prompt, warmups, warmup_config, pad_token_id(model))
    sequences = model.generate(
        input_ids=context.ids,
        attention_mask=context.mask.long(),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id(model),
        **{"do_sample": False, **law},
    )
    return tokenizer.batch_decode(sequences[:, context.ids.size(1) :], skip_special_tokens=True)


def answer_text(question: Question, prediction: Prediction) -> str:
    """The chosen option, or what was written where there is nothing to choose from."""
    is_choice = len(question.options) > 1
    return (question.options[prediction.choice] if is_choice else prediction.generation or "").strip()


def answers_of(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Answers:
    """What a metric scores."""
    pairs = list(zip(questions, predictions))
    num_options = max(len(question.options) for question in questions)
    return Answers(
        texts=[answer_text(*pair) for pair in pairs],
        references=[question.completion.strip() for question in questions],
        prompts=[question.prompt for question in questions],
        choices=np.array([(p.choice, q.answer) for q, p in pairs]) if num_options > 1 else None,
        num_options=num_options,
    )


def score_predictions(
    metrics: Sequence[str], questions: Sequence[Question], predictions: Sequence[Prediction]
) -> tuple[dict[str, float], dict[str, str]]:
    """Each score, the target's perplexity a token and n; and of scores that were left out the reason."""
    answers = answers_of(questions, predictions)
    scored, left_out = score_rows(metrics, answers)
    scores = {**totals(scored), "perplexity": perplexity(questions, predictions)}
    if answers.choices is not None and predictions[0].generation is not None:
        valid = [is_an_option(p.generation, q) for p, q in zip(predictions, questions)]
        scores["generations_that_are_options"] = sum(valid) / len(valid)
    return {**scores, "n": len(questions)}, left_out


def perplexity(questions: Sequence[Question], predictions: Sequence[Prediction]) -> float:
    """exp of the mean over tokens of -log P(target | prompt, warmup, separator)."""
    nll = -sum(prediction.option_logps[q.answer] for q, prediction in zip(questions, predictions))
    return float(np.exp(nll / sum(prediction.target_tokens for prediction in predictions)))


def is_an_option(generation: str, question: Question) -> bool:
    """Whether a free generation is one of the question's options, apart from white space at its ends."""
    return generation.strip() in {option.strip() for option in question.options}
