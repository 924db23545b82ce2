"""A task's file may bring metrics of its own: they reach every score, report, file and model card."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from folders import argv_of, puzzles, train_argv, write_rows

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.comparison.results import Run
from warmup_peft.evaluation.metrics import METRICS
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.rows import held_out_questions
from warmup_peft.inference.loading import load_folder
from warmup_peft.settings.arguments import EvaluateArguments

TASK = """
from warmup_peft import Metric, Question, Task

def read(rows):
    return [Question(row["question"], (f" {row['options'][row['answer']]}",)) for row in rows]

def brevity(predictions, references):
    return [1 / (1 + len(prediction)) for prediction in predictions]

def variety(predictions, references):
    letters = "".join(predictions)
    return len(set(letters)) / (1 + len(letters))

def starts_early(answers):
    return [text[:1] < "m" for text in answers.texts]

starts = Metric("starts", "Starts before m", 100, "right_or_wrong", starts_early)

def broken(predictions, references):
    raise KeyError("weights")

TASK = Task(read=read, metrics=(METRICS), max_new_tokens=6)
"""


def task_file(folder: Path, metrics: str = "brevity, variety, starts, 'rougeL',") -> Path:
    path = folder / "task.py"
    path.write_text(TASK.replace("METRICS", metrics))
    return path


@pytest.fixture(autouse=True)
def registry():
    """What a test's task enters is gone after it."""
    with patch.dict(METRICS):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for start, split in enumerate(("train", "validation", "test")):
        write_rows(folder / f"{split}.jsonl", puzzles(8, start=8 * start))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, data) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(train_argv(model_folder, data, folder / "run", task=task_file(folder))) == 0
    return folder / "run"


def test_evaluate_scores_with_them(run, tmp_path, capsys):
    task = task_file(tmp_path)
    assert main(argv_of("evaluate", adapter=run, task=task)) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    loaded = load_folder(run)
    questions = held_out_questions(EvaluateArguments(str(run), task=str(task)), loaded.record.data).questions
    predictor = Predictor(loaded.model, loaded.tokenizer, loaded.warmup_config)
    texts = [prediction.generation.strip() for prediction in predictor.answer(questions, 6)]
    assert metrics["warmup"]["brevity"] == pytest.approx(sum(1 / (1 + len(text)) for text in texts) / 8)
    assert metrics["warmup"]["variety"] == pytest.approx(len(set("".join(texts))) / (1 + len("".join(texts))))
    assert metrics["warmup"]["starts"] == sum(text[:1] < "m" for text in texts) / 8
    assert list(metrics["base"]) == ["brevity", "variety", "starts", "rougeL", "perplexity", "n"]
    said = " ".join(capsys.readouterr().out.split())
    assert "variety" in said
    assert f"{100 * metrics['warmup']['starts']:.1f}" in said  # of a metric that is shown in hundredths
    assert (
        "| held-out data | brevity | variety | starts | rougeL | perplexity | rows |"
        in (run / "README.md").read_text()
    )


@pytest.mark.parametrize("metrics", ["brevity,", "variety,", "starts,"])
def test_inspect_reports_them(run, tmp_path, metrics):
    out = tmp_path / "out"
    assert main(["inspect", str(run), "--task", str(task_file(tmp_path, metrics)), "--output_dir", str(out)]) == 0
    title = {"starts,": "Starts before m"}.get(metrics, metrics.removesuffix(","))
    report = (out / "inspect.md").read_text(encoding="utf-8")
    assert f"Difference in {title}: " in report
    assert ("McNemar p" in report) == (metrics == "starts,")


def test_merge_compares_by_them(run, tmp_path, capsys):
    named = {"adapter": run, "output_dir": tmp_path / "merged", "task": task_file(tmp_path)}
    assert main(argv_of("merge", **named)) == 0
    assert "Held-out brevity on 8 rows" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_trains_and_judges_by_them(tmp_path, model_folder, data, monkeypatch):
    """In processes of its own, which know the task by its path only, and first by one that scores all rows at once."""
    monkeypatch.setattr("warmup_peft.comparison.significance.RESAMPLES", 99)
    options = {"arms": "sft,paper", "seeds": "0", "jobs": "2", "curve_points": "1", "curve_samples": "4"}
    task = task_file(tmp_path, "variety, brevity, starts")
    argv = train_argv(model_folder, data, tmp_path / "cmp", task=task, **options)
    assert main(["compare", *argv[1:]]) == 0
    runs = {name: Run.load(tmp_path / "cmp" / "runs" / name / "seed-0") for name in ("sft", "paper")}
    for found in runs.values():
        answers = [row.answer for row in found.rows]
        assert found.metrics["brevity"] == pytest.approx(sum(1 / (1 + len(text)) for text in answers) / 8)
        assert found.metrics["variety"] == pytest.approx(len(set("".join(answers))) / (1 + len("".join(answers))))
    difference = 100 * (runs["paper"].metrics["variety"] - runs["sft"].metrics["variety"])
    report = (tmp_path / "cmp" / "report.md").read_text(encoding="utf-8")
    assert "## Warmups or SFT: variety" in report
    assert "a difference of " + f"{difference:+.1f} points".replace("-", "\N{MINUS SIGN}") in report
    assert "Starts before m" in report


@pytest.mark.parametrize("command", ["evaluate", "inspect", "compare"])
def test_one_that_does_not_work_is_said_before_any_work(run, tmp_path, model_folder, data, capsys, command):
    task = task_file(tmp_path, "brevity, broken")
    named = {"evaluate": {"adapter": run}, "inspect": {"run": run}}.get(command)
    argv = argv_of(command, **named, task=task) if named else [
        "compare", *train_argv(model_folder, data, tmp_path / "cmp", task=task)[1:]
    ]  # fmt: skip
    assert main(argv) == BAD_INPUT
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"warmup-peft: error: The metric broken of the task {task} cannot be computed: KeyError: 'weights'"
    assert not (tmp_path / "cmp").exists()
