"""Reports, read as a browser and as GitHub would read them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from warmup_peft.comparison.report import charts

VOID = {"meta", "link", "img", "source", "br", "hr", "input"}
EVIL = "<script>alert(1)</script> | `x` **y** [z](u)\n# &amp;"


@pytest.fixture
def quick_pictures(monkeypatch):
    """Drawing a report's charts takes seconds; tests of `charts` and of `comparison_report` draw real ones."""
    monkeypatch.setattr(charts, "drawn", lambda draw, **options: b"")


class Page(HTMLParser):
    """What is in a page: its tags in order, texts, ids; an end tag that closes nothing is an error."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def table_lines(markdown: str) -> list[str]:
    return [line for line in markdown.splitlines() if line.startswith("|")]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
