"""How likely warmups and targets are: the one place where log-probabilities along branches are summed.

Knows no trainer, no source of warmups and no objective's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
from warmup_peft.method.predictions import Measures, Predictions
from warmup_peft.method.sampling import SamplingSettings


def token_logps_of(encoded: Encoded, branches: Branches, is_scored: Tensor) -> Tensor:
    """(N,) log-probabilities in nats of the branch tokens where the (B, K, T) mask is true, in row-major order."""
    return encoded.predictions(branches, is_scored).logps(branches.ids[is_scored])


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
    reference: Callable[[Branches, Tensor], Predictions] | None = None,
) -> Scores:
    """Score all warmups of a batch in one pass with gradient. Warmups of an example that are equal are scored once.

    Args:
        encoded: the B prompts.
        warmups: (B, K).
        target: (B, Y), padded on the right.
        sampling: the separator, and the distribution that warmups are sampled from.
        with_warmup_logp: measure log P(c_i|x).
        with_kl: measure the anchor: where `source_logp_BK` is given as log Q(c_i|x) - log P(c_i|x), else over the
            whole vocabulary with `reference`.
        kl_from_reference: the anchor's direction with `reference`: KL(reference || model), else KL(model ||
            reference).
        with_gain: measure the target's mean probability less that after no warmup.
        source_logp_BK: log Q(c_i|x), where the warmups were sampled from another distribution Q.
        reference: branches and a (B, K, T) mask -> N predictions of the reference model, without gradient.
    """
    distinct, index_BK = warmups.distinct()
    branches = target_branches(distinct, target, sampling.separator_ids)
    learns_format = sampling.closing_id is not None
    num_decisions = distinct.num_decisions * (with_kl or with_warmup_logp or learns_format)
    is_decision = prefix_mask(num_decisions, branches.mask.size(-1))
    is_rest = rest_of_separator(distinct, branches) & learns_format
    predicted = branches.is_target | is_decision | is_rest
    predictions = encoded.predictions(branches, predicted)
    is_off_policy = source_logp_BK is not None
    measures = partial(
        decision_measures,
        sampling=sampling,
        with_logp=with_warmup_logp or (with_kl and is_off_policy),
        kl_from_reference=kl_from_reference,
    )

    def per_warmup(values_N: Tensor, mask: Tensor) -> Tensor:
        """(B, K) sums of the values, which stand where the mask over distinct branches is true."""
        return sums_where(mask, values_N).gather(1, index_BK)

    found = predictions[branches.is_target[predicted]].measure(target_measures, branches.ids[branches.is_target])
    of_target = {name: per_warmup(values, branches.is_target) for name, values in found.items()}
    found = predictions[is_decision[predicted]].measure(
        measures,
        distinct.ids[prefix_mask(num_decisions, distinct.ids.size(-1))],
        (~prefix_mask(distinct.lengths, is_decision.size(-1)))[is_decision],
        *([reference(branches, is_decision)] if with_kl and not is_off_policy else []),
    )
    of_warmup = {name: per_warmup(values, is_decision) for name, values in found.items()}
    kl_BK = source_logp_BK - of_warmup["logp"] if with_kl and is_off_policy else of_warmup.get("kl")
    gain_BK = mean_gain(of_target["probability"], encoded, target, sampling) if with_gain else None
    format_logp_BK = None
    if learns_format:
        rest_N = predictions[is_rest[predicted]].logps(branches.ids[is_rest])
        format_logp_BK = of_warmup["ending"] + per_warmup(rest_N, is_rest) + encoded.opening_logp_B1
    return Scores(
        of_target["logp"],
        of_warmup.get("logp"),
        kl_BK,
        source_logp_BK,
        gain_BK,
        of_target["entropy"],
        of_target["correct"],
        format_logp_BK,
    )


def rest_of_separator(warmups: Warmups, branches: Branches) -> Tensor:
    """(B, K, T) true at the separator's tokens behind its first."""
    is_later = ~prefix_mask(warmups.lengths + 1, branches.mask.size(-1))
    return branches.mask & ~branches.is_target & is_later


def mean_gain(probability_BK: Tensor, encoded: Encoded, target: Tokens, sampling: SamplingSettings) -> Tensor:
    """(B, K) probabilities of the target's tokens, summed over them, less those after no warmup; a token."""
    num_targets_B1 = target.mask.sum(1, keepdim=True).clamp(min=1)
    return (probability_BK - probability_without(encoded, target, sampling)) / num_targets_B1


@torch.no_grad()
def probability_without(encoded: Encoded, target: Tokens, sampling: SamplingSettings) -> Tensor:
    """(B, 1) probabilities of the target's tokens after no warmup, summed over them."""
    branches = target_branches(no_warmups(encoded.prompt), target, sampling.separator_ids)
    return sums_where(branches.is_target, token_logps_of(encoded, branches, branches.is_target).exp())


def target_measures(logits_NV: Tensor, ids_N: Tensor) -> Measures:
    """Of each target token: its log-probability in nats, with gradient; without: its probability, the prediction's
    entropy in nats, and 1 where the token is the likeliest one."""
    logp_N = token_logps(logits_NV, ids_N)
    fixed_NV = logits_NV.detach().float()
    return {
        "logp": logp_N,
        "probability": logp_N.detach().exp(),
        "entropy": Categorical(logits=fixed_NV, validate_args=False).entropy(),
        "correct": (fixed_NV.argmax(-1) == ids_N).long(),
    }


def decision_measures(
    logits_NV: Tensor,
    ids_N: Tensor,
    is_end_N: Tensor,
    reference_NV: Tensor | None = None,
    *,
    sampling: SamplingSettings,
    with_logp: bool,
    kl_from_reference: bool,
) -> Measures:
    """Of each decision of a warmup, in nats: its log-probability; the divergence from a reference; and, where the
    separator is learned, `ending_logps`, with the reference's ends or, without one, the warmup's own."""
    found = {}
    if with_logp:
        found["logp"] = sampling.logps(logits_NV, ids_N)
    if reference_NV is not None:
        both = [sampling.with_one_end(x) for x in (reference_NV, logits_NV)]
        found["kl"] = divergence(*(both if kl_from_reference else reversed(both)))
    if sampling.closing_id is not None:
        ended_N = is_end_N.float() if reference_NV is None else sampling.end_probabilities(reference_NV)
        found["ending"] = sampling.ending_logps(logits_NV, ended_N)
    return found
