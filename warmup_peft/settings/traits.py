"""What each objective and each source of warmups needs and allows, one row each. Loads no torch.

The objectives' equations are in `warmup_peft.method.objective`, the sources' code in `warmup_peft.training.sources`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ObjectiveTraits:
    """What an objective needs of its warmups, and which options fit it.

    Attributes:
        has_advantage: it has an advantage on log P(c|x), so it trains the warmups too, and they must be independent
            samples.
        compares_warmups: it compares an example's warmups with each other, so there must be two or more.
        needs_gain: it needs the target's mean probability after a warmup, less that after none.
        takes_base_warmups: it also works with warmups of the base model (`warmup_source: base`).
        has_equal_weights: every warmup counts the same, so some may be left out (`warmup_dropout`).
        is_penalised: it maximises a reward less KL(P || P_off), which is then the anchor's divergence too.
        is_centred: its advantages have a mean that may be normalised; without an advantage this says nothing.
        may_leave_out: its estimates stay unbiased where some samples are left out (`mask_truncated_warmups`).
        correction: which ratio weighs warmups that another engine sampled, see `warmup_peft.method.importance`:
            'each' its own, 'together' that of all K, 'itself' none, since its equation has the ratio.
    """

    has_advantage: bool = True
    compares_warmups: bool = True
    needs_gain: bool = False
    takes_base_warmups: bool = False
    has_equal_weights: bool = False
    is_penalised: bool = False
    is_centred: bool = True
    may_leave_out: bool = True
    correction: Literal["each", "together", "itself"] = "each"


OBJECTIVE_TRAITS = {
    "warmup": ObjectiveTraits(
        has_advantage=False, compares_warmups=False, takes_base_warmups=True, has_equal_weights=True
    ),
    "jensen": ObjectiveTraits(has_equal_weights=True),
    "log_mean_exp": ObjectiveTraits(may_leave_out=False, correction="together"),
    "latro": ObjectiveTraits(has_equal_weights=True, is_penalised=True),
    "verifree": ObjectiveTraits(),
    "posterior": ObjectiveTraits(
        compares_warmups=False, takes_base_warmups=True, is_centred=False, correction="itself"
    ),
    "rlpr": ObjectiveTraits(compares_warmups=False, needs_gain=True, has_equal_weights=True),
}


@dataclass(frozen=True)
class SourceTraits:
    """What a source of warmups allows.

    Attributes:
        is_control: it takes the row's own warmups away, in training and in scoring, to show what they are worth.
        may_be_anchored: its warmups have tokens that an anchor can hold.
    """

    is_control: bool = False
    may_be_anchored: bool = True


SOURCE_TRAITS = {
    "policy": SourceTraits(),
    "base": SourceTraits(),
    "shuffled": SourceTraits(is_control=True),
    "empty": SourceTraits(is_control=True, may_be_anchored=False),
}


def objectives_with(trait: str) -> tuple[str, ...]:
    """Names of the objectives that have this trait."""
    return tuple(name for name, traits in OBJECTIVE_TRAITS.items() if getattr(traits, trait))
