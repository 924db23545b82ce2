"""The tables of a report. Cells are text; a cell with several lines has newlines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from warmup_peft.comparison.formatting import (
    count,
    difference_text,
    estimate_text,
    listed,
    memory_text,
    p_text,
    reached_text,
    significance_text,
    significant_text,
    time_unit,
)
from warmup_peft.comparison.results import ArmSummary, Comparison, Difference, Estimate
from warmup_peft.evaluation.score_texts import NOTHING, metric_name, number_text, score_text

SCORES_AFTER = {
    "score_after_others": "after a shuffled warmup",
    "score_after_none": "after no warmup",
}
WARMUP_METRICS = {
    "gain_over_none": ("gain over no warmup, nats", "+.2f"),
    "gain_over_others": ("gain over a shuffled warmup, nats", "+.2f"),
    "overlap": ("overlap with the reference", ".2f"),
    "distinct": ("distinct warmups", ".2f"),
    "mean_length": ("mean length, tokens", ".1f"),
    "right": ("right greedy warmups", ".3f"),
    "right_of_samples": ("right among samples", ".3f"),
    "right_before": ("right among samples, before training", ".3f"),
}
Columns = dict[str, Callable[[ArmSummary], str]]


@dataclass(frozen=True)
class Table:
    """A title, column titles, and rows whose first cell is the row's title."""

    title: str
    header: list[str]
    rows: list[list[str]]


# ---- Of a comparison ----


def references(comparison: Comparison) -> list[str]:
    """Names of the arms that the others are compared with in the table of results: SFT, or none."""
    return list(dict.fromkeys(arm.versus_sft.reference for arm in comparison.arms if arm.versus_sft))


def results_table(comparison: Comparison) -> Table:
    """Scores, difference to SFT and costs of every arm."""
    columns = {
        **_score_columns([comparison.metric]),
        **_sampled_column(comparison),
        **_difference_columns(comparison),
        **_score_columns(_other_metrics(comparison)),
        **_cost_columns(comparison),
    }
    rows = [
        [_name_of(arm), *(text(arm) if arm.seeds else NOTHING for text in columns.values())] for arm in comparison.arms
    ]
    return Table("Scores and costs of every arm", ["arm", *columns], rows)


def _name_of(arm: ArmSummary) -> str:
    """The arm's name, how many seeds are done, and which seeds failed for which reason."""
    seeds: dict[str, list[str]] = {}
    for seed, reason in arm.failures.items():
        seeds.setdefault(reason, []).append(str(seed))
    failed = [f"{'seed' if len(of) == 1 else 'seeds'} {listed(of)} failed: {reason}" for reason, of in seeds.items()]
    done = [count(len(arm.seeds), "seed")] if arm.seeds else []
    return "\n".join([arm.name, *(done + failed or ["not run yet"])])


def _other_metrics(comparison: Comparison) -> list[str]:
    """All metrics but the first one, perplexity last."""
    names = dict.fromkeys(name for arm in comparison.arms for name in arm.metrics if name != comparison.metric)
    return sorted(names, key=lambda name: name == "perplexity")


def _score_columns(metrics: Iterable[str]) -> Columns:
    def column(metric: str) -> Callable[[ArmSummary], str]:
        return lambda arm: estimate_text(arm.metrics.get(metric), lambda value: score_text(metric, value))

    return {metric_name(metric): column(metric) for metric in metrics}


def _sampled_column(comparison: Comparison) -> Columns:
    """The first metric after sampled warmups, where it was measured."""
    if not any("sampled_score" in arm.warmups for arm in comparison.arms):
        return {}
    title = f"{metric_name(comparison.metric)} after a sampled warmup"
    return {title: lambda arm: score_after_text(comparison.metric, arm, "sampled_score")}


def score_after_text(metric: str, arm: ArmSummary, name: str) -> str:
    """The first metric after other warmups than the greedy ones."""
    return estimate_text(arm.warmups.get(name), lambda value: score_text(metric, value))


