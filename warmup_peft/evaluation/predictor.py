"""The predictor: a causal language model answers questions, with or without a warmup.

It chooses the option with the highest log-likelihood after the prompt (and, for a warmup adapter, after its greedy
warmup and the separator), and it generates an answer freely. This module knows no trainer and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.evaluation.answering import (
    Ids,
    Marks,
    OnceEach,
    Progress,
    all_continuations,
    answer_each,
    answer_limit,
    batches_with,
    check_logps,
    ids_before_answer,
    no_progress,
    option_logps,
    prompt_ids,
    separator_of,
    thought_marks,
    write_each,
)
from warmup_peft.evaluation.prediction import Prediction, as_target, gains
from warmup_peft.evaluation.tasks import Question
from warmup_peft.inference.chat import is_conversation
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.method.diagnostics import num_shared_words
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.rows import CachedPrompt


class Written(NamedTuple):
    """Token ids of the warmups, and texts of the generated answers (None if none was asked for)."""

    warmup_ids: list[Ids]
    texts: list[str | None]


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
        logps_each = self.logps(questions, written.warmup_ids)
        return [
            Prediction(
                choice=max(range(len(logps)), key=logps.__getitem__),
                option_logps=logps,
                target_tokens=len(options[question.answer]),
                warmup=self.tokenizer.decode(ids),
                warmup_ids=tuple(ids),
                generation=text,
            )
            for question, ids, text, logps, options in zip(
                questions, *written, logps_each, self._option_ids(questions)
            )
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
            options = self._option_ids([questions[i] for i in indices])
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
            replaced = self.after_replaced(self._targets(questions), predictions)
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

    @cached_property
    def _prompt_ids(self) -> Callable[[Sequence[Question]], list[Ids]]:
        return OnceEach(lambda questions: prompt_ids(self.tokenizer, questions, self._config, self.template))

    @cached_property
    def _option_ids(self) -> Callable[[Sequence[Question]], list[list[Ids]]]:
        return OnceEach(
            lambda questions: [all_continuations(self.tokenizer, each.prompt, each.options) for each in questions]
        )

    @cached_property
    def _targets(self) -> Callable[[Sequence[Question]], list[Question]]:
        """The same objects every time, whose token ids are known the second time."""
        return OnceEach(lambda questions: [as_target(question) for question in questions])

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
