"""A task's file runs where the command line names it, and never because a folder does: folders are downloaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from folders import TRAINING, puzzles, tree, write_rows

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.evaluation.rows import held_out_questions
from warmup_peft.inference.folder import TrainingRecord
from warmup_peft.settings.arguments import EvaluateArguments
from warmup_peft.settings.shipped import RECIPES

TASK = """
from pathlib import Path
from warmup_peft.evaluation.tasks import Question, Task

Path(__file__).with_name("ran").touch()

def read(rows, column="question"):
    return [Question(str(row[column]), (" yes", " no"), answer=row["answer"] % 2) for row in rows]

TASK = Task(read=read, metrics=("accuracy",))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder) -> Path:
    """A folder with a task's file and the adapter `run`, which was trained with it."""
    room = tmp_path_factory.mktemp("room")
    (room / "task.py").write_text(TASK)
    for start, split in enumerate(("train", "test")):
        write_rows(room / "data" / f"{split}.jsonl", puzzles(6, start=6 * start))
    options = {
        **TRAINING, "model_name_or_path": model_folder, "dataset_name": room / "data", "output_dir": room / "run",
        "task": room / "task.py", "task_args": json.dumps({"column": "text"}), "save_strategy": "no", "max_steps": 1,
    }  # fmt: skip
    assert main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]) == 0
    assert (room / "ran").exists()
    return room


@pytest.fixture
def room(trained) -> Path:
    for path in ("ran", "merged"):
        shutil.rmtree(trained / path, ignore_errors=True)
        (trained / path).unlink(missing_ok=True)
    return trained


@pytest.mark.parametrize("command", [["evaluate", "--adapter"], ["inspect"]])
def test_a_file_that_only_the_folder_names_is_not_run(room, command, capsys):
    before = tree(room)
    assert main([*command, str(room / "run")]) == BAD_INPUT
    said = capsys.readouterr().err
    assert f"was trained with the task {room / 'task.py'}, and a Python file" in said
    assert "--task path/to/task.py" in said
    assert tree(room) == before  # no `ran` among them


@pytest.mark.parametrize("command", [["evaluate", "--adapter"], ["inspect"]])
def test_a_file_that_the_command_line_names_is_run_with_the_trainings_arguments(room, command, capsys):
    assert main([*command, str(room / "run"), "--task", str(room / "task.py"), "--max_samples", "3"]) == 0
    assert (room / "ran").exists()
    record = TrainingRecord.load(room / "run")
    named = EvaluateArguments(str(room / "run"), task=str(room / "task.py"))
    assert [q.prompt for q in held_out_questions(named, record.data).questions] == [
        row["text"].strip() + " " for row in puzzles(6, start=6)
    ]


def test_merging_says_that_scores_were_not_compared_and_how(room, capsys):
    merge = ["merge", "--adapter", str(room / "run"), "--output_dir", str(room / "merged")]
    assert main(merge) == 0
    said = capsys.readouterr().out
    assert f"Scores were not compared: The adapter was trained with the task {room / 'task.py'}" in said
    assert "--task path/to/task.py" in said
    assert not (room / "ran").exists()
    assert main([*merge, "--overwrite_output_dir", "--task", str(room / "task.py")]) == 0
    assert "Held-out accuracy on 6 rows" in capsys.readouterr().out
    assert (room / "ran").exists()


def test_merging_refuses_a_task_that_is_not_there_before_it_begins(room, capsys):
    before = tree(room)
    merge = ["merge", "--adapter", str(room / "run"), "--output_dir", str(room / "merged")]
    assert main([*merge, "--task", "nowhere/task.py"]) == BAD_INPUT
    assert "There is no task 'nowhere/task.py'" in capsys.readouterr().err
    assert tree(room) == before


def test_the_trainings_arguments_go_with_its_file_wherever_it_lies_now(room, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(room)
    elsewhere = tmp_path / "recipes" / "task.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text(TASK)
    rows = {"dataset_name": str(room / "data"), "task_args": {"column": "text"}}
    for recorded, named, is_same in (
        ("task.py", str(room / "task.py"), True),
        ("task.py", "./task.py", True),
        ("recipes/task.py", str(elsewhere), True),
        ("recipes/task.py", "task.py", False),
        ("logiqa", "task.py", False),
    ):
        questions = held_out_questions(EvaluateArguments("run", task=named), {**rows, "task": recorded}).questions
        is_text = not questions[0].prompt.startswith("Colour")
        assert is_text == is_same, (recorded, named)
        assert ("is not the training's task" in capsys.readouterr().out) != is_same


@pytest.mark.parametrize("task", ["task.py", ["logiqa"], {"a": 1}, "__import__"])
def test_whatever_a_record_names_only_built_in_tasks_are_taken_from_it(room, task):
    with pytest.raises(ValueError, match=r"--task path/to/task\.py"):
        held_out_questions(EvaluateArguments("run"), {"dataset_name": str(room / "data"), "task": task})
    assert not (room / "ran").exists()


@pytest.mark.parametrize("task", ["recipes/prosqa/task.py", str(RECIPES / "prosqa" / "task.py")])
def test_a_file_of_the_packages_recipes_is_taken_from_a_record_and_no_namesake(tmp_path, monkeypatch, task):
    own = tmp_path / "recipes" / "prosqa" / "task.py"
    own.parent.mkdir(parents=True)
    own.write_text("raise AssertionError('run')")
    monkeypatch.chdir(tmp_path)
    record = {"dataset_name": str(RECIPES / "prosqa" / "data"), "task": task}
    found, questions, *_ = held_out_questions(EvaluateArguments("run", max_samples=2), record)
    assert (found.metrics[0], len(questions)) == ("accuracy", 2)
    assert not list(RECIPES.rglob("prosqa/__pycache__/task*"))
