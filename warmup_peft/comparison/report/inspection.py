"""The report of an inspection: what one run's warmups say and what they are worth, in HTML and in Markdown.

The page needs nothing else. Knows no model and no trainer. `inspection.html.jinja` and `to_markdown` arrange the same
sentences, tables and rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from warmup_peft.comparison.phrases import CLASSES, Inspection, PhraseClass
from warmup_peft.comparison.report.comparison import WORDS as WORDS_OF_COMPARISON
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
from warmup_peft.comparison.report.tables import WARMUP_FIGURES, p_texts
from warmup_peft.comparison.wording import count, difference_text, p_text
from warmup_peft.evaluation.metrics import metric_name, number_text, points_text, score_text
from warmup_peft.evaluation.tasks import Row
from warmup_peft.files import write_together
from warmup_peft.method.diagnostics import UNUSED_BELOW

MOST_ROWS_IN_MARKDOWN = 5  # of each kind
MOST_PHRASE = 160  # characters of a warmup or a reference in a list
EMPTY = "(empty)"
WITH, WITHOUT = "with its warmup", "without"
CAVEAT = (
    "What a warmup is worth to the model that was trained to write it does not say whether plain fine-tuning would "
    "have done as well; warmup-peft compare asks that."
)

FIGURES = {
    "gain_over_none": "what the reference’s log-probability gains over no warmup",
    "gain_over_others": "what it gains over the warmup of another row",
    "overlap": "share of the warmup’s words that stand in the reference too",
    "distinct": "share of the warmups that differ",
    "mean_length": "mean over the rows",
}
WORDS = {
    "warmup": WORDS_OF_COMPARISON["warmup"],
    "with its warmup, without": "The same model answers every row twice: after the warmup that it writes itself, and "
    "after the separator alone.",
    "points": WORDS_OF_COMPARISON["points"],
    "95% interval": "Where the difference lies with 95% confidence, as far as the choice of rows goes: the rows are "
    "drawn anew many times, the same for both ways of answering (paired bootstrap).",
    "p": "How often chance alone would show so large a difference if there were none. Only below 0.05 is it said to "
    "be seen. McNemar’s p counts only the rows that are right one way and wrong the other.",
    "perplexity": "How surprised the model is by a token of the reference: 1 is not at all; lower is better.",
    "gain over none, gain over another’s": WORDS_OF_COMPARISON["gain over none, gain over another’s"]
    + f" Small is below {UNUSED_BELOW} nats. A gain can be large and the score the same: it moves the odds, and "
    "the score only sees where they tip.",
    "overlap": WORDS_OF_COMPARISON["overlap"],
    "distinct": WORDS_OF_COMPARISON["distinct"],
    "direct, similar, neither, empty": "Whether warmup and reference share words. Words without a meaning of their "
    "own (English stop words) do not count where there are others; stems are English too.",
}


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first cell of a line names it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Phrases:
    """One class of warmups: its share between 0 and 1, and pairs of warmup and reference."""

    name: PhraseClass
    meaning: str
    share: float
    share_text: str
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ChangedRow:
    """A row that the warmup changed, as answered with it and without."""

    summary: str
    prompt: str
    reference: str
    answers: tuple[Answer, Answer]


@dataclass(frozen=True)
class ChangedRows:
    """Rows changed for the better, or for the worse; `shown` says how many of how many are here."""

    title: str
    shown: str
    rows: tuple[ChangedRow, ...]


def write_inspection(inspection: Inspection, folder: Path) -> tuple[Path, Path]:
    """Write `inspect.html` and `inspect.md` into the folder, made if need be; returns their paths.

    Raises:
        OSError: they cannot be written; older reports stay as they were.
    """
    return write_together({"inspect.html": to_html(inspection), "inspect.md": to_markdown(inspection)}, folder)


def to_html(inspection: Inspection) -> str:
    """A whole page; it loads nothing, from the network or elsewhere."""
    return render(
        "inspection.html.jinja",
        inspection=inspection,
        worth=worth(inspection),
        reading=reading(inspection),
        caveat=CAVEAT,
        facts=facts(inspection),
        scores=scores_grid(inspection),
        difference=difference_line(inspection),
        figures=figures_grid(inspection),
        phrases=phrases(inspection),
        common=common_grid(inspection),
        common_share=common_share(inspection),
        changed=changed_text(inspection),
        changes=changes(inspection),
        words=WORDS,
    )


# ---- Sentences ----


def worth(inspection: Inspection) -> str:
    """What the warmups are worth, as the scores with and without them say."""
    difference = inspection.difference
    after, without = (score_text(inspection.metric, score) for score in inspection.metrics[inspection.metric])
    low, high = points_text(difference.low), points_text(difference.high)
    numbers = (
        f"{metric_name(inspection.metric)} {after} with its warmup, {without} without "
        f"({points_text(difference.estimate)} points, 95% interval {low} to {high}, {p_text(difference.p_adjusted)})"
    )
    if not difference.is_shown:
        return f"No difference can be seen: {numbers}."
    if difference.estimate > 0:
        return f"This model needs its warmup: {numbers}."
    return f"This model answers better without its warmup: {numbers}."


def reading(inspection: Inspection) -> str:
    """Whether the model reads what it writes, as the two gains say."""
    names = ("gain_over_none", "gain_over_others")
    over_none, over_others = (inspection.figures.get(name, math.nan) for name in names)
    if math.isnan(over_none) or math.isnan(over_others):
        return "Whether the model reads its warmups was not measured."
    to_none, to_others = (number_text(gain, "+.3f") for gain in (over_none, over_others))
    return (
        f"{_use_of_warmups(over_none, over_others)}: the reference’s log-probability gains {to_none} nats over no "
        f"warmup, and {to_others} over the warmup of another row."
    )


def _use_of_warmups(over_none: float, over_others: float) -> str:
    """The table of `diagnostics`, and what lies outside it."""
    is_read = over_others >= UNUSED_BELOW
    if over_none >= UNUSED_BELOW:
        return "What is written matters" if is_read else "The warmup is a pause to compute in, whatever it says"
    if over_none <= -UNUSED_BELOW:
        return "The warmup makes the reference less likely than none would"
    return "The warmup is read, but is worth no more than none" if is_read else "The warmup is not used"


def facts(inspection: Inspection) -> list[str]:
    """What the numbers rest on."""
    least = number_text(100 * inspection.difference.visible, ".1f")
    return [
        count(inspection.num_rows, "row"),
        "one model, with and without its warmup",
        f"so many rows would probably show a difference of {least} points or more",
    ]


def difference_line(inspection: Inspection) -> str:
    difference = inspection.difference
    points = difference_text(difference)
    return f"Difference in {metric_name(inspection.metric)}: {points} points; {', '.join(p_texts(difference))}."


def changed_text(inspection: Inspection) -> str:
    """How many rows the warmup changed."""
    better, worse = inspection.num_better, inspection.num_worse
    return (
        f"Of {count(inspection.num_rows, 'row')} the warmup changed {better:,} for the better and {worse:,} for the "
        f"worse; {inspection.num_rows - better - worse:,} score the same."
    )


def share_text(share: float) -> str:
    """9.3%; never 0% of something, nor 100% of less than all."""
    if 0 < share < 0.001:
        return "below 0.1%"
    return "above 99.9%" if 0.999 < share < 1 else number_text(100 * share, ".1f").removesuffix(".0") + "%"


# ---- Tables ----


def scores_grid(inspection: Inspection) -> Grid:
    rows = tuple(
        (metric_name(name), *(score_text(name, score) for score in scores))
        for name, scores in inspection.metrics.items()
    )
    return Grid("Scores with the warmup and without", ("score", WITH, WITHOUT), rows)


def figures_grid(inspection: Inspection) -> Grid:
    rows = tuple(
        (title, number_text(inspection.figures[name], form), FIGURES[name])
        for name, (title, form) in WARMUP_FIGURES.items()
        if name in inspection.figures
    )
    return Grid("Figures of the warmups", ("figure", "value", "what it is"), rows)


def common_grid(inspection: Inspection) -> Grid:
    rows = tuple(
        (
            _phrase(each.text),
            f"{each.count:,}",
            share_text(each.count / inspection.num_rows),
            score_text(inspection.metric, each.score),
        )
        for each in inspection.common
    )
    return Grid(
        "The most frequent warmups", ("warmup", "rows", "share", f"mean {metric_name(inspection.metric)}"), rows
    )


def common_share(inspection: Inspection) -> str:
    """How much of all is in the table of frequent warmups; empty where there is none."""
    if not inspection.common:
        return ""
    rows = sum(each.count for each in inspection.common)
    share = share_text(rows / inspection.num_rows)
    text = f"{count(len(inspection.common), 'text')} in {rows:,} of {count(inspection.num_rows, 'row')}, {share}."
    return text + (" None occurs twice." if all(each.count == 1 for each in inspection.common) else "")


def _phrase(text: str) -> str:
    return clip_end(text.strip(), MOST_PHRASE) or EMPTY


# ---- Warmups and rows ----


def phrases(inspection: Inspection) -> list[Phrases]:
    """Every class of `CLASSES`, those without a warmup too."""
    return [
        Phrases(name, meaning, share, share_text(share), _examples(inspection.examples.get(name, [])))
        for name, meaning in CLASSES.items()
        for share in [inspection.classes.get(name, 0.0)]
    ]


def _examples(rows: Iterable[Row]) -> tuple[tuple[str, str], ...]:
    return tuple((_phrase(row.warmup), _phrase(row.reference)) for row in rows)


def changes(inspection: Inspection, most: int | None = None) -> list[ChangedRows]:
    """Rows changed for the better, then for the worse: all of them, or the first `most` of each."""
    is_graded = are_graded(inspection.metric, chain.from_iterable((*inspection.better, *inspection.worse)))
    kinds = (
        ("For the better", inspection.better[:most], inspection.num_better),
        ("For the worse", inspection.worse[:most], inspection.num_worse),
    )
    return [
        ChangedRows(title, _shown(len(pairs), total, is_graded), _changed_rows(inspection.metric, pairs, is_graded))
        for title, pairs, total in kinds
    ]


def _shown(number: int, total: int, is_graded: bool) -> str:
    if total == 0:
        return "None."
    return f"{number:,} of {count(total, 'row')} shown{', those first that changed most' if is_graded else ''}."


def _changed_rows(metric: str, pairs: Sequence[tuple[Row, Row]], is_graded: bool) -> tuple[ChangedRow, ...]:
    return tuple(_changed_row(metric, *pair, is_graded) for pair in pairs)


def _changed_row(metric: str, after: Row, without: Row, is_graded: bool) -> ChangedRow:
    answers = answer_line(WITH, metric, after, is_graded), answer_line(WITHOUT, metric, without, is_graded)
    return ChangedRow(
        summary=f"{answers[1].mark} → {answers[0].mark}",
        prompt=clip_start(after.prompt.strip()),
        reference=clip_end(after.reference.strip()),
        answers=answers,
    )


# ---- Markdown ----


def to_markdown(inspection: Inspection) -> str:
    """GitHub-flavoured, without HTML; its headings are of the second and third level."""
    return markdown_sections(
        {
            "": _markdown_head(inspection),
            "Scores": [*_markdown_grid(scores_grid(inspection)), "", markdown(difference_line(inspection))],
            "Figures": _markdown_grid(figures_grid(inspection)),
            "What the warmups say": _markdown_phrases(phrases(inspection)),
            "Most frequent": _markdown_common(inspection),
            "Changed rows": _markdown_changes(inspection),
            "Words": markdown_words(WORDS),
            "Rows": [f"Run: {markdown(inspection.folder)}. Rows: {markdown(inspection.source)}."],
        }
    )


def _markdown_head(inspection: Inspection) -> list[str]:
    return [
        "## What do the warmups say?",
        "",
        f"**{markdown(worth(inspection))}**",
        "",
        f"**{markdown(reading(inspection))}**",
        "",
        CAVEAT,
        "",
        f"{'; '.join(facts(inspection))}.",
    ]


def _markdown_grid(grid: Grid) -> list[str]:
    return markdown_grid(grid.header, grid.rows) if grid.rows else []


def _markdown_common(inspection: Inspection) -> list[str]:
    return [*_markdown_grid(common_grid(inspection)), "", common_share(inspection)] if inspection.common else []


def _markdown_phrases(classes: list[Phrases]) -> list[str]:
    shares = [(each.name, each.share_text, each.meaning) for each in classes]
    examples = [(each.name, *example) for each in classes for example in each.examples]
    lines = markdown_grid(("class", "share", "the warmup"), shares)
    return [*lines, "", *markdown_grid(("class", "warmup", "reference"), examples)] if examples else lines


def _markdown_changes(inspection: Inspection) -> list[str]:
    lines = [changed_text(inspection)]
    for kind in changes(inspection, MOST_ROWS_IN_MARKDOWN):
        lines += ["", f"**{kind.title}.** {kind.shown}"]
        for row in kind.rows:
            lines += ["", f"Prompt: {markdown(row.prompt)}", "", f"Reference: {markdown(row.reference)}", ""]
            lines += markdown_grid(("answered", "score", "warmup", "answer"), map(_markdown_answer, row.answers))
    return lines


def _markdown_answer(answer: Answer) -> tuple[str, ...]:
    return answer.name, answer.mark, answer.warmup or EMPTY, answer.answer or EMPTY
