"""Warmups that another engine sampled, weighed so that they count as the model's own. Tensors only.

An engine such as vLLM computes the same model with other kernels, often in another precision. Its warmups come from a
distribution Q that is nearly the model's P(.|x), and what `warmup_peft.method.objective` estimates is a mean over P.
Let rho_i = P(c_i|x) / Q(c_i|x), of all decisions of warmup i: its tokens, and the stop. For any function f

    E_{c ~ P} [ f(c) ]  =  E_{c ~ Q} [ rho(c) f(c) ]

so what a gradient says of one warmup is multiplied by that warmup's rho, without gradient:

| objective                                          | w_i and A_i are multiplied by       |
|----------------------------------------------------|-------------------------------------|
| `warmup`, `jensen`, `latro`, `verifree`, `rlpr`    | rho_i                               |
| `log_mean_exp`                                     | the product of rho_j over all K     |
| `posterior`                                        | 1; its log ratio is log rho_i       |

The first five are means over warmups one by one. Their leave-one-out means stay unweighted: any baseline that does
not look at warmup i leaves E[rho_i baseline grad log P(c_i|x)] = 0. `log_mean_exp` estimates log mean_j p_j of K
warmups together, so the ratio is that of all K, and its variance grows with K. `posterior` is reweighted wake-sleep,
which takes samples of any Q: E_Q[log mean_i P(c_i|x) P(y|x,c_i) / Q(c_i|x)], whose gradient needs no other correction.
The anchor's KL_i, and with `learn_separator` the log-probability of the format, are means over warmups: rho_i for all
rows.

A ratio beyond the clip values is replaced by the nearer one (`sequence_truncate`) or by 0 (`sequence_mask`), as TRL
does. That costs a bias where it happens, and bounds the variance. Where it does not happen, the gradient is exact.
TRL's ratios of single tokens are not offered: w_i stands for a whole warmup, and so would be biased by them.

With `mask_truncated_warmups` the mean is over warmups that stop, and rho_i is exact but for Q(stop|x) / P(stop|x), a
factor near 1 that all warmups of a prompt share and that is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warmup_peft.method.objective import Credit, Scores
from warmup_peft.settings.traits import OBJECTIVE_TRAITS


class RatioBounds(NamedTuple):
    """What becomes of a ratio below `smallest` or above `largest`; None is no bound.

    Attributes:
        masks: it becomes 0, and not the bound.
    """

    smallest: float | None = None
    largest: float | None = None
    masks: bool = False

    def ratio(self, log_ratio: Tensor) -> Tensor:
        """exp of a log ratio in nats, within the bounds."""
        ratio = log_ratio.exp()
        if self.smallest is None and self.largest is None:
            return ratio
        within = ratio.clamp(self.smallest, self.largest)
        return torch.where(within == ratio, ratio, 0.0) if self.masks else within


def with_source(scores: Scores, log_ratio_BK: Tensor, objective: str) -> Scores:
    """Scores that say log Q(c_i|x), for the rows of the table that take samples of any Q; others as they are.

    Args:
        log_ratio_BK: log rho_i in nats.
    """
    if OBJECTIVE_TRAITS[objective].correction != "itself":
        return scores
    return scores._replace(source_logp_BK=scores.warmup_logp_BK.detach() - log_ratio_BK)


def corrected(
    scores: Scores, credit: Credit, log_ratio_BK: Tensor, objective: str, bounds: RatioBounds
) -> tuple[Scores, Credit]:
    """Weights, advantages, divergences and format log-probabilities of the batch, weighed as the table above says.

    Args:
        credit: of `credit_of`, with advantages that were normalised and clipped already.
        log_ratio_BK: log rho_i in nats, without gradient.
    """
    ratio_BK = bounds.ratio(log_ratio_BK)
    joint_B1 = bounds.ratio(log_ratio_BK.sum(1, keepdim=True))
    of_credit = {"each": ratio_BK, "together": joint_B1, "itself": 1.0}[OBJECTIVE_TRAITS[objective].correction]
    weight_BK, advantage_BK = credit
    means = {"kl_BK": scores.kl_BK, "format_logp_BK": scores.format_logp_BK}
    weighed = {name: values * ratio_BK for name, values in means.items() if values is not None}
    return scores._replace(**weighed), (weight_BK * of_credit, advantage_BK * of_credit)
