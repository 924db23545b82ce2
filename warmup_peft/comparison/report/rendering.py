"""Renders the templates of the reports. Every value that a template outputs is escaped, for HTML and for Markdown."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from warmup_peft.comparison.formatting import count
from warmup_peft.evaluation.score_texts import is_right_or_wrong, metric_name, score_text
from warmup_peft.evaluation.tasks import Row

MOST_PROMPT = 600  # characters, the last ones
MOST_TEXT = 1200  # characters of anything else a row holds, the first ones

# Emphasis, code, tables, mathematics; tags; links; entities; blocks at the start; underscores beside a word.
MARKUP = re.compile(r"[\\`*|~$]|<(?=[A-Za-z/!?])|\](?=[(\[:])|&(?=#?\w+;)|^[>#]|^[+-](?=\s)|(?<!\w)_|_(?!\w)")


def render(template: str, **values: Any) -> str:
    """A page from a template `*.html.jinja`, or Markdown from `*.md.jinja`."""
    is_markdown = template.endswith(".md.jinja")
    text = _environment(is_markdown).get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" if is_markdown else text


@functools.cache
def _environment(is_markdown: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        finalize=markdown if is_markdown else None,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {each.__name__: each for each in (clip_start, clip_end, count, mark, marks, metric_name)}
    return environment


def markdown(value: Any) -> Markup:
    """The text on one line. Only what Markdown or HTML would interpret is escaped, so that it stays readable."""
    if isinstance(value, Markup):  # what a macro gave
        return value
    return Markup(MARKUP.sub(r"\\\g<0>", " ".join(str(value).split())))


# ---- Rows ----


def are_graded(metric: str, rows: Iterable[Row]) -> bool:
    """Whether scores are numbers, and not right or wrong."""
    return not is_right_or_wrong(metric) or any(row.score not in (0, 1) for row in rows)


def mark(row: Row, metric: str, is_graded: bool) -> str:
    """The row's score in words or as a number."""
    return score_text(metric, row.score) if is_graded else ("right" if row.score == 1 else "wrong")


def marks(rows: Sequence[Row], metric: str, is_graded: bool) -> str:
    """How well the arms answered a row, in a few words."""
    if not is_graded:
        return f"{sum(row.score == 1 for row in rows)} of {len(rows)} right"
    low, high = (mark(pick(rows, key=lambda row: row.score), metric, True) for pick in (min, max))
    return f"{metric_name(metric)} {low}" if low == high else f"{metric_name(metric)} {low} to {high}"


def clip_start(text: str, most: int = MOST_PROMPT) -> str:
    text = text.strip()
    return text if len(text) <= most else f"… {text[-most:]}"


def clip_end(text: str, most: int = MOST_TEXT) -> str:
    text = text.strip()
    return text if len(text) <= most else f"{text[:most]} …"
