"""`warmup-peft compare`: train a recipe with and without warmups, and say whether they help."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from warmup_peft.comparison.experiment import plan_experiment, run_experiment
from warmup_peft.comparison.formatting import estimate_text, p_text
from warmup_peft.comparison.report.tables import score_after_text
from warmup_peft.comparison.results import Comparison, Difference
from warmup_peft.comparison.significance import minimum_detectable_effect
from warmup_peft.evaluation.metrics import metric_name, points_text, score_text
from warmup_peft.settings.arguments import CompareOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.config import TRAINING_KINDS

LARGE_EFFECT = 0.1  # where no smaller difference can be detected, the user is warned


def run(argv: Sequence[str]) -> None:
    """Run every arm with every seed that is not done yet, and report.

    Raises:
        ValueError: bad input, before anything is trained; or every run failed.
        OSError: the disk is full. Finished runs are kept.
    """
    experiment = plan_experiment(*read_recipe(argv))
    warn_of_few_rows(experiment.num_test_rows)
    comparison = run_experiment(experiment, shlex.join(["warmup-peft", "compare", *argv]))
    show(comparison, experiment.reports)
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


def warn_of_few_rows(num_rows: int) -> None:
    effect = minimum_detectable_effect(num_rows)
    if effect > LARGE_EFFECT:
        print(
            f"{num_rows} test rows: the minimum detectable effect is about {100 * effect:.0f} points. More rows "
            "detect smaller differences."
        )


def show(comparison: Comparison, paths: Sequence[Path]) -> None:
    console = Console()
    console.print(arms_table(comparison))
    for note in comparison.notes:
        console.print(f"- {note}", highlight=False, markup=False)  # an error may hold brackets
    console.print(f"\n{comparison.verdict}\n{comparison.use}", style="bold", highlight=False, markup=False)
    print("Report: " + ", ".join(map(str, paths)))


def arms_table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.num_test_rows} test rows")
    is_sampled = any("sampled_score" in arm.warmups for arm in comparison.arms)
    for column in (
        "arm",
        metric_name(comparison.metric),
        *(["after a sampled warmup"] if is_sampled else []),
        "points against sft",
        "95% interval",
        "adjusted p",
        "seconds",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in comparison.arms:
        if not arm.seeds:
            table.add_row(arm.name, "failed" if arm.failures else "not run")
            continue
        seconds = "" if arm.train_seconds is None else f"{arm.train_seconds.mean:,.0f}"
        score = estimate_text(arm.metrics[comparison.metric], partial(score_text, comparison.metric))
        sampled = [score_after_text(comparison.metric, arm, "sampled_score")] if is_sampled else []
        table.add_row(arm.name, score, *sampled, *against_sft(arm.versus_sft), seconds)
    return table


def against_sft(difference: Difference | None) -> tuple[str, str, str]:
    if difference is None:
        return "", "", ""
    ends = f"{points_text(difference.low)} to {points_text(difference.high)}"
    return points_text(difference.estimate), ends, p_text(difference.p_adjusted)
