"""`warmup-peft inspect` on a tiny run."""

from __future__ import annotations

import itertools

import pytest
from folders import logiqa_folder, train_argv

from warmup_peft.cli.main import BAD_INPUT, main


def test_the_command_shows_and_writes_what_it_found(model_folder, tmp_path, capsys):
    """On the test rows of the training's data, which the run remembers."""
    data, run = logiqa_folder(tmp_path / "data"), tmp_path / "run"
    assert main(train_argv(model_folder, data, run, task="logiqa")) == 0
    capsys.readouterr()
    assert main(["inspect", str(run), "--max_samples", "6", "--num_examples", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    report = (run / "inspect.md").read_text(encoding="utf-8")
    for part in ("What the warmups say", "Of 6 rows, ", "without (", "nats over no warmup"):
        assert part in said
        assert part in report
    assert "split test, the first 6" in report
    lines = report.splitlines()
    start = lines.index("| class | warmup | reference |")
    examples = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :]))
    classes = [line.split("|")[1].strip() for line in examples]
    assert len(classes) == len(set(classes)) >= 1  # one of each class
    assert "Examples of each class" in said


@pytest.mark.parametrize("arguments", [["nowhere"], ["--max_samples", "3"], []])
def test_a_folder_that_is_no_run(arguments, capsys):
    assert main(["inspect", *arguments]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("warmup-peft: error: ")
