"""Samples warmups from the base: the model with its adapter off. Checks samples of a server against it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.method.branches import Tokens, Warmups, left_padded
from warmup_peft.method.model import adapter_off, evaluation_mode, random_numbers_from
from warmup_peft.method.prefix import rope_limit
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler
from warmup_peft.training.dataset import tokenizer_fingerprint
from warmup_peft.training.engine import TOLERANCE, nats_a_token, sampled_logps
from warmup_peft.training.pool import SampleFunction

IDENTITY = ("max_length", "end_token_ids", "separator_ids", "temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class BaseSampler:
    """Samples from the model with its adapter off.

    Attributes:
        model: without a wrapper for distributed training.
        sampling: the distribution, with M for its `num_warmups`.
        autocast: a context to compute in, as the training has it.
    """

    model: PreTrainedModel | PeftModel
    sampling: SamplingSettings
    autocast: Callable[[], AbstractContextManager]

    def identity(self, fingerprint: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What the samples depend on beside their prompts."""
        return {
            "base model": fingerprint,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            **{name: getattr(self.sampling, name) for name in IDENTITY},
            **({} if self.sampling.closing_id is None else {"closing_id": self.sampling.closing_id}),
        }

    def sample(self, prompts: list[np.ndarray], seed: int) -> Warmups:
        """(B, M) warmups of these prompts."""
        with random_numbers_from(seed, self.model.device), adapter_off(self.model), self.autocast():
            return self._sampler(self.model, self._encode(self._pad(prompts)), self.sampling)

    @cached_property
    def _sampler(self) -> WarmupSampler:
        return WarmupSampler()

    @cached_property
    def _rope_limit(self) -> int | None:
        return rope_limit(self.model)

    def _encode(self, prompt: Tokens) -> PlainRows:
        room = self.sampling.max_length + len(self.sampling.separator_ids)
        is_beyond = self._rope_limit is not None and prompt.ids.size(1) + room > self._rope_limit
        return PlainRows(self.model, self.model, prompt, room if is_beyond else None)

    def checking(self, sample: SampleFunction) -> SampleFunction:
        """Wrap an external sampler: score its first batch and refuse it where the log-probabilities disagree.

        Raises:
            ValueError: when it samples, log-probabilities that are not this model's.
        """
        is_first = True

        def checked(prompts: list[np.ndarray], seed: int) -> Warmups:
            nonlocal is_first
            warmups = sample(prompts, seed)
            if is_first:
                self._check(self._pad(prompts), warmups)
                is_first = False
            return warmups

        return checked

    def _check(self, prompt: Tokens, warmups: Warmups) -> None:
        warmups = Warmups(*(None if x is None else x.to(self.model.device) for x in warmups))
        largest = warmups.ids.max()
        if largest >= self.model.get_input_embeddings().num_embeddings:
            raise ValueError(f"The server sampled the token {largest}, which this base model does not know.")
        with evaluation_mode(self.model), adapter_off(self.model), self.autocast():
            own_BK = sampled_logps(self._encode(prompt), warmups, self.sampling)
        difference = nats_a_token(own_BK - warmups.logp, warmups.num_decisions)
        if not difference <= TOLERANCE:  # NaN too
            raise ValueError(
                f"The sampled log-probabilities differ from this base model's by {difference:.2f} nats a token. "
                "Serve the very model of model_name_or_path, without an adapter."
            )

    def _pad(self, prompts: list[np.ndarray]) -> Tokens:
        return left_padded([ids.tolist() for ids in prompts], self.model.device)
