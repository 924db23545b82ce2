"""The predictor: a causal language model answers questions, with or without a warmup.

It chooses the option with the highest log-likelihood after the prompt (and, for a warmup adapter, after its greedy
warmup and the separator), and it generates an answer freely. This module knows no trainer and no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.evaluation.metrics import Array, RowStatistics, score_rows, totals
from warmup_peft.evaluation.tasks import Question, Row, as_answers, is_multiple_choice
from warmup_peft.files import first_line
from warmup_peft.inference.chat import (
    ANSWER,
    Messages,
    Prompt,
    all_behind,
    find_format,
    is_conversation,
    prompt_token_ids,
    render,
    render_answer,
)
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import append_warmups, pad_token_id, write_warmups
from warmup_peft.inference.loading import context_length
from warmup_peft.method.branches import Tokens, Warmups, lay_out_branches, left_padded
from warmup_peft.method.diagnostics import num_shared_words
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.rows import CachedPrompt
from warmup_peft.method.scoring import branch_logps

ROOM_FOR_MORE = 32  # tokens of an answer beyond the longest reference, to see where it goes on

Ids = list[int]
Progress = Callable[[Sequence[Any], str], Iterable[Any]]


def no_progress(batches: Sequence[Any], what: str) -> Iterable[Any]:
    return batches


def bars(name: str) -> Progress:
    return lambda batches, what: tqdm(batches, desc=f"{name}: {what}", unit="batch")


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question.

    Attributes:
        choice: the option with the highest log-likelihood.
        option_logps: log-likelihood of each option in nats, summed over its tokens. A task without options has one
            entry, for the reference.
        target_tokens: number of tokens of the right option.
        warmup, warmup_ids: text and token ids of the warmup; empty if there is none.
        generation: the freely generated answer; None if none was asked for.
    """

    choice: int
    option_logps: tuple[float, ...]
    target_tokens: int
    warmup: str
    warmup_ids: tuple[int, ...]
    generation: str | None


class Written(NamedTuple):
    """Token ids of the warmups, and texts of the generated answers (None if none was asked for)."""

    warmup_ids: list[Ids]
    texts: list[str | None]


