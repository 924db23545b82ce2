"""`warmup-peft compare`: train a recipe with and without warmups, and say whether they help."""

from __future__ import annotations

from collections.abc import Sequence

from warmup_peft.comparison.experiment import run_compare


def run(argv: Sequence[str]) -> None:
    run_compare(argv)
