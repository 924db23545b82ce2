"""Samples warmups from a causal language model, and says how likely a sample was. Knows no objective."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from warmup_peft.files import first_line
from warmup_peft.method.branches import Branches, Warmups, prefix_mask
from warmup_peft.method.encoding import PROBE_SEED, Encoded, alone, distance, probe_prompts, tolerance_of
from warmup_peft.method.model import evaluation_mode, random_numbers_from, to_call
from warmup_peft.method.objective import token_logps
from warmup_peft.method.predictions import Predictions
from warmup_peft.method.prefix import SharedPrefix
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.ways import WAYS, CachedDecoding, RowDecoding, from_kept_keys

logger = logging.getLogger(__name__)

NO_TOKEN = -1
NO_PROBABILITY = -1e9  # a logit; finite, so that divergences stay so
TOKENS_WORTH_A_COPY = 16


@functools.lru_cache(maxsize=32)
def ids_on(device: torch.device, ids: tuple[int, ...]) -> Tensor:
    """Token ids on a device, brought there once: bringing them to an accelerator waits for it."""
    with torch.inference_mode(False):  # whoever asks first, the gradient may need them later
        return torch.tensor(ids, dtype=torch.long, device=device)


class NaNLogitsError(FloatingPointError):
    """Nothing can be sampled; `rows` are those of the batch."""

    def __init__(self, rows: list[int]):
        super().__init__(f"The logits are NaN, rows {rows} of the batch.")
        self.rows = rows


@dataclass(frozen=True)
class SamplingSettings:
    """The distribution that warmups are sampled from.

    Attributes:
        num_warmups: K, how many for each prompt.
        max_length: W, tokens at most.
        end_token_ids: tokens that end a warmup.
        separator_ids: a warmup also ends where the model writes the separator by itself.
        pad_token_id: what stands behind a warmup's end.
        num_beams: more than 1 is beam search with sampling, the paper's way; its samples are not independent.
        temperature, top_k, top_p, min_p: as in `transformers.GenerationConfig`; 1, 0, 1 and None sample the model's
            own distribution.
        do_sample: False decodes greedily (or by plain beam search).
        closing_id: where the model learns to write the separator by itself, the separator's first token. Ending a
            warmup is then one event, whichever of the end tokens or this one it is, and counted as this one.
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
    closing_id: int | None = None

    def ending_ids(self, device: torch.device) -> Tensor:
        """The end tokens, and the closing one first."""
        others = (token for token in self.end_token_ids if token != self.closing_id)
        return ids_on(device, (*(() if self.closing_id is None else (self.closing_id,)), *others))

    def with_one_end(self, logits_NV: Tensor) -> Tensor:
        """Logits in float32 in which the closing token has the probability of all end tokens, and they have none."""
        if self.closing_id is None:
            return logits_NV.float()
        columns = self.ending_ids(logits_NV.device)
        ends_NE = logits_NV[:, columns].float()
        filling = torch.full_like(ends_NE, NO_PROBABILITY)
        filling[:, 0] = 0
        closing_N1 = ends_NE.logsumexp(1, keepdim=True)
        return logits_NV.float().index_copy(1, columns, closing_N1 + filling)

    def end_probabilities(self, logits_NV: Tensor) -> Tensor:
        """(N,) probabilities of ending here."""
        ends_NE = logits_NV[:, self.ending_ids(logits_NV.device)]
        return (ends_NE.float().logsumexp(1) - logits_NV.float().logsumexp(1)).exp()

    def ending_logps(self, logits_NV: Tensor, ended_N: Tensor) -> Tensor:
        """(N,) e log P(closing token) + (1 - e) log P(no end) in nats, where e, 0 to 1, is whether a warmup ended."""
        ends = self.ending_ids(logits_NV.device)
        going_on_N = logits_NV.float().index_fill(1, ends, NO_PROBABILITY).logsumexp(1)
        closing_N = logits_NV[:, self.closing_id].float()
        return ended_N * closing_N + (1 - ended_N) * going_on_N - logits_NV.float().logsumexp(1)

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

    def sample(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1) tokens sampled from this distribution, and their log-probabilities (N, 1) in nats.

        Without `do_sample` the likeliest tokens, which are certain. Where logits are NaN, so is the log-probability.
        """
        scores = self.with_one_end(logits_NV) / self.temperature
        if not self.do_sample:
            return scores.argmax(-1, keepdim=True), torch.where(scores.isnan().any(-1, keepdim=True), torch.nan, 0.0)
        probabilities_NV = self._truncate(scores).softmax(-1)
        # what torch.multinomial computes for a single sample, without waiting for the device to check its input
        sampled = (probabilities_NV / torch.empty_like(probabilities_NV).exponential_()).argmax(-1, keepdim=True)
        return sampled, probabilities_NV.gather(1, sampled).log()

    def ends_on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A function: the last tokens (N, S) -> (N,) whether the last one ends a warmup or completes the separator."""
        end_tokens, separator = ids_on(device, self.end_token_ids), ids_on(device, self.separator_ids)

        def ends(last_NS: Tensor) -> Tensor:
            is_end_N = torch.isin(last_NS[:, -1], end_tokens)
            if last_NS.size(1) < len(separator):
                return is_end_N
            return is_end_N | (last_NS == separator).all(-1)

        return ends

    def logps(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        """(N,) log-probabilities in nats of tokens that `sample` gave, temperature and truncation included.

        A sampled token always belongs to its truncated set, even where rounding would now put it just outside.
        """
        if self.closing_id is not None:
            ids_N = torch.where(torch.isin(ids_N, self.ending_ids(ids_N.device)), self.closing_id, ids_N)
        logits_NV = self.with_one_end(logits_NV) / self.temperature
        if not self._truncations():
            return token_logps(logits_NV, ids_N)
        is_out = self._truncate(logits_NV.detach()).isinf()
        is_sampled = F.one_hot(ids_N, logits_NV.size(-1)).bool()
        return token_logps(logits_NV.masked_fill(is_out & ~is_sampled, -torch.inf), ids_N)

    def logps_along(self, predictions: Predictions, ids_N: Tensor) -> Tensor:
        """(N,) `logps` of N predictions, whose logits are made in pieces."""
        return predictions.measure(lambda *x: {"logp": self.logps(*x)}, ids_N)["logp"]

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
    """Keep the model's own generation defaults (a chat model's temperature, top-p, ...) out of it."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


class WarmupSampler:
    """Samples warmups, without gradient and in eval mode, in the fastest way that gives the model's distribution.

    Which way that is, is found by trying: before the first batch, and before each with a longer prompt than any
    before, two prompts are sampled after and the samples scored again, one plain row each. A way that fails, or whose
    samples have another log-probability than they were sampled with, is not taken. The training's random numbers are
    left as they are.

    Args:
        largest: int -> the largest of all ranks' ints, where all ranks must call the model equally often: they then go
            one way, and sample until the last one is done.
    """

    def __init__(self, largest: Callable[[int], int] = alone):
        self.largest = largest
        self._known: dict[type, tuple[int, int]] = {}  # kind of encoding -> index of its way, longest prompt tried

    def __call__(self, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> Warmups:
        """K warmups for each encoded prompt, of width W (less when all of them ended earlier).

        Those that beam search found have no `logp`.

        Raises:
            ValueError: no way gives the model's distribution.
            NaNLogitsError: nothing can be sampled.
        """
        model = to_call(model)
        with evaluation_mode(model):
            return sample(WAYS[self._way(model, encoded, settings)], model, encoded, settings, self.largest)

    def _way(self, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> int:
        if encoded.room is not None:
            return WAYS.index(RowDecoding)
        way, tried_to = self._known.get(type(encoded), (0 if isinstance(encoded, SharedPrefix) else 1, 0))
        longest = self.largest(int(encoded.prompt.mask.sum(1).max()))
        if longest > tried_to:
            try:
                way = first_exact_way(way, model, encoded, settings, self.largest)
            except NaNLogitsError:
                return way  # the batch itself will tell which of its rows
            self._known[type(encoded)] = way, longest
        return way


def first_exact_way(
    way: int,
    model: PreTrainedModel,
    encoded: Encoded,
    settings: SamplingSettings,
    largest: Callable[[int], int] = alone,
) -> int:
    """Index of the first of `WAYS`, from `way` on, that gives the model's distribution. Call it in `evaluation_mode`.

    Args:
        largest: as for `WarmupSampler`.

    Raises:
        ValueError: none does.
    """
    prompt = probe_prompts(encoded.prompt)
    own = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": None,
        "closing_id": None,
    }  # and no end: all W tokens are compared
    settings = dataclasses.replace(
        settings, num_beams=1, do_sample=True, end_token_ids=(), separator_ids=(NO_TOKEN,), **own
    )
    wrong: str | None = None
    for index in range(way, len(WAYS)):
        if WAYS[index] is RowDecoding and way < index:
            logger.warning("Warmups are sampled without a cache, which is slow: with one, %s.", wrong)
        with random_numbers_from(PROBE_SEED, prompt.ids.device):
            wrong = why_wrong(WAYS[index], model, type(encoded)(model, model, prompt), settings)
        if not largest(int(wrong is not None)):
            return index
        wrong = wrong or "another rank found samples off their probability"
    raise ValueError(f"No warmups can be sampled from {model.config.model_type}: {wrong}.")


def why_wrong(way: Callable, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> str | None:
    """In words, why samples of this way are not the model's; None where they are. Call it in `evaluation_mode`."""
    try:
        tokens, logps = sample_tokens(way(model, encoded, settings.num_warmups), settings)
    except (torch.OutOfMemoryError, NaNLogitsError):
        raise
    except Exception as error:  # whatever a cache does that was not foreseen, plain rows do without it
        return f"{model.config.model_type} cannot go on from its prompt ({first_line(error)})"
    ids = tokens.unflatten(0, (-1, settings.num_warmups))
    mask = torch.ones_like(ids, dtype=torch.bool)
    predictions = PlainRows(model, model, encoded.prompt).predictions(Branches(ids, mask, mask), mask)
    difference = distance(settings.logps_along(predictions, tokens.flatten()), logps.flatten())
    if difference > tolerance_of(model).nats:
        return f"tokens would be sampled {difference:.2g} nats off their probability"
    return None


def sample(
    way: Callable,
    model: PreTrainedModel,
    encoded: Encoded,
    settings: SamplingSettings,
    largest: Callable[[int], int] = alone,
) -> Warmups:
    shape = (len(encoded.prompt.ids), settings.num_warmups)
    if settings.num_beams > 1:
        return end_warmups(_search_beams(way, model, encoded, settings).unflatten(0, shape), settings)
    tokens, logps = sample_tokens(way(model, encoded, settings.num_warmups), settings, largest)
    return end_warmups(tokens.unflatten(0, shape), settings, logps.unflatten(0, shape))


def sample_tokens(
    decoding: CachedDecoding | RowDecoding, settings: SamplingSettings, largest: Callable[[int], int] = alone
) -> tuple[Tensor, Tensor]:
    """(B * K, W) independent samples and each token's log-probability; less than W where every row has ended before.

    Rows that ended go on for nothing until they are half of the batch; then the others go on alone. On an accelerator
    the loop looks at what was sampled every few tokens only, since looking waits for it.

    Args:
        largest: as for `WarmupSampler`; the loop goes on until all rows of all ranks have ended.

    Raises:
        NaNLogitsError: nothing can be sampled.
    """
    shape, device = (len(decoding.logits), settings.max_length), decoding.logits.device
    tokens = torch.full(shape, settings.pad_token_id, device=device)
    logps = torch.zeros(shape, device=device)
    going_on = torch.arange(len(tokens), device=device)
    has_ended = torch.zeros_like(going_on, dtype=torch.bool)
    every, ends = tokens_between_looks(device), settings.ends_on(device)
    for length in range(1, settings.max_length + 1):
        token, logp = settings.sample(decoding.logits)
        tokens[going_on, length - 1], logps[going_on, length - 1] = token.squeeze(1), logp.squeeze(1)
        has_ended |= ends(tokens[going_on, max(length - len(settings.separator_ids), 0) : length])
        if length % every == 0 or length == settings.max_length:
            raise_at_nan(logps[:, max(length - every, 0) : length], settings.num_warmups)
            if length == settings.max_length or not largest(int(not has_ended.all())):
                break
            if decoding.can_drop_rows and pays_to_drop(has_ended, settings.max_length - length):
                left = (~has_ended).nonzero().flatten()
                decoding.keep_rows(left)
                token, going_on, has_ended = token[left], going_on[left], has_ended[left]
        decoding.write(token)
    return tokens[:, :length], logps[:, :length]


def tokens_between_looks(device: torch.device) -> int:
    return 1 if device.type == "cpu" else 8


def pays_to_drop(has_ended: Tensor, num_tokens_left: int) -> bool:
    """Whether half of the rows have ended, some go on, and enough tokens may follow to make up for a cache's copy."""
    num_ended = int(has_ended.sum())
    return num_tokens_left >= TOKENS_WORTH_A_COPY and len(has_ended) > num_ended >= len(has_ended) / 2


def raise_at_nan(logps_NW: Tensor, num_warmups: int) -> None:
    """Sampling from NaN gives a token with the log-probability NaN."""
    is_nan = logps_NW.isnan().any(-1)
    if is_nan.any():
        raise NaNLogitsError(sorted({row // num_warmups for row in is_nan.nonzero().flatten().tolist()}))


def _search_beams(way: Callable, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> Tensor:
    """(B * K, W) by transformers' beam search, with sampling or without."""
    prompt, width = encoded.prompt, encoded.prompt.ids.size(1)
    with only_this_generation_config(model, settings.generation_config()):
        if way is RowDecoding:  # which cannot do with padding on the left
            rows = [ids[mask].unsqueeze(0) for ids, mask in zip(prompt.ids, prompt.mask)]
            found = [model.generate(input_ids=row, use_cache=False)[:, row.size(1) :] for row in rows]
            return torch.cat([nn.functional.pad(x, (0, max(y.size(1) for y in found) - x.size(1)),
                                                value=settings.pad_token_id) for x in found])  # fmt: skip
        cached = {}
        if way is from_kept_keys:
            cached["past_key_values"] = encoded.prompt_cache(settings.num_beams, without_last=True)
        sequences = model.generate(input_ids=prompt.ids, attention_mask=prompt.mask.long(), **cached)
    return sequences[:, width:]


def end_warmups(ids_BKW: Tensor, settings: SamplingSettings, logps_BKW: Tensor | None = None) -> Warmups:
    """Cut each sampled sequence (..., W) at its first end token or separator; with `logp` where tokens have theirs."""
    width = ids_BKW.size(-1)
    end_tokens = ids_on(ids_BKW.device, settings.end_token_ids)
    end_at = _first(torch.isin(ids_BKW, end_tokens), width)
    separator = ids_on(ids_BKW.device, settings.separator_ids)
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
