"""The report of a comparison: one HTML file that needs nothing else, and the same in Markdown.

Knows no model and no trainer. Numbers become text in `wording` and `tables`; `comparison.html.jinja` and `to_markdown`
arrange them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from warmup_peft.comparison.report import charts
from warmup_peft.comparison.report.pages import (
    Answer,
    answer_line,
    are_graded,
    clip_end,
    clip_start,
    markdown,
    markdown_grid,
    markdown_sections,
    markdown_words,
    render,
)
from warmup_peft.comparison.report.tables import Table, differences_table, references, results_table, warmups_table
from warmup_peft.comparison.results import ArmSummary, Comparison, Difference, Point
from warmup_peft.comparison.wording import count, difference_text, listed, plain, shown_text, time_unit
from warmup_peft.evaluation.metrics import NOTHING, metric_name, number_text, scale_of, score_text
from warmup_peft.evaluation.tasks import Row
from warmup_peft.files import write_together

MOST_ROWS = 60  # test rows in the HTML
MOST_ROWS_IN_MARKDOWN = 5
MOST_LABEL = 44  # characters of an arm's name in a chart
WARMUP_CHARTS = {
    "gain_over_none": "Gain over none, nats",
    "gain_over_others": "Gain over another’s, nats",
    "overlap": "Overlap with the reference",
}

WORDS = {
    "warmup": "A few tokens that the model writes to itself after the prompt and before its answer. Nobody annotates "
    "them; training finds them.",
    "SFT": "Supervised fine-tuning: plain training on prompts and reference answers, without warmups. What warmups "
    "have to beat to be worth their cost.",
    "arm": "One way to train the model, or not to train it. All else is the same.",
    "seed": "One repetition of a training with other random numbers.",
    "±": "Standard error of the mean over seeds: how far the mean would typically move if the seeds were others. "
    "Absent where there is one seed.",
    "points": "Hundredths of the score: from 0.85 to 0.87 are +2 points.",
    "interval": "Where the difference lies with 95% confidence, as far as the choice of test rows goes: the rows are "
    "drawn anew many times, the same for both arms (paired bootstrap).",
    "adjusted p": "How often chance alone would show so large a difference if there were none, corrected for the "
    "number of arms that are compared (Holm): of many arms, one looks good by luck. McNemar’s p counts only the rows "
    "that one arm gets right and the other wrong; the p over seeds asks whether the seeds agree (paired t-test). Both "
    "are corrected too.",
    "shown, not shown": "Shown: all of these p-values are below 0.05. Not shown does not mean that there is no "
    "difference, only that this comparison cannot tell.",
    "visible": "The smallest difference, in points, that this many test rows would show four times out of five.",
    "perplexity": "How surprised the model is by a token of the reference, after its own warmup: 1 is not at all; "
    "lower is better.",
    "gain over none, gain over another’s": "Nats that the reference’s log-probability gains by the model’s own "
    "warmup, over no warmup and over the one of another row. Both large: what is written matters. Only the first: the "
    "warmup is a pause to compute in. Neither: it is not used.",
    "overlap": "Share of the warmup’s words that stand in the reference too. Near 1, the warmup is a draft of the "
    "answer.",
    "distinct": "Share of the warmups that differ. Near 0, the model always writes the same.",
    "examples to reach": "Training examples seen when the learning curve first reached that score; from the quickest "
    "to the slowest seed.",
}


@dataclass(frozen=True)
class SampleRow:
    """A test row as every arm answered it.

    Attributes:
        number: counted from 1.
        summary: of the scores, in a few words.
        differs: arms scored differently.
        beats, loses: places (in `answers`) of the arms that scored higher, or lower, than SFT.
    """

    number: int
    summary: str
    prompt: str
    reference: str
    answers: tuple[Answer, ...]
    differs: bool
    beats: tuple[int, ...]
    loses: tuple[int, ...]


def write_report(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into the folder, made if need be; returns their paths.

    Raises:
        OSError: it cannot be written; older reports stay as they were.
    """
    return write_together({"report.html": to_html(comparison), "report.md": to_markdown(comparison)}, folder)


