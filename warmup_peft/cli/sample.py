"""`warmup-peft sample`: from a recipe to the warmups that an adapter will be trained on."""

from __future__ import annotations

from collections.abc import Sequence

from warmup_peft.cli.train import run_draw
from warmup_peft.settings.arguments import SampleOptions
from warmup_peft.training.config import parse_training


def run(argv: Sequence[str]) -> None:
    run_draw(*parse_training([*argv, "--warmup_source", "base"], SampleOptions))
