"""Which rows a command works on: those for learning curves, those for the verdict, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset
from folders import puzzles, write_rows

from warmup_peft.evaluation.rows import (
    held_out_questions,
    rows_to_compare_on,
    task_args_of,
    task_to_score,
    training_rows,
)
from warmup_peft.settings.arguments import EvaluateArguments, RunOptions

TASK = """
from warmup_peft.evaluation.tasks import Question, Task

def read(rows, column="text"):
    return [Question(str(row[column]), (" yes",)) for row in rows]

TASK = Task(read=read, metrics=("rougeL",))
"""


def script(name, test_split: str = "test", streaming: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        dataset_name=str(name), dataset_config=None, dataset_test_split=test_split, dataset_streaming=streaming
    )


def folder_with(folder, **sizes: int):
    for start, (split, size) in enumerate(sizes.items()):
        write_rows(folder / f"{split}.jsonl", puzzles(size, start=100 * start))
    return folder


def numbers(questions) -> list[int]:
    return [int(q.prompt.split("Colour ")[1].split("?")[0]) for q in questions]


def test_learning_curves_use_validation_rows(tmp_path):
    data = folder_with(tmp_path, train=4, validation=6, test=5)
    curve, test = rows_to_compare_on(script(data), RunOptions(task="logiqa"), None, 128)
    assert (numbers(curve), numbers(test)) == (list(range(100, 106)), list(range(200, 205)))
    curve, test = rows_to_compare_on(script(data), RunOptions(task="logiqa"), 2, 3)
    assert (len(curve), len(test)) == (3, 2)


@pytest.mark.parametrize(("sizes", "split"), [({"train": 4, "test": 7}, "test"), ({"train": 4, "val": 7}, "test"),
                                              ({"train": 4, "val": 7}, "validation")])  # fmt: skip
def test_without_two_splits_the_rows_are_halved(tmp_path, sizes, split):
    data = folder_with(tmp_path, **sizes)
    curve, test = rows_to_compare_on(script(data, split), RunOptions(task="logiqa"), None, 128)
    assert (numbers(curve), numbers(test)) == ([100, 102, 104, 106], [101, 103, 105])


HUB_SPLITS = {"train": puzzles(4), "test": puzzles(7, start=100)}


def hub(monkeypatch, asked: list | None = None, broken: str = ""):
    """The Hub has the two splits; `broken` names one whose download fails."""

    def load_dataset(name, config, split, streaming=False):
        if asked is not None:
            asked.append((name, config, split, streaming))
        if split == broken:
            raise ConnectionError("no route to host")
        if split not in HUB_SPLITS:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(HUB_SPLITS)}.')
        rows = Dataset.from_list(HUB_SPLITS[split])
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr("warmup_peft.evaluation.data.load_dataset", load_dataset)


def test_a_data_set_on_the_hub_without_a_validation_split_is_halved(monkeypatch):
    hub(monkeypatch)
    curve, test = rows_to_compare_on(script("some/data"), RunOptions(task="logiqa"), None, 128)
    assert (numbers(curve), numbers(test)) == ([100, 102, 104, 106], [101, 103, 105])


def test_a_failure_of_the_hub_is_not_taken_for_a_missing_split(monkeypatch):
    hub(monkeypatch, broken="validation")
    with pytest.raises(ValueError, match=r"did not give its split validation \(no route to host\)"):
        rows_to_compare_on(script("some/data"), RunOptions(task="logiqa"), None, 128)


def test_rows_are_streamed_from_the_hub(monkeypatch):
    asked = []
    hub(monkeypatch, asked)
    monkeypatch.setitem(HUB_SPLITS, "train", PAIRS)
    rows = training_rows(script("some/data", streaming=True), RunOptions(), "train", 3)
    assert isinstance(rows, IterableDataset)
    assert list(rows) == PAIRS[:3]
    assert asked == [("some/data", None, "train", True)]


def test_rows_of_a_stream_that_nobody_reads_name_what_the_command_line_takes(monkeypatch):
    hub(monkeypatch)
    with pytest.raises(ValueError, match=r"columns answer, options, question, text\).* with --task"):
        training_rows(script("some/data", streaming=True), RunOptions(), "train", 3)


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("rows.jsonl", None, "needs the id of a data set on the Hub, which .*rows.jsonl is not"),
        ("data", None, "needs the id of a data set on the Hub, which .*data is not"),
        ("hf://datasets/user/repo/x", None, "needs the id of a data set on the Hub"),
        ("some/data", "logiqa", "does not work with a task"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path, monkeypatch, name, task, words):
    hub(monkeypatch)
    folder_with(tmp_path / "data", train=4)
    name = name if name.count("/") else tmp_path / name
    with pytest.raises(ValueError, match=rf"^dataset_streaming {words}.*[Ll]eave it out"):
        training_rows(script(name, streaming=True), RunOptions(task=task), "train", None)


def test_rows_to_compare_on_are_not_streamed(monkeypatch):
    hub(monkeypatch)
    with pytest.raises(ValueError, match=r"^dataset_streaming does not work with a task"):
        rows_to_compare_on(script("some/data", streaming=True), RunOptions(task="logiqa"), None, 128)


def test_a_single_file_needs_a_share_that_is_kept_out_of_training(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", puzzles(20))
    with pytest.raises(ValueError, match="--test_split_size"):
        rows_to_compare_on(script(path), RunOptions(task="logiqa"), None, 128)
    options = RunOptions(task="logiqa", test_split_size=0.5)
    curve, test = rows_to_compare_on(script(path), options, None, 128)
    trained = training_rows(script(path), options, "train", None)
    seen = {int(row["prompt"].split("Colour ")[1].split("?")[0]) for row in trained}
    assert len(seen | set(numbers(curve)) | set(numbers(test))) == 20
    assert len(seen) + len(curve) + len(test) == 20


PAIRS = [{"prompt": f"Q{i}:", "completion": f" {i}\n"} for i in range(4)]


def test_without_a_task_the_rows_are_prompts_and_completions(tmp_path):
    write_rows(tmp_path / "test.jsonl", PAIRS)
    curve, test = rows_to_compare_on(script(tmp_path), RunOptions(), None, 128)
    assert [(q.prompt, q.completion) for q in curve] == [("Q0:", " 0\n"), ("Q2:", " 2\n")]
    assert [q.prompt for q in test] == ["Q1:", "Q3:"]
    with pytest.raises(ValueError, match="Did you mean 'exact_match"):
        rows_to_compare_on(script(tmp_path), RunOptions(), None, 128, "exact_matches")


def test_held_out_rows_of_a_training_without_a_task(tmp_path):
    write_rows(tmp_path / "test.jsonl", PAIRS)
    record = {"dataset_name": str(tmp_path), "task": None}
    task, questions, *_ = held_out_questions(EvaluateArguments("run"), record)
    assert (task.metrics, task.max_new_tokens) == (("exact_match",), None)
    assert [(q.prompt, q.options) for q in questions] == [(f"Q{i}:", (f" {i}\n",)) for i in range(4)]


@pytest.mark.parametrize(
    ("task", "recorded", "named", "metrics"),
    [
        (None, None, None, ("exact_match",)),
        (None, "contains,bleu", None, ("contains", "bleu")),
        ("prompt_completion", "contains", None, ("contains",)),
        (None, "contains", "bleu", ("bleu",)),
        ("logiqa", "contains", None, ("accuracy", "macro_f1")),
        ("logiqa", None, "macro_f1", ("macro_f1",)),
    ],
)
def test_which_metrics_score(task, recorded, named, metrics):
    assert task_to_score(task, recorded, named).metrics == metrics


def test_a_package_that_is_missing_is_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    write_rows(tmp_path / "test.jsonl", PAIRS)
    with pytest.raises(ImportError, match=r"^The metric math_verify needs math_verify\. Run: pip install"):
        held_out_questions(EvaluateArguments("run", metrics="math_verify"), {"dataset_name": str(tmp_path)})


def test_training_rows_of_prompts_and_completions_stay_as_they_are(tmp_path):
    rows = [{**PAIRS[0], "other": 1}]
    write_rows(tmp_path / "train.jsonl", rows)
    for task in (None, "prompt_completion"):
        assert training_rows(script(tmp_path), RunOptions(task=task), "train", None).to_list() == rows


@pytest.mark.parametrize(
    ("task_args", "expected"),
    [(None, {}), ('{"a": 1}', {"a": 1}), ({"a": "b"}, {"a": "b"}), ("{}", {})],
)
def test_task_args_as_text_or_mapping(task_args, expected):
    assert task_args_of(RunOptions(task_args=task_args)) == expected
    letter = RunOptions(task_args=task_args, answer_format="letter")
    assert task_args_of(letter) == {"answer_format": "letter", **expected}


@pytest.mark.parametrize("task_args", ["source: de", '["a"]', "{"])
def test_task_args_that_are_no_object(task_args):
    with pytest.raises(ValueError, match="task_args="):
        task_args_of(RunOptions(task_args=task_args))


def test_a_tasks_arguments_are_remembered_from_the_training(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(TASK)
    data = folder_with(tmp_path / "data", train=2, test=3)
    record = {"dataset_name": str(data), "task": str(path), "task_args": {"column": "question"}}
    named = {"task": str(path)}  # what a folder names is not run, see test_named_tasks.py
    task, questions, source, are_trained_on = held_out_questions(EvaluateArguments("run", **named), record)
    assert task.metrics == ("rougeL",)
    assert [q.prompt for q in questions] == [f"Colour {i}?" for i in range(100, 103)]
    assert (source, are_trained_on) == (f"{data}, split test", False)
    given = EvaluateArguments("run", **named, task_args='{"column": "answer"}')
    assert [q.prompt for q in held_out_questions(given, record).questions] == ["0", "1", "2"]


def test_training_rows_of_a_written_task(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(TASK)
    data = folder_with(tmp_path / "data", train=2)
    options = RunOptions(task=str(path), task_args={"column": "question"})
    assert training_rows(script(data), options, "train", 1).to_list() == [
        {"prompt": "Colour 0?", "completion": " yes"}
    ]
