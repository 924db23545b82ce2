"""Samples warmups from a causal language model, and says how likely a sample was. Knows no objective."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from warmup_peft.files import first_line
from warmup_peft.method.branches import Branches, Tokens, Warmups, pack, prefix_mask
from warmup_peft.method.encoding import PROBE_SEED, Encoded, distance, probe_prompts, tolerance_of
from warmup_peft.method.model import (
    evaluation_mode,
    positions_for,
    random_numbers_from,
    without_peft_wrapper,
)
from warmup_peft.method.objective import token_logps
from warmup_peft.method.predictions import predictions_at
from warmup_peft.method.prefix import SharedPrefix
from warmup_peft.method.rows import PlainRows, encode_prompt, expand_cache, fitted

logger = logging.getLogger(__name__)

NO_TOKEN = -1
NO_PROBABILITY = -1e9  # a logit; finite, so that divergences stay so


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

    @property
    def ending_ids(self) -> list[int]:
        """The end tokens, and the closing one first."""
        others = [token for token in self.end_token_ids if token != self.closing_id]
        return others if self.closing_id is None else [self.closing_id, *others]

    def with_one_end(self, logits_NV: Tensor) -> Tensor:
        """Logits in float32 in which the closing token has the probability of all end tokens, and they have none."""
        if self.closing_id is None:
            return logits_NV.float()
        ends_NE = logits_NV[:, self.ending_ids].float()
        filling = torch.full_like(ends_NE, NO_PROBABILITY)
        filling[:, 0] = 0
        closing_N1 = ends_NE.logsumexp(1, keepdim=True)
        columns = torch.tensor(self.ending_ids, device=logits_NV.device)
        return logits_NV.float().index_copy(1, columns, closing_N1 + filling)

    def end_probabilities(self, logits_NV: Tensor) -> Tensor:
        """(N,) probabilities of ending here."""
        return (logits_NV[:, self.ending_ids].float().logsumexp(1) - logits_NV.float().logsumexp(1)).exp()

    def ending_logps(self, logits_NV: Tensor, ended_N: Tensor) -> Tensor:
        """(N,) e log P(closing token) + (1 - e) log P(no end) in nats, where e, 0 to 1, is whether a warmup ended."""
        ends = torch.tensor(self.ending_ids, device=logits_NV.device)
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

        Without `do_sample` the likeliest tokens, which are certain.
        """
        scores = self.with_one_end(logits_NV) / self.temperature
        if not self.do_sample:
            return scores.argmax(-1, keepdim=True), scores.new_zeros(len(scores), 1)
        probabilities_NV = self._truncate(scores).softmax(-1)
        sampled = torch.multinomial(probabilities_NV, num_samples=1)
        return sampled, probabilities_NV.gather(1, sampled).log()

    def logps(self, logits_NV: Tensor, ids_N: Tensor) -> Tensor:
        """(N,) log-probabilities in nats of tokens that `sample` gave, temperature and truncation included.

        A sampled token always belongs to its truncated set, even where rounding would now put it just outside.
        """
        if self.closing_id is not None:
            ends = torch.tensor(self.ending_ids, device=ids_N.device)
            ids_N = torch.where(torch.isin(ids_N, ends), self.closing_id, ids_N)
        logits_NV = self.with_one_end(logits_NV) / self.temperature
        if not self._truncations():
            return token_logps(logits_NV, ids_N)
        is_out = self._truncate(logits_NV.detach()).isinf()
        is_sampled = F.one_hot(ids_N, logits_NV.size(-1)).bool()
        return token_logps(logits_NV.masked_fill(is_out & ~is_sampled, -torch.inf), ids_N)

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


# ---- Ways to decode, the fastest first. All of them give the logits of what follows, one token after another ----


class CachedDecoding:
    """Goes on from a cache of the prompts.

    Args:
        model: without a wrapper.
        cache: of the N rows.
        logits: (N, V) of what follows them.
        mask: (N, P) real tokens, padded on the left.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, logits: Tensor, mask: Tensor):
        self.model, self.cache, self.logits, self.mask = model, cache, logits, mask

    def write(self, token: Tensor) -> None:
        """Take the (N, 1) tokens that were sampled; `logits` then are those of the next ones."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        positions = {name: x[:, -1:] for name, x in positions_for(self.model, self.mask).items()}
        self.logits = self.model(
            input_ids=token, attention_mask=self.mask.long(), past_key_values=self.cache, use_cache=True, **positions
        ).logits[:, -1]


class RowDecoding:
    """Encodes every row anew for each token, padded on the right: slow, and right for every causal model.

    Args:
        model: without a wrapper.
        encoded: whose prompts, and whose `room`: with it the rows of one prompt at a time, as long as they may become.
        num_copies: rows of each prompt.
    """

    def __init__(self, model: PreTrainedModel, encoded: Encoded, num_copies: int):
        self.model, self.room, self.num_copies = model, encoded.room, num_copies
        mask, ids = pack(encoded.prompt.mask, encoded.prompt.ids, side="right")
        self.ids, self.lengths = (x.repeat_interleave(num_copies, 0) for x in (ids, mask.sum(1)))
        self.logits = self._next_logits()

    def write(self, token: Tensor) -> None:
        """As `CachedDecoding.write`."""
        self.ids = nn.functional.pad(self.ids, (0, 1)).scatter(1, self.lengths.unsqueeze(1), token)
        self.lengths, self.room = self.lengths + 1, None if self.room is None else self.room - 1
        self.logits = self._next_logits()

    def _next_logits(self) -> Tensor:
        if self.room is None:
            return self._logits(self.ids, self.lengths)
        prompts = zip(self.ids.split(self.num_copies), self.lengths.split(self.num_copies))
        return torch.cat([self._logits(fitted(ids, int(n[0]) + self.room), n) for ids, n in prompts])

    def _logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        is_last = nn.functional.one_hot(lengths - 1, ids.size(1)).bool()
        mask = prefix_mask(lengths, ids.size(1)).long()
        return predictions_at(
            self.model, self.model, is_last, input_ids=ids, attention_mask=mask, use_cache=False
        ).logits()


