"""The tables of a report, as text in cells; how they look is the report's affair."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from warmup_peft.comparison.results import ArmSummary, Comparison, Difference, Estimate
from warmup_peft.comparison.wording import (
    count,
    difference_text,
    estimate_text,
    listed,
    memory_text,
    p_text,
    reached_text,
    shown_text,
    significant_text,
    time_unit,
)
from warmup_peft.evaluation.metrics import NOTHING, metric_name, number_text, score_text

WARMUP_FIGURES = {
    "gain_over_none": ("gain over none, nats", "+.2f"),
    "gain_over_others": ("gain over another’s, nats", "+.2f"),
    "overlap": ("overlap with the reference", ".2f"),
    "distinct": ("distinct", ".2f"),
    "mean_length": ("length, tokens", ".1f"),
}
Cell = tuple[str, ...]  # lines
ArmText = Callable[[ArmSummary], Cell]


@dataclass(frozen=True)
class TableRow:
    """An arm's line.

    Attributes:
        style: number of the arm's colour and dashes in the charts.
        remarks: below the name.
        cells: one for each column after the name's; none where `instead` says why there is nothing to show.
    """

    name: str
    style: int
    remarks: Cell = ()
    cells: tuple[Cell, ...] = ()
    instead: str = ""


@dataclass(frozen=True)
class Table:
    """A line for each arm, or for each of its differences.

    Attributes:
        columns: headers, without the first, which is "arm".
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def references(comparison: Comparison) -> list[str]:
    """Names of the arms that the others are compared with in the table of results: SFT, or none."""
    differences = [arm.versus_sft for arm in comparison.arms if arm.versus_sft]
    return list(dict.fromkeys(difference.reference for difference in differences))


def results_table(comparison: Comparison) -> Table:
    """Every arm with its scores, its difference to SFT and its cost; failed ones with the reason."""
    columns = {
        **_score_columns(comparison, [comparison.metric]),
        **_difference_columns(comparison),
        **_score_columns(comparison, _other_metrics(comparison)),
        **_cost_columns(comparison),
    }
    rows = [_arm_row(style, arm, columns.values()) for style, arm in enumerate(comparison.arms)]
    return Table("Scores and costs of every arm", tuple(columns), tuple(rows))


def _arm_row(style: int, arm: ArmSummary, columns: Iterable[ArmText]) -> TableRow:
    failures = failure_texts(arm)
    if not arm.seeds:
        return TableRow(arm.name, style, instead="; ".join(failures) or "not run yet")
    remarks = (count(len(arm.seeds), "seed"), *failures)
    return TableRow(arm.name, style, remarks, tuple(text(arm) for text in columns))


def failure_texts(arm: ArmSummary) -> list[str]:
    """One for each reason, with its seeds."""
    seeds: dict[str, list[str]] = {}
    for seed, reason in arm.failures.items():
        seeds.setdefault(reason, []).append(str(seed))
    return [f"{'seed' if len(of) == 1 else 'seeds'} {listed(of)} failed: {reason}" for reason, of in seeds.items()]


def _other_metrics(comparison: Comparison) -> list[str]:
    """Those beside the first, perplexity last, in the order in which arms have them."""
    names = dict.fromkeys(name for arm in comparison.arms for name in arm.metrics)
    others = [name for name in names if name not in (comparison.metric, "perplexity")]
    return others + [name for name in names if name == "perplexity"]


def _score_columns(comparison: Comparison, metrics: Iterable[str]) -> dict[str, ArmText]:
    def column(metric: str) -> ArmText:
        return lambda arm: (estimate_text(arm.metrics.get(metric), lambda value: score_text(metric, value)),)

    return {metric_name(metric): column(metric) for metric in metrics}


def _difference_columns(comparison: Comparison) -> dict[str, ArmText]:
    if not (compared := references(comparison)):
        return {}

    def column(texts: Callable[[Difference], Cell]) -> ArmText:
        return lambda arm: texts(arm.versus_sft) if arm.versus_sft else (NOTHING,)

    return {
        f"difference to {listed(compared)}, points": column(lambda d: (difference_text(d), shown_text(d))),
        "adjusted p": column(p_texts),
    }


def p_texts(difference: Difference) -> Cell:
    """Those that decide whether a difference is shown, and McNemar's."""
    texts = [p_text(difference.p_adjusted)]
    if difference.mcnemar_p_adjusted is not None:
        texts.append(f"McNemar {p_text(difference.mcnemar_p_adjusted)}")
    if difference.seeds_p is not None:
        texts.append(f"over seeds {p_text(difference.seeds_p)}")
    return tuple(texts)


def _cost_columns(comparison: Comparison) -> dict[str, ArmText]:
    unit, seconds = time_unit(max((arm.train_seconds.mean for arm in comparison.arms if arm.train_seconds), default=0))

    def duration_text(value: float) -> str:
        return number_text(value / seconds, ",.1f")

    columns: dict[str, ArmText] = {
        f"training, {unit}": lambda arm: (estimate_text(arm.train_seconds, duration_text),),
        "examples a second": lambda arm: (_mean_text(arm.examples_per_second, significant_text),),
        "peak memory": lambda arm: (_mean_text(arm.peak_memory, memory_text),),
        "seconds per answer": lambda arm: (_mean_text(arm.seconds_per_answer, significant_text),),
    }
    if comparison.goal is not None:
        goal = score_text(comparison.metric, comparison.goal)
        columns[f"examples to reach {goal}"] = lambda arm: (reached_text(arm.examples_to_reach),)
    return columns


def _mean_text(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    return NOTHING if estimate is None else text(estimate.mean)


def differences_table(comparison: Comparison) -> Table:
    """Every difference with all that was computed of it."""
    ps = ("p", "adjusted p", "McNemar’s p", "McNemar’s adjusted p", "p over seeds")
    rows = [
        TableRow(arm.name, style, cells=_difference_cells(difference))
        for style, arm in enumerate(comparison.arms)
        for difference in (arm.versus_sft, arm.versus_more_sft)
        if difference
    ]
    return Table("Every difference, with 95% interval", ("compared with", "points", *ps, "visible"), tuple(rows))


def _difference_cells(difference: Difference) -> tuple[Cell, ...]:
    def optional(p: float | None) -> Cell:
        return (NOTHING if p is None else p_text(p),)

    return (
        (difference.reference,),
        (difference_text(difference), shown_text(difference)),
        *map(optional, (difference.p, difference.p_adjusted)),
        *map(optional, (difference.mcnemar_p, difference.mcnemar_p_adjusted, difference.seeds_p)),
        (number_text(100 * difference.visible, ".1f"),),
    )


def warmups_table(comparison: Comparison) -> Table:
    """Figures of the warmups on the test rows, of the arms that write some."""
    arms = [(style, arm) for style, arm in enumerate(comparison.arms) if arm.warmups]
    names = [name for name in WARMUP_FIGURES if any(name in arm.warmups for _, arm in arms)]
    rows = [
        TableRow(arm.name, style, cells=tuple((_figure_text(name, arm.warmups.get(name)),) for name in names))
        for style, arm in arms
    ]
    return Table("The trained models’ own warmups", tuple(WARMUP_FIGURES[name][0] for name in names), tuple(rows))


def _figure_text(name: str, estimate: Estimate | None) -> str:
    return estimate_text(estimate, lambda value: number_text(value, WARMUP_FIGURES[name][1]))
