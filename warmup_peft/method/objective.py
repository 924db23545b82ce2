"""The method on one page: what is minimised, given log-probabilities.

Tensors only. Knows no model and no tokenizer.

For a prompt x, a target y, a separator s and warmups c sampled from the model itself,

    P(y|x) = E_{c ~ P(c|x)} [ P(y|x,c,s) ]
    -log P(y|x)  <=  E_c [ -log P(y|x,c,s) ]                                        (Jensen)

and everything below is estimated with K warmups, sampled without gradient. Let R_i = log P(y|x,c_i,s), in nats, summed
over the tokens of y, never averaged, and p_i = exp(R_i). Every method of this family is two K-vectors, both without
gradient: a weight w_i on R_i and an advantage A_i on log P(c_i|x):

    gradient of loss(x) = - sum_i ( w_i grad R_i + A_i grad log P(c_i|x) )  +  beta/K sum_i grad KL_i

| objective      | w_i          | A_i                                    | maximises            | source              |
|----------------|--------------|----------------------------------------|----------------------|---------------------|
| `warmup`       | 1/K          | 0                                      | E[R], through R only | 2502.12304          |
| `jensen`       | 1/K          | (R_i - mean_{j!=i} R_j) / K            | E[R]                 | JEPO 2503.19618 (5) |
| `log_mean_exp` | softmax(R)_i | log mean_j p_j - log mean_{j!=i} p_j   | E[log mean_j p_j]    | JEPO (7), VIMCO     |
| `latro`        | 1/K          | as `jensen`, R - beta KL for R         | E[R] - beta E[KL]    | LaTRO 2411.04282    |
| `verifree`     | p_i / K      | (p_i - mean_{j!=i} p_j) / K            | E[p] = P(y|x)        | VeriFree 2505.21493 |
| `posterior`    | softmax(r)_i | softmax(r)_i, r = R + log ratio        | log P(y|x), sampled  | RWS 1406.2751       |
| `rlpr`         | 1/K          | (q_i - q_0, within 0 and 1) / K        | E[R], E[q - q_0]     | RLPR 2506.18254     |

q_i is the mean probability of a target token after warmup i, q_0 the same after no warmup (prompt, separator). The log
ratio is log P(c|x) - log Q(c|x) for warmups sampled from another distribution Q, such as the base model's, and 0 for
the model's own. Another method is one function of a few lines here, one row above, and one row in
`warmup_peft.settings.traits`. The leave-one-out means make the estimates unbiased: a mean that includes i would
shrink the gradient to (K-1)/K. In `log_mean_exp` the advantages are summed, not averaged.

A batch's loss is the sum of loss(x) divided by the number of target tokens, each target counted once however many
warmups it has. The number that is logged is what the row maximises, negated; so with `warmup` and beta = 0 it reads
like TRL's cross-entropy in nats a token.

Where this departs from the papers:

1. Warmups may be sampled independently (`multinomial`) beside Warmup Generations' beam search with sampling (`beam`).
   Only independent samples make these estimates unbiased, so every row with an A_i refuses `beam`.
2. The gradient of E[R] has a second term, through P(c|x), which Warmup Generations leaves out, and `warmup` too: its
   gradient reaches the warmups' distribution only through the weights that warmup and target share. `jensen` has it.
3. Because of 2 that distribution drifts, and with short answers it collapses into a draft of the answer. `beta` > 0
   (the anchor, 0 in the paper) holds it near the model with its adapter switched off. KL_i is the divergence
   KL(P_off(.|x,c_<t) || P(.|x,c_<t)) over the whole vocabulary, summed over the decisions t of warmup i: each of its
   tokens, and the stop where the model stopped by itself. This direction keeps alive whatever P_off may write. The
   other one, KL(P || P_off), hardly minds if P forgets one of several things that P_off may write, and a useful
   warmup that is rare may be forgotten before the model has learnt to read it (`recipes/logiqa` has figures).
4. `latro` has KL(P || P_off) in what it maximises, so its KL_i is that. It takes KL_i, not the sampled log-ratio, into
   its reward: the same mean, less variance, and exact together with the gradient of KL_i itself. Its w_i is not 0: the
   exact gradient of E[R] has both terms.
5. Warmups may come from the model with its adapter off (Q), sampled once before training. Then KL_i is the sampled
   log Q(c_i|x) - log P(c_i|x), whose gradient is cross-entropy's on those very warmups and whose mean is KL(Q || P).
   `posterior` becomes reweighted wake-sleep: the exact gradient of E_Q[log mean_i P(c_i|x) P(y|x,c_i) / Q(c_i|x)].
   Rows that compare the model's own samples with each other refuse such warmups.
6. `rlpr` trains the reference answer itself (w_i = 1/K), where RLPR trains the answers that were sampled, and it does
   not drop examples whose rewards hardly vary.
7. Advantages are taken as the table has them; normalising and clipping them are offered.
8. With `hindsight_steps`, the first steps use `hindsight_credit` instead of a row: w_i follows how much of the target
   stands in warmup i, and A_i is 0. A warmup is only worth choosing once it is read, and where useful warmups are rare
   the other weights teach no reading. It is STaR's rationalisation (2203.14465), picked out instead of written.
9. With `learn_separator` the model learns to write opening o and separator s by itself. The loss has a term more:
   minus log P(o|x), minus 1/K sum_i of the log-probability of s behind its first token, and of
   sum_t e_t log P(s_1|x,c_<t) + (1 - e_t) log (1 - P(end|x,c_<t)) over the decisions t of c_i. Here P(end) is that of
   all end tokens and of s_1, which the objective and the anchor take for one event, and e_t is P_off(end|x,c_<t), or
   without an anchor whether warmup i ended there. So s_1 takes the place of the end tokens, where P_off would end:
   warmups become neither shorter nor longer by it.
10. R_i of -inf (a target the model cannot write) counts as the lowest finite one of its example and gets no weight.
11. log P(c_i|x) is a sum over the decisions of c_i, as the exact gradient has it, so long warmups move the weights
    more than short ones. `warmup_loss_type` can divide every A_i, with TRL's names: `dr_grpo` by W, which leaves the
    term through P(c|x) exact but for that constant; `bnpo` by the mean number of decisions of the batch's warmups,
    which is biased, because it depends on the very samples that A_i weighs. As in TRL's GRPO that batch is the one of
    a device, so two devices with half of it each are not exactly one device with all of it.
12. With `mask_truncated_warmups`, warmups that did not stop within W have no w_i, A_i and KL_i (9 keeps its terms),
    and the number K' of the others takes the place of K. Given K', those are independent samples of P(c|x,stop), and
    the estimates are exact for E[R|stop] (`warmup` through R only, `jensen`), E[R - beta KL|stop] (`latro`),
    E[p|stop] (`verifree`) and a bound on log P(y,stop|x) (`posterior`). For that log P(c|x,stop) itself is not needed:
    it is log P(c|x) - log P(stop|x), and leave-one-out advantages sum to 0. Where K' is 1 there is nothing to compare
    with, and A_i is 0. `rlpr` does not centre its advantages: a truncated warmup has the reward 0 there, A_i keeps
    its 1/K, and what is maximised is E[(q - q_0) 1(stop)]. `log_mean_exp` refuses: its advantages sum to more than
    0, and would train stopping for its own sake. The anchor is the mean over warmups that stop; with 5 it is
    KL(Q(.|x,stop) || P).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from warmup_peft.settings.traits import OBJECTIVE_TRAITS

Credit = tuple[Tensor, Tensor]
SPREAD_FLOOR = 1e-4  # so that advantages that hardly differ stay small when they are normalised


class RewardTerms(NamedTuple):
    """What a row of the table may look at: (B, K) each, finite, in float32 and without gradient.

    Where R is -inf, `logp_BK` has a finite number in its place: a row that picks warmups looks at `possible_BK` too.
    """

    logp_BK: Tensor  # R
    penalty_BK: Tensor  # beta KL
    log_ratio_BK: Tensor  # log P(c|x) - log Q(c|x)
    gain_BK: Tensor  # q - q_0
    possible_BK: Tensor  # where R was finite
    counts_BK: Tensor  # which warmups are not left out

    @property
    def num_B1(self) -> Tensor:
        """How many warmups count, at least 1."""
        return self.counts_BK.sum(1, keepdim=True).clamp(min=1)

    def mean(self, values_BK: Tensor) -> Tensor:
        """(B,) over the warmups that count."""
        return mean_where(self.counts_BK, values_BK)

    def over_others(self, values_BK: Tensor) -> Tensor:
        """Each value less the mean of the other ones that count (leave-one-out); zeros where there is no other one."""
        sum_B1 = (values_BK * self.counts_BK).sum(1, keepdim=True)
        others_BK = (sum_B1 - values_BK) / (self.num_B1 - 1).clamp(min=1)
        return (values_BK - others_BK) * (self.num_B1 > 1)

    def shares(self, logp_BK: Tensor) -> Tensor:
        """softmax over what is possible and counts; zeros where nothing is."""
        return logp_BK.masked_fill(~(self.possible_BK & self.counts_BK), -math.inf).softmax(1).nan_to_num(0.0)


class Objective(NamedTuple):
    """A row of the table: its weights and advantages, and (B,) what it maximises, estimated, without its KL."""

    credit: Callable[[RewardTerms], Credit]
    value: Callable[[RewardTerms], Tensor]


OBJECTIVES: dict[str, Objective] = {}


def maximises(value: Callable[[RewardTerms], Tensor]) -> Callable:
    """Add a function to the table, under its own name."""

    def add(credit: Callable[[RewardTerms], Credit]) -> Callable[[RewardTerms], Credit]:
        OBJECTIVES[credit.__name__] = Objective(credit, value)
        return credit

    return add


def mean_where(counts_BK: Tensor, values_BK: Tensor) -> Tensor:
    """(B,) mean of the values where the mask is true; 0 where it is nowhere."""
    return (values_BK * counts_BK).sum(1) / counts_BK.sum(1).clamp(min=1)


def mean_logp(terms: RewardTerms) -> Tensor:
    return terms.mean(terms.logp_BK)


def mean_probability(terms: RewardTerms) -> Tensor:
    return terms.mean(terms.logp_BK.exp())


def log_of_mean(terms: RewardTerms) -> Tensor:
    """The log ratio is 0 for the model's own warmups."""
    joint_BK = (terms.logp_BK + terms.log_ratio_BK).masked_fill(~terms.counts_BK, -math.inf)
    return torch.where(terms.counts_BK.any(1), joint_BK.logsumexp(1) - terms.num_B1.squeeze(1).log(), 0.0)