# ---- HTML ----


def to_html(comparison: Comparison) -> str:
    """A whole page; it loads nothing, from the network or elsewhere."""
    sample = sample_rows(comparison, MOST_ROWS)
    return render(
        "comparison.html.jinja",
        comparison=comparison,
        banner=banner(comparison),
        facts=facts(comparison),
        reading=how_to_read(comparison),
        results=results_table(comparison),
        left_out={metric_name(name): reason for name, reason in comparison.left_out.items()},
        differences=differences_table(comparison),
        difference_charts=_markup(difference_charts(comparison)),
        swatches=_markup(charts.swatch(style) for style in range(len(comparison.arms))),
        curves=_markup(learning_curves(comparison)),
        curve_arms=_legend(comparison, lambda arm: bool(arm.curve)),
        warmups=warmups_table(comparison),
        warmup_charts=_markup(warmup_charts(comparison)),
        warmup_arms=_legend(comparison, lambda arm: any(figures_of(arm, name)[1] for name in WARMUP_CHARTS)),
        sample=sample,
        sample_arms=[answer.name for answer in sample[0].answers] if sample else [],
        compares_with_sft=any(row.beats or row.loses for row in sample),
        num_rows=num_rows(comparison),
        words=WORDS,
        descriptions={arm.name: arm.description for arm in comparison.arms},
        settings={name: plain(value) for name, value in comparison.settings.items()},
    )


def _markup(drawings: Iterable[str]) -> list[Markup]:
    """The charts' own SVG, escaped where it was drawn."""
    return [Markup(drawing) for drawing in drawings]


def _legend(comparison: Comparison, has_line: Callable[[ArmSummary], bool]) -> list[tuple[int, str]]:
    return [(style, arm.name) for style, arm in enumerate(comparison.arms) if has_line(arm)]


# ---- Sentences ----


def banner(comparison: Comparison) -> str:
    """What the reader of an unfinished comparison has to know; empty when it is finished."""
    if comparison.is_finished:
        return ""
    return (
        f"This comparison is still going: {comparison.runs_done} of {comparison.runs_planned} runs are done. "
        "What stands here is not final."
    )


def facts(comparison: Comparison) -> list[str]:
    """What the numbers rest on."""
    seeds = {seed for arm in comparison.arms for seed in (*arm.seeds, *arm.failures)}
    return [
        count(comparison.num_test_rows, "test row"),
        f"learning curves on {count(comparison.num_curve_rows, 'row')}",
        count(len(comparison.arms), "arm"),
        count(len(seeds), "seed"),
        f"{comparison.runs_done} of {count(comparison.runs_planned, 'run')} done",
    ]


def how_to_read(comparison: Comparison) -> str:
    """The legend of the table of results."""
    text = "Mean over seeds ± standard error."
    if compared := references(comparison):
        text += (
            f" Differences to {listed(compared)} are in points (hundredths of the score), with their 95% interval; "
            "a difference is called shown where chance is an unlikely reason for it."
        )
    return text


# ---- Charts ----


def learning_curves(comparison: Comparison) -> list[str]:
    """SVG of the first metric, against steps and against time."""
    arms = [(style, arm) for style, arm in enumerate(comparison.arms) if arm.curve]
    if not arms:
        return []
    unit, seconds = time_unit(max(point.seconds for _, arm in arms for point in arm.curve))
    return [
        _learning_curve(comparison, arms, "curve-steps", "optimizer steps", lambda point: point.step),
        _learning_curve(
            comparison, arms, "curve-time", f"training time, {unit}", lambda point: point.seconds / seconds
        ),
    ]


