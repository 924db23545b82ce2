"""`warmup-peft inspect`: the warmups of a run, and where they change the answer."""

from __future__ import annotations

from collections.abc import Sequence

from warmup_peft.comparison.inspection import run_inspection
from warmup_peft.settings.arguments import InspectArguments
from warmup_peft.settings.parsing import parse_one


def run(argv: Sequence[str]) -> None:
    run_inspection(parse_one(InspectArguments, argv))
