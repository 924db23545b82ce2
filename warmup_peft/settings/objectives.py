"""What each objective needs, one row each. Loads no torch; the equations are in `warmup_peft.method.objective`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What an objective needs of its warmups, and which options fit it.

    Attributes:
        warmup_logp: it has an advantage on log P(c|x), so warmups must be independent samples.
        other_warmups: it compares an example's warmups with each other, so there must be two or more.
        gain: it needs the target's mean probability after a warmup, less that after none.
        any_source: it also works with warmups of the base model (`warmup_source: base`).
        equal_weights: every warmup counts the same, so some may be left out (`warmup_dropout`).
        has_centre: its advantages may be normalised.
    """

    warmup_logp: bool = True
    other_warmups: bool = True
    gain: bool = False
    any_source: bool = False
    equal_weights: bool = False
    has_centre: bool = True


OBJECTIVE_NEEDS = {
    "warmup": Needs(warmup_logp=False, other_warmups=False, any_source=True, equal_weights=True),
    "jensen": Needs(equal_weights=True),
    "log_mean_exp": Needs(),
    "latro": Needs(equal_weights=True),
    "verifree": Needs(),
    "posterior": Needs(other_warmups=False, any_source=True, has_centre=False),
    "rlpr": Needs(other_warmups=False, gain=True, equal_weights=True),
}


def objectives_with(need: str) -> tuple[str, ...]:
    """Names of the objectives whose `Needs` say yes to this."""
    return tuple(name for name, needs in OBJECTIVE_NEEDS.items() if getattr(needs, need))
