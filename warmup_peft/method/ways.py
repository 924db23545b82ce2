"""Ways to decode after encoded prompts, the fastest first: the logits of what follows, one token after another.

Knows no distribution and no end: what is sampled, and when it is enough, is decided in `warmup_peft.method.sampling`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from warmup_peft.method.branches import Tokens, pack, prefix_mask
from warmup_peft.method.encoding import Encoded
from warmup_peft.method.model import takes
from warmup_peft.method.predictions import predictions_at
from warmup_peft.method.prefix import SharedPrefix
from warmup_peft.method.rows import encode_prompt, expand_cache, fitted


class CachedDecoding:
    """Goes on from a cache of the prompts.

    Args:
        model: without a wrapper.
        cache: of the N rows.
        logits: (N, V) of what follows them.
        mask: (N, P) real tokens, padded on the left.
        can_drop_rows: whether the cache can be told to hold fewer rows.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, logits: Tensor, mask: Tensor, can_drop_rows: bool = True):
        self.model, self.cache, self.logits, self.can_drop_rows = model, cache, logits, can_drop_rows
        self.mask = mask.long()
        self.next_position = self.mask.sum(1, keepdim=True)
        self.takes_positions = takes(model, "position_ids")

    def write(self, token: Tensor) -> None:
        """Take the (N, 1) tokens that were sampled; `logits` then are those of the next ones."""
        self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        positions = {"position_ids": self.next_position} if self.takes_positions else {}
        self.logits = self.model(
            input_ids=token, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **positions
        ).logits[:, -1]
        self.next_position = self.next_position + 1

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.reorder_cache(rows)
        self.mask, self.next_position = self.mask[rows], self.next_position[rows]


class RowDecoding:
    """Encodes every row anew for each token, padded on the right: slow, and right for every causal model.

    Args:
        model: without a wrapper.
        encoded: whose prompts, and whose `room`: with it the rows of one prompt at a time, as long as they may become.
        num_copies: rows of each prompt.
    """

    def __init__(self, model: PreTrainedModel, encoded: Encoded, num_copies: int):
        self.model, self.room, self.num_copies = model, encoded.room, num_copies
        self.can_drop_rows = encoded.room is None
        mask, ids = pack(encoded.prompt.mask, encoded.prompt.ids, side="right")
        self.ids, self.lengths = (x.repeat_interleave(num_copies, 0) for x in (ids, mask.sum(1)))
        self.logits = self._next_logits()

    def write(self, token: Tensor) -> None:
        """As `CachedDecoding.write`."""
        self.ids = nn.functional.pad(self.ids, (0, 1)).scatter(1, self.lengths.unsqueeze(1), token)
        self.lengths, self.room = self.lengths + 1, None if self.room is None else self.room - 1
        self.logits = self._next_logits()

    def keep_rows(self, rows: Tensor) -> None:
        """As `CachedDecoding.keep_rows`."""
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]

    def _next_logits(self) -> Tensor:
        if self.room is None:
            return self._logits(self.ids, self.lengths)
        prompts = zip(self.ids.split(self.num_copies), self.lengths.split(self.num_copies))
        return torch.cat([self._logits(fitted(ids, int(n[0]) + self.room), n) for ids, n in prompts])

    def _logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        is_last = nn.functional.one_hot(lengths - 1, ids.size(1)).bool()
        inputs = {"input_ids": ids, "attention_mask": prefix_mask(lengths, ids.size(1)).long(), "use_cache": False}
        return predictions_at(self.model, self.model, is_last, **inputs).logits()


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
    return CachedDecoding(model, cache, last.logits(), copies.mask, can_drop_rows=False)


WAYS = (from_kept_keys, from_cache, from_copies, RowDecoding)
