"""Trainers that take something away, to see what it was worth. Only `warmup-peft compare` uses them."""

from __future__ import annotations

from warmup_peft.method.branches import Warmups, no_warmups
from warmup_peft.training.trainer import WarmupSFTTrainer


class EmptyWarmupTrainer(WarmupSFTTrainer):
    """The separator stands right behind the prompt: what does the method gain from everything but the warmups?"""

    def _sample(self, model, encoded) -> Warmups:
        return no_warmups(encoded.prompt)


class AnothersWarmupTrainer(WarmupSFTTrainer):
    """Each example gets the warmups of the one before it: does it matter what they say?"""

    _previous: Warmups | None = None  # of the last example of the batch before

    def _sample(self, model, encoded) -> Warmups:
        own = super()._sample(model, encoded)
        lenders = Warmups(*(values.roll(1, 0) for values in own[:3]))
        if len(own.ids) == 1:
            lenders, self._previous = self._previous or own.emptied(own.lengths >= 0), own
        return lenders