def _learning_curve(
    comparison: Comparison,
    arms: list[tuple[int, ArmSummary]],
    name: str,
    x_label: str,
    x: Callable[[Point], float],
) -> str:
    metric, scale = comparison.metric, scale_of(comparison.metric)
    series = [
        charts.Series(arm.name, style, [x(p) for p in arm.curve], [_finite(p.score) * scale for p in arm.curve])
        for style, arm in arms
    ]
    goal, ends = comparison.goal, (f"{arm.name} {score_text(metric, arm.curve[-1].score)}" for _, arm in arms)
    return charts.line_chart(
        name,
        metric_name(metric),
        x_label,
        series,
        f"Lines of {metric_name(metric)} against {x_label}. At the end: {', '.join(ends)}.",
        None if goal is None else ("goal", goal * scale),
    )


def warmup_charts(comparison: Comparison) -> list[str]:
    """SVG of the warmups' gains and overlap over the training, those that were measured."""
    drawings = []
    for name, title in WARMUP_CHARTS.items():
        series = [
            charts.Series(arm.name, style, *figures)
            for style, arm in enumerate(comparison.arms)
            if (figures := figures_of(arm, name))[1]
        ]
        if series:
            ends = ", ".join(f"{line.label} {number_text(line.y[-1], '.2f')}" for line in series)
            alternative = f"Lines of {title} against optimizer steps. At the end: {ends}."
            drawings.append(charts.line_chart(f"warmup-{name}", title, "optimizer steps", series, alternative, None))
    return drawings


