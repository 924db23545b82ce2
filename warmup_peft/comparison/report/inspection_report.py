"""The report of `warmup-peft inspect` in Markdown: what the warmups of one run say, and whether they help.

`inspection.md.jinja` arranges the sentences and tables that are made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from warmup_peft.comparison.formatting import count, difference_text, interval_text, p_text, share_text
from warmup_peft.comparison.inspection import CLASSES, WITH, WITHOUT, Inspection
from warmup_peft.comparison.report.glossary import GAINS, WORDS_OF_INSPECTION
from warmup_peft.comparison.report.rendering import are_graded, clip_end, render
from warmup_peft.comparison.report.tables import WARMUP_METRICS, Table, p_texts
from warmup_peft.evaluation.score_texts import metric_name, number_text, points_text, score_text
from warmup_peft.files import write_together
from warmup_peft.method.diagnostics import UNUSED_BELOW

MOST_ROWS = 30  # changed rows of each kind
MOST_PHRASE = 160  # characters of a warmup or a reference in a list
CAVEAT = (
    "This compares the trained model with itself. It does not tell whether SFT would have been as good; "
    "warmup-peft compare does."
)
MEANINGS = {
    "gain_over_none": "rise of the reference’s log-probability over no warmup",
    "gain_over_others": "rise of the reference’s log-probability over the warmup of another row",
    "overlap": "share of the warmups’ words that also occur in the reference",
    "distinct": "share of distinct warmups",
    "mean_length": "tokens in a warmup, mean over the rows",
}


def write_inspection(inspection: Inspection, folder: Path) -> Path:
    """Write `inspect.md` into the folder, made if need be; returns its path.

    Raises:
        OSError: it cannot be written; an older report stays as it was.
    """
    return write_together({"inspect.md": to_markdown(inspection)}, folder)[0]


def to_markdown(inspection: Inspection) -> str:
    """GitHub-flavoured, without HTML; its headings are of the second and third level."""
    return render(
        "inspection.md.jinja",
        inspection=inspection,
        worth=worth_of_warmups(inspection),
        use=use_of_warmups(inspection.warmups),
        caveat=CAVEAT,
        facts=facts(inspection),
        scores=scores_table(inspection),
        difference=difference_line(inspection),
        warmups=warmups_table(inspection),
        gains=GAINS,
        classes=classes_table(inspection),
        examples=examples_table(inspection),
        common=common_table(inspection),
        common_share=common_share(inspection),
        changed=changed_text(inspection),
        changes={"Better with the warmup": inspection.changed(1), "Worse with the warmup": inspection.changed(-1)},
        most=MOST_ROWS,
        is_graded=are_graded(inspection.metric, chain.from_iterable(inspection.rows)),
        words=WORDS_OF_INSPECTION,
    )


# ---- Sentences ----

NO_PROOF = (
    "That does not say that training with warmups is better than without: a model that was trained to follow a warmup "
    "misses it. For that question see: warmup-peft compare."
)


def worth_of_warmups(inspection: Inspection) -> str:
    """Whether warmups improve the answers of the model that writes them."""
    metric, difference = inspection.metric, inspection.difference
    after, without = (score_text(metric, score) for score in inspection.scores[metric])
    points = points_text(difference.estimate)
    numbers = (
        f"{metric_name(metric)} {after} with its warmup, {without} without ({points} points, "
        f"{interval_text(difference)}, {p_text(difference.p_adjusted)})"
    )
    if not difference.is_significant:
        return f"No significant difference: {numbers}."
    if difference.estimate > 0:
        return f"This model answers better after its warmups: {numbers}. {NO_PROOF}"
    return f"This model answers better without warmups: {numbers}."


def use_of_warmups(warmups: Mapping[str, float]) -> str:
    """Whether the model uses its warmups, judged by the two gains."""
    over_none, over_others = (warmups.get(name, math.nan) for name in ("gain_over_none", "gain_over_others"))
    if math.isnan(over_none) or math.isnan(over_others):
        return "Whether the model uses its warmups was not measured."
    to_none, to_others = (number_text(gain, "+.3f") for gain in (over_none, over_others))
    return (
        f"{_reading_of_gains(over_none, over_others)}: they change the reference’s log-probability by {to_none} nats "
        f"over no warmup, and by {to_others} nats over a shuffled warmup (that of another row)."
    )


def _reading_of_gains(over_none: float, over_others: float) -> str:
    """The table in `diagnostics`, and the cases that it leaves out."""
    is_read = over_others >= UNUSED_BELOW
    if over_none >= UNUSED_BELOW:
        return "The content of the warmups matters" if is_read else "The warmups only give the model time to compute"
    if over_none <= -UNUSED_BELOW:
        return "The warmups make the reference less likely than no warmup does"
    return "The model reads its warmups, but they are no better than none" if is_read else "The warmups are not used"


def facts(inspection: Inspection) -> list[str]:
    """Number of rows, and what they can detect."""
    least = number_text(100 * inspection.difference.minimum_detectable_effect, ".1f")
    return [
        count(len(inspection.rows), "row"),
        "one model, with and without its warmup",
        f"minimum detectable effect: {least} points",
    ]


def difference_line(inspection: Inspection) -> str:
    difference = inspection.difference
    points = difference_text(difference)
    return f"Difference in {metric_name(inspection.metric)}: {points} points; {', '.join(p_texts(difference))}."


def changed_text(inspection: Inspection) -> str:
    """How many rows the warmup changed."""
    better, worse = (len(inspection.changed(sign)) for sign in (1, -1))
    rows = len(inspection.rows)
    return (
        f"Of {count(rows, 'row')}, {better:,} score better with the warmup, {worse:,} score worse, and "
        f"{rows - better - worse:,} score the same."
    )


def common_share(inspection: Inspection) -> str:
    """How many rows the table of frequent warmups covers."""
    common, rows = inspection.common(), len(inspection.rows)
    covered = sum(number for _, number, _ in common)
    text = (
        f"{count(len(common), 'text')} in {covered:,} of {count(rows, 'row')}, {share_text(covered / max(1, rows))}."
    )
    return text + (" No warmup occurs twice." if all(number == 1 for _, number, _ in common) else "")


# ---- Tables ----


def scores_table(inspection: Inspection) -> Table:
    rows = [
        [metric_name(name), *(score_text(name, score) for score in scores)]
        for name, scores in inspection.scores.items()
    ]
    return Table("Scores with the warmup and without", ["score", WITH, WITHOUT], rows)


def warmups_table(inspection: Inspection) -> Table:
    rows = [
        [title, number_text(inspection.warmups[name], form), MEANINGS[name]]
        for name, (title, form) in WARMUP_METRICS.items()
        if name in inspection.warmups
    ]
    return Table("Metrics of the warmups", ["metric", "value", "what it is"], rows)


def classes_table(inspection: Inspection) -> Table:
    rows = [
        [name, share_text(len(rows) / max(1, len(inspection.rows))), CLASSES[name]]
        for name, rows in inspection.classes().items()
    ]
    return Table("Classes of the warmups", ["class", "share", "the warmup"], rows)


def examples_table(inspection: Inspection) -> Table:
    rows = [
        [name, _phrase(row.warmup), _phrase(row.reference)]
        for name, rows in inspection.classes().items()
        for row in rows[: inspection.num_examples]
    ]
    return Table("Examples of each class", ["class", "warmup", "reference"], rows)


def common_table(inspection: Inspection) -> Table:
    rows = [
        [_phrase(text), f"{number:,}", share_text(number / len(inspection.rows)), score_text(inspection.metric, score)]
        for text, number, score in inspection.common()
    ]
    header = ["warmup", "rows", "share", f"mean {metric_name(inspection.metric)}"]
    return Table("The most frequent warmups", header, rows)


def _phrase(text: str) -> str:
    return clip_end(text, MOST_PHRASE) or "(empty)"
