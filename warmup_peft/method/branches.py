"""Token rows: an example split at its boundary, and the branches [warmup | separator | target] that follow a prompt.

Tensors only. Knows no model, no tokenizer and no loss.

Shape letters, here and everywhere: B examples, K branches of an example (one a warmup), P prompt tokens, W warmup
tokens, S separator tokens, Y target tokens, T branch tokens (at most W + S + Y), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = -100


class Tokens(NamedTuple):
    """Token ids and which of them are real. Both have the same shape; padding may stand on either side."""

    ids: Tensor
    mask: Tensor

    def repeat_for_branches(self, num_branches: int) -> Tokens:
        """(B, ...) -> (B, K, ...), each row K times."""
        return Tokens(*(x.unsqueeze(1).expand(-1, num_branches, *x.shape[1:]) for x in self))


class Warmups(NamedTuple):
    """K warmups for each of B prompts.

    Attributes:
        ids: (B, K, W) tokens in the order they were sampled; what stands behind `num_decisions` is padding.
        lengths: (B, K) tokens that belong to the warmup itself.
        num_decisions: (B, K) tokens the model sampled: the warmup's, and those that ended it (an end token or the
            separator) where the model stopped by itself. A stop forced by the length limit is no decision.
        logp: (B, K) log-probability of those decisions under the distribution that they were sampled from,
            in nats.
        log_ratio: (B, K) the model's own log-probability of those decisions less `logp`, where another engine
            sampled them, in nats.
    """

    ids: Tensor
    lengths: Tensor
    num_decisions: Tensor
    logp: Tensor | None = None
    log_ratio: Tensor | None = None

    @property
    def stopped(self) -> Tensor:
        """(B, K) whether the model ended the warmup by itself."""
        return self.num_decisions > self.lengths

    @property
    def truncated(self) -> Tensor:
        """(B, K) whether the length limit ended the warmup; none that was left out or never sampled."""
        return ~self.stopped & (self.lengths > 0)

    def tokens(self) -> Tokens:
        return Tokens(self.ids, prefix_mask(self.lengths, self.ids.size(-1)))

    def first_of_each(self) -> Warmups:
        """(B, 1) the first warmup of each example."""
        return Warmups(*(None if x is None else x[:, :1] for x in self))

    def emptied(self, where_BK: Tensor) -> Warmups:
        """No warmup at all, and nothing decided, where the mask is true."""
        emptied = (None if x is None else x.masked_fill(where_BK, 0) for x in self[1:])
        return Warmups(self.ids, *emptied)

    def distinct(self) -> tuple[Warmups, Tensor]:
        """Each example's distinct samples once, in the order they first occur.

        Returns:
            Warmups (B, D), where D is the most that any example has; the rest of a row repeats its first. And index
            (B, K): `values_BD.gather(1, index_BK)` restores all K values and their gradients.
        """
        same_BKK = self.same_samples()
        is_first_BK = ~same_BKK.tril(-1).any(-1)
        num_distinct = int(is_first_BK.sum(1).max())
        chosen_BD = (~is_first_BK).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_distinct]
        chosen_BD = torch.where(is_first_BK.gather(1, chosen_BD), chosen_BD, 0)
        index_BK = same_BKK.gather(2, chosen_BD.unsqueeze(1).expand(-1, same_BKK.size(1), -1)).long().argmax(-1)
        ids = self.ids.gather(1, chosen_BD.unsqueeze(-1).expand(-1, -1, self.ids.size(-1)))
        return Warmups(ids, self.lengths.gather(1, chosen_BD), self.num_decisions.gather(1, chosen_BD)), index_BK

    def same_samples(self) -> Tensor:
        """(B, K, K) which samples are equal, their stops included."""
        sampled = self.ids.masked_fill(~prefix_mask(self.num_decisions, self.ids.size(-1)), -1)
        return (sampled.unsqueeze(1) == sampled.unsqueeze(2)).all(-1)


class Branches(NamedTuple):
    """What follows the prompt, one row a branch, padded on the right.

    Position t stands for the prediction *of* branch token t (made at the token before it; for t = 0 that is the
    prompt's last token), so the masks select predictions and labels alike.

    Attributes:
        ids: (B, K, T) warmup, separator, target.
        mask: (B, K, T) real tokens.
        is_target: (B, K, T) tokens of the target, the only supervised ones.
    """

    ids: Tensor
    mask: Tensor
    is_target: Tensor


def no_warmups(prompt: Tokens) -> Warmups:
    """One empty warmup (B, 1, 0) for each prompt: the separator stands right behind it."""
    lengths = torch.zeros(len(prompt.ids), 1, dtype=torch.long, device=prompt.ids.device)
    return Warmups(prompt.ids.new_zeros(len(prompt.ids), 1, 0), lengths, lengths)


def shuffled_warmups(warmups: Warmups, previous: Warmups | None) -> Warmups | None:
    """Each example with the warmups of the one before it in the batch, without log-probabilities.

    Args:
        previous: the batch before, whose last example lends its warmups to a batch of one.

    Returns:
        (B, K) warmups; None for a batch of one that has no batch before it.
    """
    if len(warmups.ids) == 1:
        return None if previous is None else Warmups(*(x[-1:] for x in previous[:3]))
    return Warmups(*(x.roll(1, 0) for x in warmups[:3]))


def prefix_mask(lengths: Tensor, size: int) -> Tensor:
    """(...) lengths -> (..., size) mask of the first `length` positions."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)


def pack(mask: Tensor, *tensors: Tensor, side: str) -> tuple[Tensor, ...]:
    """Move the masked positions of every row together to one `side` and cut the columns that no row needs.

    Returns the mask and the tensors, all (..., width of the longest row, at least 1).
    """
    is_left = side == "left"
    order = (mask if is_left else ~mask).to(torch.uint8).argsort(dim=-1, stable=True)
    width = max(int(mask.sum(-1).max()), 1)
    columns = slice(-width, None) if is_left else slice(None, width)
    return tuple(x.gather(-1, order)[..., columns] for x in (mask, *tensors))


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tokens:
    """(B, P) tokens of rows of unequal length."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return Tokens(ids, mask)


def split_examples(input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> tuple[Tokens, Tokens]:
    """Split TRL's right-padded batch (B, L) at the first supervised label of each row.

    Returns:
        The prompts (B, P), padded on the left, and the targets (B, Y), padded on the right.

    Raises:
        ValueError: a row has no token before its target, or its supervised tokens are not one block at its end.
    """
    is_real = attention_mask.bool()
    is_target = (labels != IGNORE_INDEX) & is_real
    is_prompt = is_real & (is_target.cumsum(-1) == 0)
    num_targets = (is_target & ~is_target.roll(1, -1)).sum(-1)
    for complaint, rows in (
        ("has no prompt before its target", ~is_prompt.any(-1)),
        ("has supervised tokens in more than one place", num_targets > 1),
    ):
        if rows.any():
            raise ValueError(
                f"Row {int(rows.nonzero()[0])} of the batch {complaint}, but a warmup stands between one prompt and "
                "one target. Use prompt-completion data with a non-empty prompt."
            )
    prompt_mask, prompt_ids = pack(is_prompt, input_ids, side="left")
    target_mask, target_ids = pack(is_target, input_ids, side="right")
    return Tokens(prompt_ids, prompt_mask), Tokens(target_ids, target_mask)


def lay_out_branches(warmup: Tokens, separator_ids: Tensor, target: Tokens) -> Branches:
    """Join ids, never text: text tokenised again at a boundary merges tokens.

    Args:
        warmup: (B, K, W).
        separator_ids: (S,).
        target: (B, K, Y).

    Returns:
        Branches of T = the longest warmup + separator + target.
    """
    separator = separator_ids.expand(*warmup.ids.shape[:2], -1)
    is_separator = torch.ones_like(separator, dtype=torch.bool)
    ids = torch.cat([warmup.ids, separator, target.ids], dim=-1)
    mask = torch.cat([warmup.mask, is_separator, target.mask], dim=-1)
    is_target = torch.cat([warmup.mask & False, is_separator & False, target.mask], dim=-1)
    mask, ids, is_target = pack(mask, ids, is_target, side="right")
    return Branches(ids, mask, is_target)


def join_rows(prompt: Tokens, branches: Branches) -> Tokens:
    """One full row a branch: (B, P) prompts and (B, K, T) branches -> (B * K, P + T)."""
    num_branches = branches.ids.size(1)
    prompts = prompt.repeat_for_branches(num_branches)
    joined = (torch.cat(pair, dim=-1).flatten(0, 1) for pair in zip(prompts, (branches.ids, branches.mask)))
    return Tokens(*joined)


def positions_of(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only: the first real token of a row stands at 0."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def sums_where(mask_BKT: Tensor, values_N: Tensor) -> Tensor:
    """(B, K) sums of the values that stand where the mask is true, in row-major order."""
    return values_N.new_zeros(mask_BKT.shape).masked_scatter(mask_BKT, values_N).sum(-1)
