"""Before training with `warmup_source: base`: every prompt's warmups from the model with its adapter off, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.method.branches import Branches, Tokens, Warmups, left_padded, prefix_mask, sums_where
from warmup_peft.method.model import adapter_off, evaluation_mode, random_numbers_from
from warmup_peft.method.objective import token_logps
from warmup_peft.method.prefix import rope_limit
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.dataset import tokenizer_fingerprint
from warmup_peft.training.pool import POOL_NAME, DrawFunction, WarmupPool

logger = logging.getLogger(__name__)

LAW = ("max_length", "end_token_ids", "separator_ids", "temperature", "top_k", "top_p", "min_p")
DRAW_TOLERANCE = 0.3  # nats a token; a 4-bit model and its 16-bit original differ by about a tenth


@dataclass(frozen=True)
class BaseModel:
    """The model with its adapter off, as a source of warmups.

    Attributes:
        model: without a wrapper for distributed training.
        sampling: the law, with M for its `num_warmups`.
        autocast: a context to compute in, as the training has it.
    """

    model: PreTrainedModel | PeftModel
    sampling: SamplingSettings
    autocast: Callable[[], AbstractContextManager]

    def law(self, fingerprint: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """What warmups depend on beside their prompts."""
        return {
            "base model": fingerprint,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            **{name: getattr(self.sampling, name) for name in LAW},
        }

    def draw(self, prompts: list[np.ndarray], seed: int) -> Warmups:
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

    def checking(self, draw: DrawFunction) -> DrawFunction:
        """The same draws by somebody else; the first are scored here.

        Raises:
            ValueError: when it draws, log-probabilities that are not this model's.
        """
        is_first = True

        def checked(prompts: list[np.ndarray], seed: int) -> Warmups:
            nonlocal is_first
            warmups = draw(prompts, seed)
            if is_first:
                self._check(self._pad(prompts), warmups)
                is_first = False
            return warmups

        return checked

    def _check(self, prompt: Tokens, warmups: Warmups) -> None:
        drawn = (warmups.ids, warmups.num_decisions, warmups.logp)
        ids, num_decisions, logp_BK = (x.to(self.model.device) for x in drawn)
        is_drawn = prefix_mask(num_decisions, ids.size(-1))
        if ids.max() >= self.model.get_input_embeddings().num_embeddings:
            raise ValueError(f"The server drew the token {ids.max()}, which this base model does not know.")
        with evaluation_mode(self.model), adapter_off(self.model), self.autocast():
            logits = self._encode(prompt).predictions(Branches(ids, is_drawn, is_drawn), is_drawn)
        own_BK = sums_where(is_drawn, token_logps(logits, ids[is_drawn]))
        difference = ((own_BK - logp_BK).abs().sum() / num_decisions.sum()).item()
        if not difference <= DRAW_TOLERANCE:  # NaN too
            raise ValueError(
                f"The server's log-probabilities differ from this base model's by {difference:.2f} nats a token. "
                "Serve the very model of model_name_or_path, without an adapter."
            )

    def _pad(self, prompts: list[np.ndarray]) -> Tokens:
        return left_padded([ids.tolist() for ids in prompts], self.model.device)


def fill_pool(
    base: BaseModel,
    prompts: list[np.ndarray],
    law: dict[str, Any],
    args: WarmupSFTConfig,
    accelerator: Accelerator,
    draw: DrawFunction | None = None,
    *,
    has_moved: bool = False,
) -> WarmupPool:
    """The pool of a training, after what it lacked was drawn: by `base`, or by `draw`.

    Args:
        law: what the warmups depend on, as `BaseModel.law` gives it for the weights that the training started with.
        has_moved: whether `base` has been trained since and cannot draw for them any more.

    Raises:
        ValueError: a pool of another model, tokenizer or law, a file that was cut short, a base model all of whose
            warmups are empty or equal, or missing warmups of a base that has moved.
    """
    folder = Path(args.warmup_pool or Path(args.output_dir, POOL_NAME))
    pool = WarmupPool(folder, law, args.warmup_pool_size)
    accelerator.wait_for_everyone()  # all ranks have seen the same files before one writes another
    missing, is_main = pool.missing(prompts), accelerator.is_main_process
    if missing and has_moved:
        raise ValueError(
            f"{len(missing)} prompts have no warmups in {folder}, and the whole model has been trained since this "
            "trainer started, so its base is gone. Call draw_warmups() before the first training, or make a new "
            "trainer with the model that is to be the base."
        )
    if missing and len(pool) and is_main:
        logger.warning("%d prompts have no warmups in %s yet; they are drawn now.", len(missing), folder)
    is_quiet = not missing or args.disable_tqdm or not is_main
    with tqdm(total=len(missing), desc="drawing warmups", unit="prompt", disable=is_quiet) as bar:
        pool.add(
            missing,
            draw or base.draw,
            seed=args.seed,
            prompts_per_batch=max(1, args.warmup_pool_batch_size // args.warmup_pool_size),
            share=(accelerator.process_index, accelerator.num_processes),
            on_progress=lambda count: bar.update(min(count * accelerator.num_processes, len(missing) - bar.n)),
        )
    accelerator.wait_for_everyone()
    if missing:
        pool.load()
    useless = pool.why_useless()
    if useless:
        raise ValueError(
            f"Nothing can be learnt with warmup_source base: {useless}. Choose a base model (or a prompt) after which "
            "it has something to say, or set warmup_source to 'policy'."
        )
    return pool
