"""Compare a recipe with and without warmups: `warmup_peft.compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from warmup_peft.comparison.experiment import plan_experiment, run_experiment
from warmup_peft.comparison.results import Comparison
from warmup_peft.comparison.significance import minimum_detectable_effect
from warmup_peft.settings.arguments import CompareOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.config import read_recipe

LARGE_EFFECT = 0.1  # where no smaller difference can be detected, the user is warned


def compare(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    arms: str | Iterable[str] = "sft,more_sft,warmup",
    seeds: str | Iterable[int] = "0,1,2",
    *,
    output_dir: str | Path | None = None,
    overwrite_output_dir: bool = False,
    command: str = "",
    **options: Any,
) -> Comparison:
    """Train every arm with every seed that is not done yet, each in a process of its own, and report.

    Args:
        recipe: a YAML file, or its keys and values.
        arms, seeds: names and whole numbers, as lists or separated by commas. `warmup-peft compare --help` has the
            arms.
        output_dir: folder of the runs and of the report; by default the recipe's `output_dir` with `-compare`. The
            same call goes on where it was interrupted.
        overwrite_output_dir: replace the comparison that is there.
        command: what was run, for the report.
        options: as of `warmup-peft compare`: `sweep`, `goal`, `curve_points`, `max_samples`, `jobs` and others.

    Raises:
        ValueError: bad input, before anything is trained.
        OSError: the disk is full. Finished runs are kept.
    """
    own = {"output_dir": None if output_dir is None else str(output_dir), "overwrite_output_dir": overwrite_output_dir}
    recipe = read_recipe(recipe).with_overrides({name: value for name, value in own.items() if value})
    asked = CompareOptions(arms=joined(arms), seeds=joined(seeds), **options)
    experiment = plan_experiment(recipe, asked)
    warn_of_few_rows(experiment.num_test_rows)
    return dataclasses.replace(run_experiment(experiment, command), folder=str(experiment.folder))


def joined(values: str | Iterable[Any]) -> str:
    return values if isinstance(values, str) else ",".join(map(str, values))


def warn_of_few_rows(num_rows: int) -> None:
    effect = minimum_detectable_effect(num_rows)
    if effect > LARGE_EFFECT:
        print(
            f"{num_rows} test rows: the minimum detectable effect is about {100 * effect:.0f} points, as far as can "
            "be said before training (the report has the measured one). More rows detect smaller differences."
        )
