"""A comparison, or an inspection, in the terminal and in a notebook: its tables and its sentences."""

from __future__ import annotations

from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from warmup_peft.comparison.formatting import estimate_text, p_text, share_text
from warmup_peft.comparison.inspection import CLASSES, Inspection
from warmup_peft.comparison.report import tables as report
from warmup_peft.comparison.report.inspection_report import (
    changed_text,
    examples_table,
    use_of_warmups,
    worth_of_warmups,
)
from warmup_peft.comparison.report.tables import score_after_text
from warmup_peft.comparison.results import Comparison, Difference
from warmup_peft.evaluation.score_texts import metric_name, points_text, score_text


def print_comparison(comparison: Comparison, console: Console) -> None:
    console.print(arms_table(comparison))
    for note in comparison.notes:
        console.print(f"- {note}", highlight=False, markup=False)  # an error may hold brackets
    console.print(f"\n{comparison.verdict}\n{comparison.use}", style="bold", highlight=False, markup=False)


def print_inspection(inspection: Inspection, console: Console) -> None:
    kinds = Table(title="What the warmups say", show_header=False)
    for kind, rows in inspection.classes().items():
        kinds.add_row(kind, share_text(len(rows) / len(inspection.rows)), CLASSES[kind])
    common = Table("warmup", "rows", metric_name(inspection.metric), title="Most frequent warmups")
    for text, count, score in inspection.common():
        common.add_row(escape(text) or "(empty)", str(count), score_text(inspection.metric, score))
    console.print(kinds, common)
    if inspection.num_examples:
        console.print(as_rich(examples_table(inspection)))
    for sentence in (worth_of_warmups(inspection), use_of_warmups(inspection.warmups), changed_text(inspection)):
        console.print(sentence, highlight=False, markup=False)


def as_rich(table: report.Table) -> Table:
    """A table of a report in the terminal."""
    shown = Table(*table.header, title=table.title)
    for row in table.rows:
        shown.add_row(*map(escape, row))
    return shown


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
