"""Draws warmups from a causal language model, and says how likely a draw was. Knows no objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from warmup_peft.method.branches import Warmups, prefix_mask
from warmup_peft.method.objective import token_logps
from warmup_peft.method.prefix import SharedPrefix
from warmup_peft.method.scoring import PlainRows, evaluation_mode, without_peft_wrapper


class NaNLogitsError(FloatingPointError):
    """Nothing can be drawn; `rows` are those of the batch."""

    def __init__(self, rows: list[int]):
        super().__init__(f"The logits are NaN, rows {rows} of the batch.")
        self.rows = rows


@dataclass(frozen=True)
class SamplingSettings:
    """The law warmups are drawn from.

    Attributes:
        num_warmups: K, how many for each prompt.
        max_length: W, tokens at most.
        end_token_ids: tokens that end a warmup.
        separator_ids: a warmup also ends where the model writes the separator by itself.
        pad_token_id: what stands behind a warmup's end.
        num_beams: more than 1 is beam search with sampling, the paper's way; its draws are not independent.
        temperature, top_k, top_p, min_p: as in `transformers.GenerationConfig`; 1, 0, 1 and None sample the model's
            own law.
        do_sample: False decodes greedily (or by plain beam search).
    """

    num_warmups: int
    max_length: int
    end_token_ids: tuple[int, ...]
    separator_ids: tuple[int, ...]
    pad_token_id: int
    num_beams: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    do_sample: bool = True

    def generation_config(self) -> GenerationConfig:
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return GenerationConfig(
            max_new_tokens=self.max_length,
            do_sample=self.do_sample,
            num_beams=self.num_beams,
            num_return_sequences=self.num_warmups,
            eos_token_id=list(self.end_token_ids) or None,
            pad_token_id=self.pad_token_id,
            **(sampling if self.do_sample else {}),
        )

    def draw(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1) tokens drawn from this law, and their log-probabilities (N, 1) in nats.

        Without `do_sample` the likeliest tokens, which are certain.
        """
        scores = logits_NV.float() / self.temperature
        if not self.do_sample:
            return scores.argmax(-1, keepdim=True), scores.new_zeros(len(scores), 1)
        law_NV = self._truncate(scores).softmax(-1)
        drawn = torch.multinomial(law_NV, num_samples=1)
        return drawn, law_NV.gather(1, drawn).log()

    def logps(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        """(N,) log-probabilities in nats of tokens that `draw` gave, temperature and truncation included.

        A drawn token always belongs to its truncated set, even where rounding would now put it just outside.
        """
        logits_NV = logits_NV.float() / self.temperature
        if not self._truncations():
            return token_logps(logits_NV, ids_N)
        is_out = self._truncate(logits_NV.detach()).isinf()
        is_drawn = F.one_hot(ids_N, logits_NV.size(-1)).bool()
        return token_logps(logits_NV.masked_fill(is_out & ~is_drawn, -torch.inf), ids_N)

    def _truncate(self, scores_NV: Tensor) -> Tensor:
        for warper in self._truncations():
            scores_NV = warper(None, scores_NV)
        return scores_NV

    def _truncations(self) -> list[LogitsProcessor]:
        return [
            *([TopKLogitsWarper(self.top_k)] if self.top_k else []),
            *([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []),
            *([MinPLogitsWarper(self.min_p)] if self.min_p else []),
        ]


@contextmanager
def only_this_generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Keep the model's own generation defaults (a chat model's temperature, top-p, ...) out of the law."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def sample_warmups(model: PreTrainedModel, encoded: PlainRows | SharedPrefix, settings: SamplingSettings) -> Warmups:
    """Draw K warmups for each encoded prompt, without gradient and in eval mode.

    Decoding goes on from the prompts' keys and values, so that no prompt is encoded again. Returns warmups of width W
    (less when all of them ended earlier); those that beam search found have no `logp`.
    """
    model = without_peft_wrapper(model)
    shape = (len(encoded.prompt.ids), settings.num_warmups)
    with evaluation_mode(model):
        if settings.num_beams > 1:
            return end_warmups(_search_beams(model, encoded, settings).unflatten(0, shape), settings)
        drawn, logps = (x.unflatten(0, shape) for x in _draw_tokens(model, encoded, settings))
    return end_warmups(drawn, settings, logps)


def _draw_tokens(
    model: PreTrainedModel, encoded: PlainRows | SharedPrefix, settings: SamplingSettings
) -> tuple[Tensor, Tensor]:
    """(B * K, W) independent draws and each token's log-probability.

    The first token comes from the prompt's own forward; stops when every row has ended.
    """
    num_copies = settings.num_warmups
    mask = encoded.prompt.mask.repeat_interleave(num_copies, 0)
    position = mask.sum(1, keepdim=True)
    cache = encoded.prompt_cache(num_copies)
    logits = encoded.first_logits().repeat_interleave(num_copies, 0)
    drawn, logps = mask.new_empty(len(mask), 0, dtype=torch.long), logits.new_empty(len(mask), 0, dtype=torch.float32)
    while True:
        is_nan = logits.isnan().any(-1)
        if is_nan.any():
            raise NaNLogitsError(sorted({row // num_copies for row in is_nan.nonzero().flatten().tolist()}))
        token, logp = settings.draw(logits)
        drawn, logps = torch.cat([drawn, token], dim=1), torch.cat([logps, logp], dim=1)
        if drawn.size(1) == settings.max_length or end_warmups(drawn, settings).stopped.all():
            return drawn, logps
        mask = torch.cat([mask, torch.ones_like(position, dtype=torch.bool)], dim=1)
        logits = model(
            input_ids=drawn[:, -1:],
            attention_mask=mask.long(),
            position_ids=position + drawn.size(1) - 1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]


def _search_beams(model: PreTrainedModel, encoded: PlainRows | SharedPrefix, settings: SamplingSettings) -> Tensor:
    """(B * K, W) by transformers' beam search, with sampling or without."""
    with only_this_generation_config(model, settings.generation_config()):
        sequences = model.generate(
            input_ids=encoded.prompt.ids,
            attention_mask=encoded.prompt.mask.long(),
            past_key_values=encoded.prompt_cache(settings.num_beams, without_last=True),
        )
    return sequences[:, encoded.prompt.ids.size(1) :]


def end_warmups(ids_BKW: Tensor, settings: SamplingSettings, logps_BKW: Tensor | None = None) -> Warmups:
    """Cut each drawn sequence (..., W) at its first end token or separator; with `logp` where tokens have theirs."""
    width = ids_BKW.size(-1)
    end_tokens = torch.tensor(settings.end_token_ids, dtype=torch.long, device=ids_BKW.device)
    end_at = _first(torch.isin(ids_BKW, end_tokens), width)
    separator = torch.tensor(settings.separator_ids, device=ids_BKW.device)
    separator_at = end_at.new_full(end_at.shape, width)
    if len(separator) <= width:
        separator_at = _first((ids_BKW.unfold(-1, len(separator), 1) == separator).all(-1), width)
    lengths = torch.minimum(end_at, separator_at)
    num_stop_tokens = torch.where(separator_at < end_at, len(separator), 1) * (lengths < width)
    num_decisions = lengths + num_stop_tokens
    if logps_BKW is None:
        return Warmups(ids_BKW, lengths, num_decisions)
    logp = logps_BKW.masked_fill(~prefix_mask(num_decisions, width), 0.0).sum(-1)
    return Warmups(ids_BKW, lengths, num_decisions, logp)


def _first(hits: Tensor, default: int) -> Tensor:
    """Index of the first hit on the last axis, `default` where there is none."""
    return torch.where(hits.any(-1), hits.long().argmax(-1), default)
