"""`warmup-peft sample`: the warmups of `warmup_source: base`, and no training."""

from __future__ import annotations

from collections.abc import Sequence

from warmup_peft.cli.train import run_draw
from warmup_peft.settings.arguments import DrawOptions
from warmup_peft.training.config import parse_training


def run(argv: Sequence[str]) -> None:
    run_draw(*parse_training([*argv, "--warmup_source", "base"], DrawOptions))