def equal_weights(terms: RewardTerms) -> Tensor:
    return torch.ones_like(terms.logp_BK) / terms.num_B1


@maximises(mean_logp)
def warmup(terms: RewardTerms) -> Credit:
    return equal_weights(terms), torch.zeros_like(terms.logp_BK)


@maximises(mean_logp)
def jensen(terms: RewardTerms) -> Credit:
    return equal_weights(terms), terms.over_others(terms.logp_BK) / terms.num_B1


@maximises(log_of_mean)
def log_mean_exp(terms: RewardTerms) -> Credit:
    logp_BK, num_warmups = terms.logp_BK, terms.logp_BK.size(1)
    others_BKK = logp_BK.unsqueeze(1).expand(-1, num_warmups, -1)
    itself = torch.eye(num_warmups, dtype=torch.bool, device=logp_BK.device)
    without_it_BK = others_BKK.masked_fill(itself, -math.inf).logsumexp(-1) - math.log(num_warmups - 1)
    with_it_B1 = logp_BK.logsumexp(1, keepdim=True) - math.log(num_warmups)
    return terms.shares(logp_BK), with_it_B1 - without_it_BK


@maximises(mean_logp)
def latro(terms: RewardTerms) -> Credit:
    return jensen(terms._replace(logp_BK=terms.logp_BK - terms.penalty_BK))


