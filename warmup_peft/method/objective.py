"""The method on one page: what is minimised, given log-probabilities.

Tensors only. Knows no model and no tokenizer.

For a prompt x, a target y, a separator s and warmups c drawn from the model itself,

    P(y|x) = E_{c ~ P(c|x)} [ P(y|x,c,s) ]
    -log P(y|x)  <=  E_c [ -log P(y|x,c,s) ]                                        (Jensen)

and the right-hand side is estimated with K warmups, drawn without gradient ("Warmup Generations", Li et al.,
arXiv 2502.12304). With R_i = log P(y|x,c_i,s), in nats, summed over the tokens of y, never averaged:

    loss(x) = 1/K sum_i ( -R_i  +  beta * KL_i )

A batch's loss is the sum of loss(x) divided by the number of target tokens, each target counted once however many
warmups it has, so that with beta = 0 it reads like TRL's cross-entropy in nats a token.

Where this departs from the paper:

1. Warmups may be drawn independently (`multinomial`) beside the paper's beam search with sampling (`beam`). Only
   independent draws make the mean above an unbiased estimate of the bound.
2. The gradient of the bound has a second term, through P(c|x). Like the paper, this loss leaves it out: the gradient
   reaches the warmups' law only through the weights that warmup and target share.
3. Because of 2, that law drifts, and with short answers it collapses into a draft of the answer. `beta` > 0 (the
   anchor, 0 in the paper) holds it near the model with its adapter switched off, KL_i being the divergence
   KL(P(.|x,c_<t) || P_off(.|x,c_<t)) over the whole vocabulary, summed over the decisions t of warmup i: each of its
   tokens, and the stop where the model stopped by itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def warmup_loss(target_logp_BK: Tensor, kl_BK: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """Sum over the batch of loss(x), in nats; the caller divides by the number of target tokens.

    Args:
        target_logp_BK: log P(y|x,c_i,s), summed over the tokens of y.
        kl_BK: the anchor's divergence, summed over the decisions of each warmup; None without an anchor.
        beta: weight of the anchor.
    """
    loss_BK = -target_logp_BK
    if kl_BK is not None:
        loss_BK = loss_BK + beta * kl_BK
    return loss_BK.mean(dim=1).sum()


def token_logps(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """(N,) log-probabilities of the given tokens in nats, computed in float32."""
    return -F.cross_entropy(logits_NV.float(), ids_N, reduction="none")


def divergence(logits_NV: Tensor, reference_logits_NV: Tensor) -> Tensor:
    """(N,) KL(model || reference) in nats over the whole vocabulary, computed in float32."""
    logp_NV = logits_NV.float().log_softmax(-1)
    reference_logp_NV = reference_logits_NV.float().log_softmax(-1)
    return F.kl_div(reference_logp_NV, logp_NV, reduction="none", log_target=True).sum(-1)
