"""What the warmups are doing, in numbers. Tensors and words; knows no model and no trainer.

How to read the two gains, in nats a target, of R over what it would be without the example's own warmup:

| over no warmup | over another example's | warmups are |
|---|---|---|
| large | large | read: what they say matters |
| large | near 0 | pauses: the model computes at their positions, whatever stands there |
| near 0 | near 0 | unused: the model answers as well without them |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from warmup_peft.method.branches import Warmups, prefix_mask

EMPTY_BELOW = 0.5  # tokens on average
DRAFT_ABOVE = 0.75  # share of the warmups' words that are the target's
UNUSED_BELOW = 0.05  # nats a target over no warmup
SHRUNK_BELOW = 0.5  # of the length at the first log
MANY_TRUNCATED = 0.5  # share of the warmups
BLIND_BELOW = 0.01  # share of the prompts with a warmup that holds a word of the target
GRACE = 0.5  # of the training: before that a gain of nothing is only a gain that has not come yet


def effective_sample_size(target_logp_BK: Tensor) -> Tensor:
    """(B,) 1 / sum_i softmax(R)_i^2: how many of the K warmups share the weight, 1 to K."""
    return 1 / target_logp_BK.detach().float().clamp(min=-1e30).softmax(1).square().sum(1)


def num_repeated(warmups: Warmups) -> Tensor:
    """(B, K) tokens of each warmup that occurred in it before."""
    same = warmups.ids.unsqueeze(-1) == warmups.ids.unsqueeze(-2)
    return (same.tril(-1).any(-1) & prefix_mask(warmups.lengths, warmups.ids.size(-1))).sum(-1)


def num_distinct(warmups: Warmups) -> Tensor:
    """(B,) how many of the K samples are different; those that were left out count as none."""
    is_repeated = warmups.same_samples().tril(-1).any(-1)
    return (~is_repeated & (warmups.num_decisions > 0)).sum(-1)


WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u9fff"  # Japanese and Chinese: each sign is a word


def words(text: str) -> list[str]:
    return re.findall(rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+", text.casefold())


def num_shared_words(warmup: str, target: str) -> tuple[int, int]:
    """How many of the warmup's words occur in the target, and how many words it has."""
    written, wanted = words(warmup), set(words(target))
    return sum(word in wanted for word in written), len(written)


def contains(warmup: str, target: str) -> bool:
    """Whether the target's words stand in the warmup, in order and together."""
    wanted = words(target)
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(words(warmup))} "


def what_is_wrong(
    metrics: Mapping[str, float],
    share_of_training: float,
    *,
    first_length: float | None = None,
) -> str | None:
    """In words, with the option that helps, why warmups bring nothing any more; None where they do.

    Args:
        metrics: of a log.
        share_of_training: that is over, 0 to 1.
        first_length: mean length of the warmups in the first log, in tokens.

    Hindsight that finds nothing teaches nothing. Warmups that become much shorter are on their way to empty ones.
    Collapse has three faces, and the thresholds lie between what was seen on the puzzles of `recipes/logiqa` after 120
    steps (`make compare-logiqa`, arms `paper` and `anchored`):

    - empty: below half a token on average. Most warmups are then no warmup. Without an anchor they ended at 0.0
      tokens, with it at 5.7.
    - drafts of the answer: more than three quarters of the warmups' words are the target's. A chain of four names
      that ends in the answer has 0.25 there; a warmup that is the answer and nothing else has 1.
    - unused: in the second half of the training the target gains less than 0.05 nats over no warmup. Collapsed
      warmups gained 0.00 there, anchored ones 8 to 11. At the start nothing is gained yet.
    """
    length, overlap = metrics.get("warmups/mean_length"), metrics.get("warmups/overlap")
    gain = metrics.get("warmups/gain_over_none")
    hindsight = metrics.get("warmups/hindsight")
    if hindsight is not None and hindsight < BLIND_BELOW:
        return (
            f"Hindsight teaches nothing: {hindsight:.1%} of the prompts have a warmup that holds a word of the "
            "target. Raise num_warmups, or set hindsight_steps to 0."
        )
    help = "Raise warmup_anchor (0.3 is a good start), or set warmup_source to base."
    if length is not None and length < EMPTY_BELOW:
        return f"Warmups have become empty ({length:.2f} tokens on average). {help}"
    if overlap is not None and overlap > DRAFT_ABOVE:
        return (
            f"Warmups have collapsed into drafts of the answer: {overlap:.0%} of their words are the target's. {help}"
        )
    if length is not None and first_length is not None and length < SHRUNK_BELOW * first_length:
        return (
            f"Warmups have become less than half as long as at the start ({length:.1f} tokens instead of "
            f"{first_length:.1f}). {help}"
        )
    if gain is not None and gain < UNUSED_BELOW and share_of_training >= GRACE:
        return (
            f"Warmups have collapsed: the model answers as well without them (targets gain {gain:.3f} nats over no "
            f"warmup). {help}"
        )
    return None


def many_truncated(share: float, max_length: int, *, are_thoughts: bool) -> str | None:
    """In words, that most warmups are cut off and what that means; None where most end.

    Args:
        share: of the warmups that the length limit ended, 0 to 1.
        max_length: W, in tokens.
        are_thoughts: whether the warmups are a model's own thoughts, which have an end.
    """
    if share <= MANY_TRUNCATED:
        return None
    what = "thoughts" if are_thoughts else "warmups"
    normal = "" if are_thoughts else " (normal where warmups are notes of a few tokens, as in Warmup Generations)"
    return (
        f"{share:.0%} of the {what} are truncated at max_warmup_length={max_length}, before the model ends "
        f"them{normal}. To let more of them end, raise max_warmup_length; to train by those alone that end, set "
        "mask_truncated_warmups."
    )
