"""A comparison in the terminal: the table, the notes, and the verdict as they are."""

from __future__ import annotations

import io

from rich.console import Console
from summaries import ANCHORED, FAILED, SFT, comparison

from warmup_peft.comparison.report.terminal import print_comparison


def test_what_is_printed():
    found = comparison(SFT, ANCHORED, FAILED, notes=["An error with [brackets]."])
    console = Console(file=io.StringIO(), width=200)
    print_comparison(found, console)
    text = console.file.getvalue()
    assert "- An error with [brackets]." in text
    assert found.verdict in text
    assert found.use in text
    for name in ("sft", "anchored", "failed"):
        assert name in text
    assert str(found).split()[:5] == text.split()[:5]


def test_in_a_notebook_it_is_a_text_too(monkeypatch):
    """Where rich, left to itself, would display it and write nothing, and write colours."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = str(comparison(SFT, ANCHORED))
    assert SFT.name in text
    assert "\x1b" not in text
