"""Prompts of `generate` that are not there. What is read from files and standard input is in test_generate.py."""

from __future__ import annotations

import sys

import pytest

from warmup_peft.cli.prompts import are_given, checked_prompts
from warmup_peft.settings.arguments import GenerateArguments


def test_a_terminal_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert not are_given(GenerateArguments("run"))
    with pytest.raises(ValueError, match=r"^There is no prompt\. Pass --prompt"):
        checked_prompts(GenerateArguments("run"))


def test_a_misspelt_file_names_the_one_beside_it(tmp_path):
    (tmp_path / "prompts.txt").write_text("one?\n")
    assert checked_prompts(GenerateArguments("run", prompts_file=str(tmp_path / "prompts.txt"))) == ["one?"]
    with pytest.raises(ValueError, match=r"Did you mean .*prompts\.txt\?"):
        checked_prompts(GenerateArguments("run", prompts_file=str(tmp_path / "promts.txt")))