def _difference_columns(comparison: Comparison) -> Columns:
    if not (compared := references(comparison)):
        return {}

    def column(text: Callable[[Difference], str]) -> Callable[[ArmSummary], str]:
        return lambda arm: text(arm.versus_sft) if arm.versus_sft else NOTHING

    return {
        f"difference to {listed(compared)}, points": column(_difference_lines),
        "adjusted p": column(lambda difference: "\n".join(p_texts(difference))),
    }


def _difference_lines(difference: Difference) -> str:
    return f"{difference_text(difference)}\n{significance_text(difference)}"


def p_texts(difference: Difference) -> list[str]:
    """The p-values that decide whether a difference is significant."""
    texts = {
        "": difference.p_adjusted,
        "McNemar ": difference.mcnemar_p_adjusted,
        "over seeds ": difference.seeds_p,
    }
    return [f"{name}{p_text(p)}" for name, p in texts.items() if p is not None]


def _cost_columns(comparison: Comparison) -> Columns:
    unit, seconds = time_unit(max((arm.train_seconds.mean for arm in comparison.arms if arm.train_seconds), default=0))

    def duration_text(value: float) -> str:
        return number_text(value / seconds, ",.1f")

    columns: Columns = {
        f"training time, {unit}": lambda arm: estimate_text(arm.train_seconds, duration_text),
        "examples a second": lambda arm: _mean_text(arm.examples_per_second, significant_text),
        "peak memory": lambda arm: _mean_text(arm.peak_memory, memory_text),
        "seconds per answer": lambda arm: _mean_text(arm.seconds_per_answer, significant_text),
    }
    if comparison.goal is not None:
        goal = score_text(comparison.metric, comparison.goal)
        columns[f"examples to reach {goal}"] = lambda arm: reached_text(arm.examples_to_reach)
    return columns


def _mean_text(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    return NOTHING if estimate is None else text(estimate.mean)


def differences_table(comparison: Comparison) -> Table:
    """Every difference with its interval and all p-values."""
    ps = ["p", "adjusted p", "McNemar’s p", "McNemar’s adjusted p", "p over seeds"]
    rows = [
        [arm.name, *_difference_cells(difference)]
        for arm in comparison.arms
        for difference in (arm.versus_sft, arm.versus_more_sft)
        if difference
    ]
    return Table(
        "Every difference, with 95% interval",
        ["arm", "compared with", "points", *ps, "minimum detectable effect"],
        rows,
    )


def _difference_cells(difference: Difference) -> list[str]:
    ps = (difference.p, difference.p_adjusted, difference.mcnemar_p, difference.mcnemar_p_adjusted, difference.seeds_p)
    return [
        difference.reference,
        _difference_lines(difference),
        *(NOTHING if p is None else p_text(p) for p in ps),
        number_text(100 * difference.minimum_detectable_effect, ".1f"),
    ]


def warmups_table(comparison: Comparison) -> Table:
    """Metrics of the warmups on the test rows, of the arms that write some."""
    arms = [arm for arm in comparison.arms if arm.warmups]
    names = [name for name in WARMUP_METRICS if any(name in arm.warmups for arm in arms)]
    scores = [name for name in SCORES_AFTER if any(name in arm.warmups for arm in arms)]
    titles = [
        *(WARMUP_METRICS[name][0] for name in names),
        *(f"{metric_name(comparison.metric)} {SCORES_AFTER[name]}" for name in scores),
    ]
    rows = [
        [
            arm.name,
            *(_warmup_text(arm, name) for name in names),
            *(score_after_text(comparison.metric, arm, name) for name in scores),
        ]
        for arm in arms
    ]
    return Table("The trained models’ own warmups", ["arm", *titles], rows)


def _warmup_text(arm: ArmSummary, name: str) -> str:
    return estimate_text(arm.warmups.get(name), lambda value: number_text(value, WARMUP_METRICS[name][1]))
