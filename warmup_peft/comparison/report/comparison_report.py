"""The report of a comparison: one HTML file that needs nothing else, and the same in Markdown.

Knows no model and no trainer. Numbers become text in `formatting` and `tables`, lines in `charts`; the templates
`comparison.html.jinja` and `comparison.md.jinja` arrange them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from warmup_peft.comparison.formatting import count, difference_text, listed, plain, significance_text, time_unit
from warmup_peft.comparison.report.charts import Line, difference_chart, line_chart
from warmup_peft.comparison.report.glossary import GAINS, WORDS
from warmup_peft.comparison.report.rendering import are_graded, render
from warmup_peft.comparison.report.tables import differences_table, references, results_table, warmups_table
from warmup_peft.comparison.results import Comparison, Difference, Point
from warmup_peft.evaluation.score_texts import metric_name, number_text, scale_of, score_text
from warmup_peft.evaluation.tasks import Row
from warmup_peft.files import write_together

MOST_ROWS = 60  # test rows in the HTML
MOST_ROWS_IN_MARKDOWN = 5
WARMUP_CHARTS = {
    "gain_over_none": "Gain over no warmup, nats",
    "gain_over_others": "Gain over a shuffled warmup, nats",
    "overlap": "Overlap with the reference",
}


def write_report(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write `report.html` and `report.md` into the folder, made if need be; returns their paths.

    Raises:
        OSError: it cannot be written; older reports stay as they were.
    """
    return write_together({"report.html": to_html(comparison), "report.md": to_markdown(comparison)}, folder)


def to_html(comparison: Comparison) -> str:
    """A whole page; it loads nothing, from the network or elsewhere."""
    return render(
        "comparison.html.jinja",
        difference_charts=difference_charts(comparison),
        curves=learning_curves(comparison),
        warmup_charts=warmup_charts(comparison),
        **_shared(comparison, MOST_ROWS),
    )


def to_markdown(comparison: Comparison) -> str:
    """GitHub-flavoured, without HTML and charts; its headings are of the second and third level."""
    return render("comparison.md.jinja", **_shared(comparison, MOST_ROWS_IN_MARKDOWN))


def _shared(comparison: Comparison, most_rows: int) -> dict[str, Any]:
    """What both templates show."""
    return {
        "comparison": comparison,
        "banner": banner(comparison),
        "facts": facts(comparison),
        "reading": how_to_read(comparison),
        "results": results_table(comparison),
        "differences": differences_table(comparison),
        "warmups": warmups_table(comparison),
        "gains": GAINS,
        "sample": sample_rows(comparison, most_rows),
        "num_rows": num_rows(comparison),
        "is_graded": are_graded(comparison.metric, (row for arm in comparison.arms for row in arm.rows)),
        "words": WORDS | {arm.name: arm.description for arm in comparison.arms},
        "settings": {name: plain(value) for name, value in comparison.settings.items()},
        "signatures": {metric_name(name): text for name, text in comparison.signatures.items()},
    }


# ---- Sentences ----


def banner(comparison: Comparison) -> str:
    """A warning while runs are missing, else nothing."""
    if comparison.is_finished:
        return ""
    return (
        f"This comparison is still running: {comparison.runs_done} of {comparison.runs_planned} runs are done. "
        "The results below are not final."
    )


def facts(comparison: Comparison) -> list[str]:
    """Numbers of rows, arms, seeds and runs."""
    seeds = {seed for arm in comparison.arms for seed in (*arm.seeds, *arm.failures)}
    return [
        count(comparison.num_test_rows, "test row"),
        f"learning curves on {count(comparison.num_curve_rows, 'row')}",
        count(len(comparison.arms), "arm"),
        count(len(seeds), "seed"),
        f"{comparison.runs_done} of {count(comparison.runs_planned, 'run')} done",
    ]


def how_to_read(comparison: Comparison) -> str:
    """How to read the table of results."""
    text = "Mean over seeds ± standard error."
    if compared := references(comparison):
        text += (
            f" Differences to {listed(compared)} are in points (hundredths of the score), with their 95% interval; "
            "a difference is called significant only if every test finds it so."
        )
    return text