def figures_of(arm: ArmSummary, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one of the learning curve's figures, where it was measured."""
    measured = [point for point in arm.curve if getattr(point, name) is not None]
    return [point.step for point in measured], [_finite(getattr(point, name)) for point in measured]


def difference_charts(comparison: Comparison) -> list[str]:
    """SVG of the differences to SFT, and of those to SFT with as much time."""
    groups = {"sft": "versus_sft", "more-sft": "versus_more_sft"}
    return [
        _difference_chart(f"differences-{name}", pairs)
        for name, attribute in groups.items()
        if (pairs := [(arm.name, d) for arm in comparison.arms if (d := getattr(arm, attribute)) and _is_drawable(d)])
    ]


def _difference_chart(name: str, pairs: list[tuple[str, Difference]]) -> str:
    intervals = [
        charts.Interval(
            clip_end(arm, MOST_LABEL), shown_text(d), 100 * d.estimate, 100 * d.low, 100 * d.high, d.is_shown
        )
        for arm, d in pairs
    ]
    texts = (f"{arm} {difference_text(difference)}, {shown_text(difference)}" for arm, difference in pairs)
    title = f"Difference to {pairs[0][1].reference}"
    return charts.interval_chart(name, title, "points", intervals, f"{title}, points. {'; '.join(texts)}.")


def _is_drawable(difference: Difference) -> bool:
    return all(map(math.isfinite, (difference.estimate, difference.low, difference.high)))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


# ---- Test rows ----


def num_rows(comparison: Comparison) -> int:
    """Test rows that every arm which has some can show."""
    return min((len(arm.rows) for arm in comparison.arms if arm.rows), default=0)


def sample_rows(comparison: Comparison, most: int) -> list[SampleRow]:
    """Test rows, those first on whose scores the arms agree least."""
    arms = [arm for arm in comparison.arms if arm.rows]
    is_graded = are_graded(comparison.metric, (row for arm in arms for row in arm.rows))
    answered = [[(arm, arm.rows[place]) for arm in arms] for place in range(num_rows(comparison))]
    by_spread = sorted(range(len(answered)), key=lambda place: -_spread(_finite_scores(answered[place])))
    return [_sample_row(place + 1, comparison.metric, answered[place], is_graded) for place in by_spread[:most]]


def _finite_scores(pairs: list[tuple[ArmSummary, Row]]) -> list[float]:
    return [row.score for _, row in pairs if math.isfinite(row.score)]


def _spread(scores: list[float]) -> float:
    """Sum of squared differences from the mean."""
    mean = sum(scores) / max(1, len(scores))
    return sum((score - mean) ** 2 for score in scores)


def _sample_row(number: int, metric: str, pairs: list[tuple[ArmSummary, Row]], is_graded: bool) -> SampleRow:
    first, scores = pairs[0][1], _finite_scores(pairs)
    of_sft = next((row.score for arm, row in pairs if arm.name == "sft"), math.nan)
    return SampleRow(
        number=number,
        summary=_scores_text(metric, scores, is_graded),
        prompt=clip_start(first.prompt.strip()),
        reference=clip_end(first.reference.strip()),
        answers=tuple(answer_line(arm.name, metric, row, is_graded) for arm, row in pairs),
        differs=len(set(scores)) > 1,
        beats=tuple(place for place, (_, row) in enumerate(pairs) if row.score > of_sft),
        loses=tuple(place for place, (_, row) in enumerate(pairs) if row.score < of_sft),
    )


def _scores_text(metric: str, scores: list[float], is_graded: bool) -> str:
    if not scores:
        return "no score"
    if not is_graded:
        return f"{sum(score == 1 for score in scores)} of {len(scores)} right"
    low, high = (score_text(metric, score) for score in (min(scores), max(scores)))
    return f"{metric_name(metric)} {low}" if low == high else f"{metric_name(metric)} {low} to {high}"


# ---- Markdown ----


def to_markdown(comparison: Comparison) -> str:
    """GitHub-flavoured, without HTML and charts; its headings are of the second and third level."""
    sections = {
        "": _markdown_head(comparison),
        "Results": _markdown_results(comparison),
        "Differences": _markdown_table(differences_table(comparison)),
        "Warmups": _markdown_table(warmups_table(comparison)),
        "Test rows": _markdown_rows(comparison),
        "Words": markdown_words(WORDS | {arm.name: arm.description for arm in comparison.arms}),
        "Settings": _markdown_pairs("setting", {name: plain(value) for name, value in comparison.settings.items()}),
        "Versions": _markdown_pairs("package", comparison.versions),
        "Command": [f"    {line}" for line in comparison.command.splitlines()],
    }
    return markdown_sections(sections)


def _markdown_head(comparison: Comparison) -> list[str]:
    warning = banner(comparison)
    return [
        f"## Warmups or SFT: {markdown(metric_name(comparison.metric))}",
        "",
        *([f"> **{warning}**", ""] if warning else []),
        f"**{markdown(comparison.verdict)}**",
        "",
        *(f"- {markdown(note)}" for note in comparison.notes),
        *([""] if comparison.notes else []),
        f"{', '.join(facts(comparison))}.",
    ]


def _markdown_results(comparison: Comparison) -> list[str]:
    left_out = [
        f"- Left out: {markdown(metric_name(name))}. {markdown(why)}" for name, why in comparison.left_out.items()
    ]
    table = _markdown_table(results_table(comparison))
    return [markdown(how_to_read(comparison)), "", *table, *(["", *left_out] if left_out else [])]


def _markdown_table(table: Table) -> list[str]:
    """Nothing where there are no rows."""
    if not table.rows:
        return []
    rows = [
        ["; ".join((row.name, *row.remarks)), *("; ".join(cell) for cell in row.cells)]
        if row.cells
        else [row.name, row.instead, *[""] * (len(table.columns) - 1)]
        for row in table.rows
    ]
    return markdown_grid(("arm", *table.columns), rows)


def _markdown_rows(comparison: Comparison) -> list[str]:
    sample = sample_rows(comparison, MOST_ROWS_IN_MARKDOWN)
    if not sample:
        return []
    lines = [f"{len(sample)} of {num_rows(comparison):,}, those first on which the arms disagree most."]
    for row in sample:
        lines += ["", f"**Row {row.number}**, {row.summary}. Prompt: {markdown(row.prompt)}", ""]
        lines += [f"Reference: {markdown(row.reference)}", ""]
        answers = ([answer.name, answer.mark, answer.warmup or NOTHING, answer.answer] for answer in row.answers)
        lines += markdown_grid(("arm", "score", "warmup", "answer"), answers)
    return lines


def _markdown_pairs(title: str, pairs: Mapping[str, str]) -> list[str]:
    return markdown_grid((title, "value"), pairs.items()) if pairs else []