@maximises(mean_probability)
def verifree(terms: RewardTerms) -> Credit:
    p_BK = terms.logp_BK.exp()
    return p_BK / terms.num_B1, terms.over_others(p_BK) / terms.num_B1


@maximises(log_of_mean)
def posterior(terms: RewardTerms) -> Credit:
    weight_BK = terms.shares(terms.logp_BK + terms.log_ratio_BK)
    return weight_BK, weight_BK


@maximises(mean_logp)
def rlpr(terms: RewardTerms) -> Credit:
    return equal_weights(terms), terms.gain_BK.clamp(0, 1) / terms.logp_BK.size(1)


def terms_of(
    target_logp_BK: Tensor,
    penalty_BK: Tensor | None = None,
    log_ratio_BK: Tensor | None = None,
    gain_BK: Tensor | None = None,
    counts_BK: Tensor | None = None,
) -> RewardTerms:
    """Zeros where a term is not given. Where R is not finite, the lowest finite one of its example (0 without any)."""
    logp_BK = target_logp_BK.detach().float()
    possible_BK = logp_BK.isfinite()
    lowest_B1 = logp_BK.masked_fill(~possible_BK, 0.0).amin(1, keepdim=True)
    logp_BK = torch.where(possible_BK, logp_BK, lowest_B1)
    others = (penalty_BK, log_ratio_BK, gain_BK)
    return RewardTerms(
        logp_BK,
        *(torch.zeros_like(logp_BK) if x is None else x.detach().float() for x in others),
        possible_BK,
        torch.ones_like(possible_BK) if counts_BK is None else counts_BK,
    )