# ---- Charts ----


def learning_curves(comparison: Comparison) -> list[Markup]:
    """The first metric, against steps and against time."""
    seconds = [point.seconds for arm in comparison.arms for point in arm.curve]
    if not seconds:
        return []
    metric, scale = comparison.metric, scale_of(comparison.metric)
    unit, unit_seconds = time_unit(max(seconds))
    goal = None if comparison.goal is None else comparison.goal * scale
    axes: dict[str, Callable[[Point], float]] = {
        "optimizer steps": lambda point: point.step,
        f"training time, {unit}": lambda point: point.seconds / unit_seconds,
    }
    ends = ", ".join(f"{arm.name} {score_text(metric, arm.curve[-1].score)}" for arm in comparison.arms if arm.curve)
    return [
        line_chart(
            metric_name(metric),
            x_label,
            _lines(comparison, x, lambda point: point.score * scale),
            f"Lines of {metric_name(metric)} against {x_label}. At the end: {ends}.",
            goal,
        )
        for x_label, x in axes.items()
    ]


def warmup_charts(comparison: Comparison) -> list[Markup]:
    """The warmups' gains and overlap over the training, those that were measured."""
    charts = []
    for name, title in WARMUP_CHARTS.items():
        lines = _lines(comparison, lambda point: point.step, attrgetter(name))
        ends = ", ".join(f"{line.label} {number_text(line.y[-1], '.2f')}" for line in lines)
        alternative = f"Lines of {title} against optimizer steps. At the end: {ends}."
        charts += [line_chart(title, "optimizer steps", lines, alternative)] if lines else []
    return charts


def _lines(comparison: Comparison, x: Callable[[Point], float], y: Callable[[Point], float | None]) -> list[Line]:
    """One line for each arm, of the points where `y` was measured."""
    measured = [
        [(x(point), value) for point in arm.curve if (value := y(point)) is not None] for arm in comparison.arms
    ]
    return [
        Line(arm.name, style, [at for at, _ in points], [v if math.isfinite(v) else math.nan for _, v in points])
        for style, (arm, points) in enumerate(zip(comparison.arms, measured))
        if points
    ]


def difference_charts(comparison: Comparison) -> list[Markup]:
    """Differences to SFT, and differences to SFT with the same training time."""
    groups = [[(arm.name, arm.versus_sft) for arm in comparison.arms]]
    groups += [[(arm.name, arm.versus_more_sft) for arm in comparison.arms]]
    finite = [[(name, each) for name, each in group if each and _is_finite(each)] for group in groups]
    return [_difference_chart(group) for group in finite if group]


def _is_finite(difference: Difference) -> bool:
    return all(map(math.isfinite, (difference.estimate, difference.low, difference.high)))


def _difference_chart(differences: list[tuple[str, Difference]]) -> Markup:
    title = f"Difference to {differences[0][1].reference}"
    texts = "; ".join(f"{arm} {difference_text(each)}, {significance_text(each)}" for arm, each in differences)
    return difference_chart(title, differences, f"{title}, points. {texts}.")


# ---- Test rows ----


def num_rows(comparison: Comparison) -> int:
    """How many test rows every finished arm has."""
    return min((len(arm.rows) for arm in comparison.arms if arm.rows), default=0)


def sample_rows(comparison: Comparison, most: int) -> list[tuple[int, dict[str, Row]]]:
    """Test rows: number (from 1) and each arm's answer, sorted by how much the arms' scores disagree."""
    rows = [
        (place + 1, {arm.name: arm.rows[place] for arm in comparison.arms if arm.rows})
        for place in range(num_rows(comparison))
    ]
    return sorted(rows, key=lambda row: -_spread([each.score for each in row[1].values()]))[:most]


def _spread(scores: list[float]) -> float:
    """Sum of squared differences from the mean."""
    finite = [score for score in scores if math.isfinite(score)]
    mean = sum(finite) / max(1, len(finite))
    return sum((score - mean) ** 2 for score in finite)
