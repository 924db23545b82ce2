"""`warmup-peft compare`: train a recipe with and without warmups, and say whether they help."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from warmup_peft.comparison.compare import compare
from warmup_peft.comparison.experiment import REPORTS
from warmup_peft.comparison.report.terminal import print_comparison
from warmup_peft.settings.arguments import CompareOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.config import TRAINING_KINDS


def run(argv: Sequence[str]) -> None:
    """Run every arm with every seed that is not done yet, and report.

    Raises:
        ValueError: bad input, before anything is trained; or every run failed.
        OSError: the disk is full. Finished runs are kept.
    """
    recipe, options = read_recipe(argv)
    comparison = compare(recipe, command=shlex.join(["warmup-peft", "compare", *argv]), **vars(options))
    print_comparison(comparison, Console())
    print("Report: " + ", ".join(str(Path(comparison.folder, name)) for name in REPORTS))
    if not any(summary.seeds for summary in comparison.arms):
        raise ValueError(f"Every run failed, the first one so: {next(iter(comparison.arms[0].failures.values()))}")


def read_recipe(argv: Sequence[str]) -> tuple[Recipe, CompareOptions]:
    """The recipe that the arms change, and the options of `compare`. Raises ValueError for bad input."""
    recipe = Recipe.read(argv, *TRAINING_KINDS, CompareOptions)
    for option in dataclasses.fields(CompareOptions):
        if option.name in recipe.file:
            raise ValueError(
                f"The recipe has the key '{option.name}', which is compare's own. Give it as --{option.name} instead."
            )
    return recipe.restricted_to(*TRAINING_KINDS), recipe.restricted_to(CompareOptions).settings()[0]