def assign_credit(
    target_logp_BK: Tensor,
    objective: str = "warmup",
    *,
    penalty_BK: Tensor | None = None,
    log_ratio_BK: Tensor | None = None,
    gain_BK: Tensor | None = None,
    counts_BK: Tensor | None = None,
    normalize_advantages: bool = False,
    advantage_clip: float | None = None,
) -> Credit:
    """Weights w and advantages A of the table above, (B, K) each, in float32 and without gradient.

    Args:
        target_logp_BK: R, log P(y|x,c_i,s) in nats, summed over the tokens of y.
        objective: a row of the table.
        penalty_BK: beta * KL_i, for `latro`.
        log_ratio_BK: log P(c|x) - log Q(c|x) in nats, for `posterior` with warmups of another distribution.
        gain_BK: q_i - q_0, for `rlpr`. Zeros where these three are not given.
        counts_BK: false where a warmup is left out, its w_i and A_i 0; None leaves out none.
        normalize_advantages: centre each example's advantages, and divide by K times their standard deviation.
        advantage_clip: keep every A_i, after that, within plus and minus this.

    Raises:
        ValueError: an unknown objective, one that compares warmups where there is only one, or one that cannot leave
            out warmups where it shall.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective} is unknown. Choose one of {', '.join(OBJECTIVES)}.")
    if OBJECTIVE_TRAITS[objective].compares_warmups and target_logp_BK.size(1) < 2:
        raise ValueError(f"objective={objective} compares warmups with each other. Set num_warmups to 2 or more.")
    if counts_BK is not None and not OBJECTIVE_TRAITS[objective].may_leave_out:
        raise ValueError(f"objective={objective} has no unbiased estimate that leaves out warmups.")
    terms = terms_of(target_logp_BK, penalty_BK, log_ratio_BK, gain_BK, counts_BK)
    weight_BK, advantage_BK = OBJECTIVES[objective].credit(terms)
    if normalize_advantages:
        centred_BK = advantage_BK - terms.mean(advantage_BK).unsqueeze(1)
        spread_B1 = terms.mean(centred_BK.square()).sqrt().unsqueeze(1)
        advantage_BK = centred_BK / (spread_B1 + SPREAD_FLOOR) / terms.num_B1
    if advantage_clip is not None:
        advantage_BK = advantage_BK.clamp(-advantage_clip, advantage_clip)
    has_credit_BK = terms.possible_BK.any(1, keepdim=True) & terms.counts_BK
    return weight_BK * (terms.possible_BK & terms.counts_BK), advantage_BK * has_credit_BK


def over_length(advantage_BK: Tensor, loss_type: str, num_decisions_BK: Tensor, max_length: int) -> Tensor:
    """(B, K) advantages for `warmup_loss_type`, which takes long warmups' greater share from them.

    Args:
        advantage_BK: A.
        loss_type: `sum` changes nothing, `dr_grpo` divides by `max_length`, `bnpo` by the mean number of decisions.
        num_decisions_BK: of each warmup, 0 where it is left out.
        max_length: W, tokens.
    """
    if loss_type == "sum":
        return advantage_BK
    if loss_type == "dr_grpo":
        return advantage_BK / max_length
    num_counted = (num_decisions_BK > 0).sum().clamp(min=1)
    return advantage_BK * num_counted / num_decisions_BK.sum().clamp(min=1)


def hindsight_credit(target_logp_BK: Tensor, found_BK: Tensor, counts_BK: Tensor | None = None) -> Credit:
    """Weights and advantages of the first steps: the target is trained after warmups that hold some of it.

    Args:
        target_logp_BK: R in nats.
        found_BK: share of the target's words that stand in each warmup, 0 to 1.
        counts_BK: false where a warmup is left out; None leaves out none.

    Returns:
        w_i = found_i / sum_j found_j, zeros for an example whose warmups hold nothing of its target; and A_i = 0.
    """
    found_BK = found_BK.float() * target_logp_BK.isfinite() * (1 if counts_BK is None else counts_BK)
    weight_BK = found_BK / found_BK.sum(1, keepdim=True).clamp(min=torch.finfo(found_BK.dtype).tiny)
    return weight_BK, torch.zeros_like(weight_BK)


def objective_value(
    target_logp_BK: Tensor,
    objective: str,
    log_ratio_BK: Tensor | None = None,
    counts_BK: Tensor | None = None,
) -> Tensor:
    """(B,) what the row of the table maximises, estimated from the warmups that count, without its KL; to be logged.

    An example whose target is impossible after every warmup, or none of whose warmups counts, counts 0. Of `rlpr` it
    is E[R].
    """
    return OBJECTIVES[objective].value(terms_of(target_logp_BK, log_ratio_BK=log_ratio_BK, counts_BK=counts_BK))


class Scores(NamedTuple):
    """What was measured of a batch's warmups: (B, K) each, in nats, with gradient where one flows.

    Attributes:
        target_logp_BK: R, log P(y|x,c_i,s), summed over the tokens of y.
        warmup_logp_BK: log P(c_i|x) under the distribution that warmups are sampled from, truncated as it is; None
            where nothing needs it.
        kl_BK: the anchor's divergence, summed over the decisions of each warmup; None without an anchor.
        source_logp_BK: log Q(c_i|x) where the warmups were sampled from another distribution Q.
        gain_BK: q_i - q_0, probabilities, for `rlpr`.
        entropy_BK: entropy of the predictions of the target's tokens, summed over them, without gradient.
        correct_BK: how many of the target's tokens are the likeliest ones.
        format_logp_BK: log-probability of opening and separator, where the model learns to write them by itself.
        counts_BK: false where a warmup is left out (`mask_truncated_warmups`); None leaves out none.
    """

    target_logp_BK: Tensor
    warmup_logp_BK: Tensor | None = None
    kl_BK: Tensor | None = None
    source_logp_BK: Tensor | None = None
    gain_BK: Tensor | None = None
    entropy_BK: Tensor | None = None
    correct_BK: Tensor | None = None
    format_logp_BK: Tensor | None = None
    counts_BK: Tensor | None = None

    @property
    def log_ratio_BK(self) -> Tensor | None:
        if self.source_logp_BK is None or self.warmup_logp_BK is None:
            return None
        return (self.warmup_logp_BK - self.source_logp_BK).detach()


def credit_of(scores: Scores, objective: str, beta: float, **shaping: bool | float | None) -> Credit:
    """`assign_credit` from a batch's scores; `shaping` is `normalize_advantages` and `advantage_clip`."""
    return assign_credit(
        scores.target_logp_BK,
        objective,
        penalty_BK=None if scores.kl_BK is None else beta * scores.kl_BK,
        log_ratio_BK=scores.log_ratio_BK,
        gain_BK=scores.gain_BK,
        counts_BK=scores.counts_BK,
        **shaping,
    )


