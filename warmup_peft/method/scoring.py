"""How likely warmups and targets are: the one place where log-probabilities along branches are summed.

Knows no trainer, no source of warmups and no objective's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical

from warmup_peft.method.branches import (
    Branches,
    Tokens,
    Warmups,
    lay_out_branches,
    no_warmups,
    prefix_mask,
    sums_where,
)
from warmup_peft.method.encoding import Encoded
from warmup_peft.method.objective import Scores, divergence, token_logps
from warmup_peft.method.sampling import SamplingSettings

ENTROPY_ROWS = 256  # at a time: a float32 copy of all target logits would cost as much as the step


def token_logps_of(encoded: Encoded, branches: Branches, is_scored: Tensor) -> Tensor:
    """(N,) log-probabilities in nats of the branch tokens where the (B, K, T) mask is true, in row-major order."""
    return token_logps(encoded.predictions(branches, is_scored), branches.ids[is_scored])


def branch_logps(encoded: Encoded, branches: Branches, is_scored: Tensor) -> Tensor:
    """(B, K) log-probability in nats of each branch's tokens where the (B, K, T) mask is true, summed over them."""
    return sums_where(is_scored, token_logps_of(encoded, branches, is_scored))


def target_branches(warmups: Warmups, target: Tokens, separator_ids: tuple[int, ...]) -> Branches:
    """(B, K) warmups and (B, Y) targets, laid out as [warmup | separator | target]."""
    separator = torch.tensor(separator_ids, dtype=torch.long, device=target.ids.device)
    return lay_out_branches(warmups.tokens(), separator, target.repeat_for_branches(warmups.ids.size(1)))


@torch.no_grad()
def target_logps(encoded: Encoded, warmups: Warmups, target: Tokens, separator_ids: tuple[int, ...]) -> Tensor:
    """(B, K) R, log P(y|x,c_i,s) in nats, without gradient."""
    branches = target_branches(warmups, target, separator_ids)
    return branch_logps(encoded, branches, branches.is_target)


def score_warmups(
    encoded: Encoded,
    warmups: Warmups,
    target: Tokens,
    sampling: SamplingSettings,
    *,
    with_warmup_logp: bool = False,
    with_kl: bool = False,
    kl_from_reference: bool = True,
    with_gain: bool = False,
    source_logp_BK: Tensor | None = None,
    reference_logits: Callable[[Branches, Tensor], Tensor] | None = None,
) -> Scores:
    """Score all warmups of a batch in one pass with gradient. Warmups of an example that are equal are scored once.

    Args:
        encoded: the B prompts.
        warmups: (B, K).
        target: (B, Y), padded on the right.
        sampling: the separator, and the distribution that warmups are sampled from.
        with_warmup_logp: measure log P(c_i|x).
        with_kl: measure the anchor: where `source_logp_BK` is given as log Q(c_i|x) - log P(c_i|x), else over the
            whole vocabulary with `reference_logits`.
        kl_from_reference: the anchor's direction with `reference_logits`: KL(reference || model), else KL(model ||
            reference).
        with_gain: measure the target's mean probability less that after no warmup.
        source_logp_BK: log Q(c_i|x), where the warmups were sampled from another distribution Q.
        reference_logits: branches and a (B, K, T) mask -> (N, V) logits of the reference model, without gradient.
    """
    distinct, index_BK = warmups.distinct()
    branches = target_branches(distinct, target, sampling.separator_ids)
    learns_format = sampling.closing_id is not None
    num_decisions = distinct.num_decisions * (with_kl or with_warmup_logp or learns_format)
    is_decision = prefix_mask(num_decisions, branches.mask.size(-1))
    is_rest = rest_of_separator(distinct, branches) & learns_format
    predicted = branches.is_target | is_decision | is_rest
    logits = encoded.predictions(branches, predicted)

    def per_warmup(values_N: Tensor, mask: Tensor) -> Tensor:
        """(B, K) sums of the values, which stand where the mask over distinct branches is true."""
        return sums_where(mask, values_N).gather(1, index_BK)

    is_off_policy = source_logp_BK is not None
    target_logits, target_ids = logits[branches.is_target[predicted]], branches.ids[branches.is_target]
    decision_logits = logits[is_decision[predicted]]
    target_logp_N = token_logps(target_logits, target_ids)
    warmup_logp_BK = kl_BK = gain_BK = format_logp_BK = reference = None
    if with_warmup_logp or (with_kl and is_off_policy):
        sampled_ids = distinct.ids[prefix_mask(num_decisions, distinct.ids.size(-1))]
        warmup_logp_BK = per_warmup(sampling.logps(decision_logits, sampled_ids), is_decision)
    if with_kl and is_off_policy:
        kl_BK = source_logp_BK - warmup_logp_BK
    elif with_kl:
        reference = reference_logits(branches, is_decision)
        both = [sampling.with_one_end(x) for x in (reference, decision_logits)]
        kl_BK = per_warmup(divergence(*(both if kl_from_reference else reversed(both))), is_decision)
    if with_gain:
        probability_BK = per_warmup(target_logp_N.detach().exp(), branches.is_target)
        num_targets_B1 = target.mask.sum(1, keepdim=True).clamp(min=1)
        gain_BK = (probability_BK - probability_without(encoded, target, sampling)) / num_targets_B1
    if learns_format:
        is_end = is_decision & ~prefix_mask(distinct.lengths, is_decision.size(-1))
        ended_N = is_end[is_decision].float() if reference is None else sampling.end_probabilities(reference)
        ending_BK = per_warmup(sampling.ending_logps(decision_logits, ended_N), is_decision)
        rest_BK = per_warmup(token_logps(logits[is_rest[predicted]], branches.ids[is_rest]), is_rest)
        format_logp_BK = ending_BK + rest_BK + encoded.opening_logp_B1
    entropy_N, is_correct_N = target_statistics(target_logits, target_ids)
    return Scores(
        per_warmup(target_logp_N, branches.is_target),
        warmup_logp_BK,
        kl_BK,
        source_logp_BK,
        gain_BK,
        per_warmup(entropy_N, branches.is_target),
        per_warmup(is_correct_N, branches.is_target),
        format_logp_BK,
    )


def rest_of_separator(warmups: Warmups, branches: Branches) -> Tensor:
    """(B, K, T) true at the separator's tokens behind its first."""
    is_later = ~prefix_mask(warmups.lengths + 1, branches.mask.size(-1))
    return branches.mask & ~branches.is_target & is_later


@torch.no_grad()
def probability_without(encoded: Encoded, target: Tokens, sampling: SamplingSettings) -> Tensor:
    """(B, 1) probabilities of the target's tokens after no warmup, summed over them."""
    branches = target_branches(no_warmups(encoded.prompt), target, sampling.separator_ids)
    return sums_where(branches.is_target, token_logps_of(encoded, branches, branches.is_target).exp())


@torch.no_grad()
def target_statistics(logits_NV: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) entropies of the predictions in nats, and (N,) 1 where the token is the likeliest one."""
    rows = logits_NV.detach().split(ENTROPY_ROWS)
    entropy_N = torch.cat([Categorical(logits=x.float(), validate_args=False).entropy() for x in rows])
    return entropy_N, (logits_NV.argmax(-1) == ids_N).long()