class Marks(NamedTuple):
    """Token ids before and behind a thought that a model writes by itself, and those in place of a thought."""

    opening_ids: tuple[int, ...]
    separator_ids: tuple[int, ...]
    skipped_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Predictor:
    """A model in its current state, and how it answers questions.

    Attributes:
        warmup_config: how the model writes its warmup. With None, or a limit of 0 tokens, it answers directly.
        batch_size: number of questions per batch.
        instead: replaces the warmups that the model wrote (`shuffled`, `empty`); None keeps them.
        progress: wraps the list of batches to show progress; its second argument names the step.
        marks: what the model itself writes around a thought (or warmup) that is no part of its answer; by default what
            the chat template has, after conversations.
        room_to_think: tokens that an answer may have beyond its limit where there are such marks.
        template: `chat_template_kwargs` of conversations.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    warmup_config: WarmupConfig | None
    batch_size: int = 32
    instead: Callable[[list[Ids]], list[Ids]] | None = None
    progress: Progress = no_progress
    marks: Marks | None = None
    room_to_think: int = 0
    template: Mapping[str, Any] = field(default_factory=dict)

    def answer(
        self, questions: Sequence[Question], max_new_tokens: int | None = 32, warmup_ids: list[Ids] | None = None
    ) -> list[Prediction]:
        """A prediction for each question, in their order. The arguments are those of `write`."""
        return self.score(questions, self.write(questions, max_new_tokens, warmup_ids))

    def write(
        self, questions: Sequence[Question], max_new_tokens: int | None = 32, warmup_ids: list[Ids] | None = None
    ) -> Written:
        """Generate warmups and answers, both greedily.

        Args:
            max_new_tokens: maximum length of an answer; with 0, none is generated, and None is the `answer_limit`.
            warmup_ids: one warmup per question to use in place of the model's own.
        """
        warmup_ids = self.warmups(questions) if warmup_ids is None else warmup_ids
        if max_new_tokens is None:
            max_new_tokens = answer_limit(self.tokenizer, [question.completion for question in questions])
        return Written(warmup_ids, self._answers(questions, warmup_ids, max_new_tokens))

    def score(self, questions: Sequence[Question], written: Written) -> list[Prediction]:
        """Score the options of each question after its warmup, and choose one.

        Raises:
            FloatingPointError: the model's logits are NaN.
        """
        return [
            Prediction(
                choice=max(range(len(logps)), key=logps.__getitem__),
                option_logps=logps,
                target_tokens=len(continuation_ids(self.tokenizer, question.prompt, question.completion)),
                warmup=self.tokenizer.decode(ids),
                warmup_ids=tuple(ids),
                generation=text,
            )
            for question, ids, text, logps in zip(questions, *written, self.logps(questions, written.warmup_ids))
        ]

    def warmups(self, questions: Sequence[Question]) -> list[Ids]:
        """Token ids of the warmup that precedes each answer."""
        if not self.has_warmups:
            return empty(questions)
        prompts = self._prompt_ids(questions)
        own = write_each(self.model, prompts, self._config, self.batch_size, self.progress)
        return own if self.instead is None else self.instead(own)

    def sampled_warmups(self, questions: Sequence[Question], count: int, **sampling: Any) -> list[list[Ids]]:
        """`count` times a sampled warmup of the model's own for each question.

        Args:
            sampling: `temperature`, `top_k`, `top_p`, `min_p` as for `generate`.
        """
        prompts, size = self._prompt_ids(questions), len(questions)
        every = write_each(
            self.model, prompts * count, self._config, self.batch_size, self.progress, do_sample=True, **sampling
        )
        return [every[i * size : (i + 1) * size] for i in range(count)]

    def logps(self, questions: Sequence[Question], warmup_ids: list[Ids]) -> list[tuple[float, ...]]:
        """Log-likelihood in nats of the options of each question after these warmups, summed over their tokens."""
        scores: dict[int, tuple[float, ...]] = {}
        encoder = PromptEncoder(self.model, fast=CachedPrompt)
        prompts = self._prompt_ids(questions)
        around = separator_of(self._config, self.model.device)
        before = torch.tensor(ids_before_answer(self.tokenizer, questions[0], self._config), dtype=torch.long)
        between = torch.cat([around, before.to(around.device)])
        for indices, prompt, warmups in batches_with(
            prompts, warmup_ids, self.model.device, self.batch_size, self.progress, "scores"
        ):
            chosen = [questions[i] for i in indices]
            options = [all_continuations(self.tokenizer, each.prompt, each.options) for each in chosen]
            with evaluation_mode(self.model):
                logps = option_logps(encoder, prompt, warmups, between, options)
            check_logps(logps)
            scores |= dict(zip(indices, map(tuple, logps.tolist())))
        return [scores[i] for i in range(len(questions))]

    def after_replaced(
        self, questions: Sequence[Question], predictions: Sequence[Prediction]
    ) -> dict[str, list[Prediction]]:
        """Predictions after no warmup (`none`) and after shuffled ones (`others`), with no written answer.

        They are empty if there are no warmups.
        """
        if not self.has_warmups:
            return {}
        warmup_ids = [list(prediction.warmup_ids) for prediction in predictions]
        return {
            "none": self.answer(questions, 0, empty(questions)),
            "others": self.answer(questions, 0, shuffled(warmup_ids)),
        }

    def warmup_metrics(
        self,
        questions: Sequence[Question],
        predictions: Sequence[Prediction],
        replaced: Mapping[str, Sequence[Prediction]] | None = None,
    ) -> dict[str, float]:
        """Metrics of the warmups on these questions; empty if there are no warmups.

        `gain_over_none` and `gain_over_others` are the mean `gains`. `overlap` is the share of the warmups' words that
        the right option has.

        Args:
            replaced: what `after_replaced` returned, if that is known; else only the right options are scored.
        """
        if not self.has_warmups:
            return {}
        if replaced is None:
            replaced = self.after_replaced([as_target(question) for question in questions], predictions)
        warmup_ids = [list(prediction.warmup_ids) for prediction in predictions]
        shared = [num_shared_words(p.warmup, q.completion) for q, p in zip(questions, predictions)]
        return {
            **{name: float(np.mean(each)) for name, each in gains(questions, predictions, replaced).items()},
            "overlap": sum(count for count, _ in shared) / max(1, sum(count for _, count in shared)),
            "distinct": len(set(map(tuple, warmup_ids))) / len(warmup_ids),
            "mean_length": float(np.mean([len(ids) for ids in warmup_ids])),
        }

    @property
    def has_warmups(self) -> bool:
        """Whether anything but the separator precedes the answers."""
        return self._config is not None and self.instead is not empty

    @property
    def _config(self) -> WarmupConfig | None:
        config = self.warmup_config
        return None if config is None or config.max_warmup_length == 0 else config

    def _prompt_ids(self, questions: Sequence[Question]) -> list[Ids]:
        return prompt_ids(self.tokenizer, questions, self._config, self.template)

    def _answers(self, questions: Sequence[Question], warmup_ids: list[Ids], max_new_tokens: int) -> list[str | None]:
        if max_new_tokens == 0:
            return [None] * len(questions)
        marks = self.marks
        if marks is None and is_conversation(questions[0].prompt):
            marks = thought_marks(self.tokenizer)
        return answer_each(
            self.model,
            self.tokenizer,
            self._prompt_ids(questions),
            warmup_ids,
            self._config,
            max_new_tokens + (self.room_to_think if marks else 0),
            self.batch_size,
            self.progress,
            marks=marks,
        )


def shuffled(warmup_ids: list[Ids]) -> list[Ids]:
    """Shuffled warmups: each row gets the warmup of the row before it."""
    return [warmup_ids[-1], *warmup_ids[:-1]]


def dots(warmup_ids: list[Ids], dot: int) -> list[Ids]:
    """The token `dot` in place of every token: as much to compute on, and nothing to read."""
    return [[dot] * len(ids) for ids in warmup_ids]


def empty(rows: Sequence[Any]) -> list[Ids]:
    """Empty warmups: the separator follows the prompt directly."""
    return [[] for _ in rows]


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


def continuation_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str) -> list[int]:
    """Token ids of `text` after `prompt`, and after what the chat template puts between a conversation and an answer.

    They are those of `text` alone if the tokenizer merges tokens across the boundary.
    """
    return all_continuations(tokenizer, prompt, [text])[0]


def all_continuations(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
    """`continuation_ids` of several texts."""
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


def check_logps(logps: Tensor) -> None:
    """Raise FloatingPointError if one is NaN, since a comparison with NaN would always choose the first option."""
    if logps.isnan().any():
        raise FloatingPointError(
            "The model's logits are NaN, so its answers cannot be scored. Train it again with a lower learning_rate, "
            "or load it in bfloat16 or float32 where it is in float16."
        )


# ---- Scores ----


@dataclass(frozen=True)
class Scores:
    """The scores of a list of predictions.

    Attributes:
        totals: score of each metric, and the perplexity.
        statistics: row statistics of each metric.
        left_out: the reason for each metric that was left out.
    """

    totals: dict[str, float]
    statistics: dict[str, RowStatistics]
    left_out: dict[str, str]


def score_predictions(
    metrics: Sequence[str], questions: Sequence[Question], predictions: Sequence[Prediction]
) -> Scores:
    texts = [answer_text(question, prediction) for question, prediction in zip(questions, predictions)]
    answers = as_answers(questions, texts, [prediction.choice for prediction in predictions])
    statistics, left_out = score_rows(metrics, answers)
    return Scores({**totals(statistics), "perplexity": perplexity(questions, predictions)}, statistics, left_out)


def answer_text(question: Question, prediction: Prediction) -> str:
    """The chosen option, or the generated answer if the question has no options."""
    is_choice = len(question.options) > 1
    return (question.options[prediction.choice] if is_choice else prediction.generation or "").strip()


def as_target(question: Question) -> Question:
    """The question with the right option alone."""
    return dataclasses.replace(question, options=(question.completion,), answer=0)


def target_logps(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Array:
    """(n,) log-likelihood of each right option, in nats. Of one option only, that is the right one."""
    logps = [prediction.option_logps for prediction in predictions]
    return np.array([each[q.answer if len(each) > 1 else 0] for q, each in zip(questions, logps)])


def gains(
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    replaced: Mapping[str, Sequence[Prediction]],
) -> dict[str, Array]:
    """Each row's gain in the log-likelihood of the right option, in nats, over what `after_replaced` returned.

    So `gain_over_none` is over no warmup, and `gain_over_others` over a shuffled one.
    """
    own = target_logps(questions, predictions)
    return {f"gain_over_{name}": own - target_logps(questions, others) for name, others in replaced.items()}


def perplexity(questions: Sequence[Question], predictions: Sequence[Prediction]) -> float:
    """exp of the mean over tokens of -log P(target | prompt, warmup, separator)."""
    nll = -sum(prediction.option_logps[q.answer] for q, prediction in zip(questions, predictions))
    return float(np.exp(nll / sum(prediction.target_tokens for prediction in predictions)))


def is_an_option(generation: str, question: Question) -> bool:
    """Whether a generated answer equals one of the options, ignoring white space at its ends."""
    return generation.strip() in {option.strip() for option in question.options}


def share_of_options(questions: Sequence[Question], predictions: Sequence[Prediction]) -> float | None:
    """Share of the generated answers that equal one of the options; None if there are no options or no answers."""
    if not is_multiple_choice(questions) or predictions[0].generation is None:
        return None
    return sum(is_an_option(p.generation, q) for q, p in zip(questions, predictions)) / len(questions)


def as_rows(
    questions: Sequence[Question], predictions: Sequence[Prediction], row_scores: Iterable[float]
) -> list[Row]:
    return [
        Row(
            prompt=question.text,
            reference=question.completion.strip(),
            warmup=prediction.warmup.strip(),
            answer=answer_text(question, prediction),
            score=float(score),
            target_nll=-prediction.option_logps[question.answer],
            target_tokens=prediction.target_tokens,
        )
        for question, prediction, score in zip(questions, predictions, row_scores)
    ]