def warmup_loss(scores: Scores, credit: Credit, *, objective: str = "warmup", beta: float = 0.0) -> Tensor:
    """Sum over the batch of loss(x), in nats; the caller divides by the number of target tokens.

    Its gradient is that of the table; its value is the objective's, negated, plus the anchor and, where the model
    learns to write it, the format.

    Args:
        scores: what was measured of the batch.
        credit: weights and advantages, from `credit_of`.
        objective: a row of the table.
        beta: weight of the anchor.
    """
    weight_BK, advantage_BK = credit
    surrogate = -(weight_BK * torch.where(weight_BK > 0, scores.target_logp_BK, 0.0)).sum()
    if scores.warmup_logp_BK is not None:
        surrogate = surrogate - (advantage_BK * scores.warmup_logp_BK).sum()
    value = -objective_value(scores.target_logp_BK, objective, scores.log_ratio_BK, scores.counts_BK).sum()
    loss = surrogate + (value - surrogate).detach()
    if scores.format_logp_BK is not None:
        loss = loss - scores.format_logp_BK.mean(1).sum()
    if scores.kl_BK is None:
        return loss
    counts_BK = torch.ones_like(scores.kl_BK) if scores.counts_BK is None else scores.counts_BK
    return loss + beta * mean_where(counts_BK, scores.kl_BK).sum()


def token_logps(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """(N,) log-probabilities of the given tokens in nats, computed in float32."""
    return -F.cross_entropy(logits_NV.float(), ids_N, reduction="none")


def divergence(logits_NV: Tensor, other_logits_NV: Tensor) -> Tensor:
    """(N,) KL(P || other) in nats over the whole vocabulary, computed in float32, with gradient through both."""
    logp_NV = logits_NV.float().log_softmax(-1)
    other_logp_NV = other_logits_NV.float().log_softmax(-1)
    return F.kl_div(other_logp_NV, logp_NV, reduction="none", log_target=True).sum(-1)
