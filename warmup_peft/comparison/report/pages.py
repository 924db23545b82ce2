"""What the reports share: how a page is rendered, how texts become Markdown, and how files are written.

Knows no model, no trainer and no report.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from warmup_peft.evaluation.metrics import is_right_or_wrong, score_text
from warmup_peft.evaluation.tasks import Row

MOST_PROMPT = 600  # characters, the last ones
MOST_TEXT = 1200  # characters of anything else a row holds, the first ones

# Emphasis, code, tables, mathematics; tags; links; entities; blocks at the start; underscores beside a word.
MARKUP = re.compile(r"[\\`*|~$]|<(?=[A-Za-z/!?])|\](?=[(\[:])|&(?=#?\w+;)|^[>#]|^[+-](?=\s)|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True)
class Answer:
    """A test row as one way of answering it went; `is_right` is None where answers are graded."""

    name: str
    mark: str
    is_right: bool | None
    warmup: str
    answer: str


def answer_line(name: str, metric: str, row: Row, is_graded: bool) -> Answer:
    is_right = None if is_graded else row.score == 1
    mark = score_text(metric, row.score) if is_graded else ("right" if is_right else "wrong")
    return Answer(name, mark, is_right, clip_end(row.warmup.strip()), clip_end(row.answer.strip()))


def are_graded(metric: str, rows: Iterable[Row]) -> bool:
    """Whether scores are degrees, not right or wrong."""
    return not is_right_or_wrong(metric) or any(row.score not in (0, 1) for row in rows)


def clip_start(text: str, most: int = MOST_PROMPT) -> str:
    return text if len(text) <= most else f"… {text[-most:]}"


def clip_end(text: str, most: int = MOST_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]} …"


# ---- HTML ----


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def render(template: str, **values: Any) -> str:
    """A whole page from a template that extends `page.html.jinja`; every text is escaped."""
    return _environment().get_template(template).render(values)


# ---- Markdown ----


def markdown(text: str) -> str:
    """On one line, with what Markdown or HTML would read as its own escaped, and nothing else, to stay readable."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(markdown, line))} |" for line in lines]


def markdown_words(words: Mapping[str, str]) -> list[str]:
    return [f"- **{markdown(word)}**: {markdown(meaning)}" for word, meaning in words.items()]


def markdown_sections(sections: Mapping[str, Sequence[str]]) -> str:
    """Title -> lines; the title "" has no heading, and a section without lines is left out."""
    lines: list[str] = []
    for title, section in sections.items():
        if section:
            lines += [*([f"### {title}", ""] if title else []), *section, ""]
    return "\n".join(lines)


# ---- Files ----