def from_kept_keys(model: PreTrainedModel, encoded: SharedPrefix, num_copies: int) -> CachedDecoding:
    """From the keys and values of a shared prompt."""
    logits = encoded.first_B.logits().repeat_interleave(num_copies, 0)
    mask = encoded.prompt.mask.repeat_interleave(num_copies, 0)
    return CachedDecoding(model, encoded.prompt_cache(num_copies), logits, mask)


def from_cache(model: PreTrainedModel, encoded: Encoded, num_copies: int) -> CachedDecoding:
    """From the model's own cache of each prompt, expanded."""
    cache, last_B = encode_prompt(model, encoded.prompt)
    expand_cache(cache, len(last_B), num_copies)
    mask = encoded.prompt.mask.repeat_interleave(num_copies, 0)
    return CachedDecoding(model, cache, last_B.logits().repeat_interleave(num_copies, 0), mask)


def from_copies(model: PreTrainedModel, encoded: Encoded, num_copies: int) -> CachedDecoding:
    """From the model's own cache of K copies of each prompt, for states that cannot be expanded."""
    copies = Tokens(*(x.repeat_interleave(num_copies, 0) for x in encoded.prompt))
    cache, last = encode_prompt(model, copies)
    return CachedDecoding(model, cache, last.logits(), copies.mask)


WAYS = (from_kept_keys, from_cache, from_copies, RowDecoding)


class WarmupSampler:
    """Samples warmups, without gradient and in eval mode, in the fastest way that gives the model's distribution.

    Which way that is, is found by trying: before the first batch, and before each with a longer prompt than any
    before, two prompts are sampled after and the samples scored again, one plain row each. A way that fails, or whose
    samples have another log-probability than they were sampled with, is not taken. The training's random numbers are
    left as they are.
    """

    def __init__(self):
        self._known: dict[type, tuple[int, int]] = {}  # kind of encoding -> index of its way, longest prompt tried

    def __call__(self, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> Warmups:
        """K warmups for each encoded prompt, of width W (less when all of them ended earlier).

        Those that beam search found have no `logp`.

        Raises:
            ValueError: no way gives the model's distribution.
            NaNLogitsError: nothing can be sampled.
        """
        model = without_peft_wrapper(model)
        with evaluation_mode(model):
            return sample(WAYS[self._way(model, encoded, settings)], model, encoded, settings)

    def _way(self, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> int:
        if encoded.room is not None:
            return WAYS.index(RowDecoding)
        way, tried_to = self._known.get(type(encoded), (0 if isinstance(encoded, SharedPrefix) else 1, 0))
        longest = int(encoded.prompt.mask.sum(1).max())
        if longest > tried_to:
            try:
                way = first_exact_way(way, model, encoded, settings)
            except NaNLogitsError:
                return way  # the batch itself will tell which of its rows
            self._known[type(encoded)] = way, longest
        return way


def first_exact_way(way: int, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> int:
    """Index of the first of `WAYS`, from `way` on, that gives the model's distribution. Call it in `evaluation_mode`.

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
        if wrong is None:
            return index
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
    logits = PlainRows(model, model, encoded.prompt).predictions(Branches(ids, mask, mask), mask).logits()
    difference = distance(settings.logps(logits, tokens.flatten()), logps.flatten())
    if difference > tolerance_of(model).nats:
        return f"tokens would be sampled {difference:.2g} nats off their probability"
    return None


def sample(way: Callable, model: PreTrainedModel, encoded: Encoded, settings: SamplingSettings) -> Warmups:
    shape = (len(encoded.prompt.ids), settings.num_warmups)
    if settings.num_beams > 1:
        return end_warmups(_search_beams(way, model, encoded, settings).unflatten(0, shape), settings)
    tokens, logps = sample_tokens(way(model, encoded, settings.num_warmups), settings)
    return end_warmups(tokens.unflatten(0, shape), settings, logps.unflatten(0, shape))


def sample_tokens(decoding: CachedDecoding | RowDecoding, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """(B * K, W) independent samples and each token's log-probability; stops when every row has ended."""
    tokens = logps = None
    while True:
        is_nan = decoding.logits.isnan().any(-1)
        if is_nan.any():
            raise NaNLogitsError(sorted({row // settings.num_warmups for row in is_nan.nonzero().flatten().tolist()}))
        token, logp = settings.sample(decoding.logits)
        tokens = token if tokens is None else torch.cat([tokens, token], dim=1)
        logps = logp if logps is None else torch.cat([logps, logp], dim=1)
        if tokens.size(1) == settings.max_length or end_warmups(tokens, settings).stopped.all():
            return tokens, logps
        decoding.write(token)


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
