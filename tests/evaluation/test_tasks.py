"""Tasks by name and by file: what a file may define, the metrics it may bring, and what is refused."""

from __future__ import annotations

import pytest

from warmup_peft.evaluation.tasks import find_task, read_questions, text_column

OWN_TASK = """
from warmup_peft.evaluation.tasks import Question, Task

def read(rows, column="text"):
    return [Question(row[column], (" yes",)) for row in rows]

TASK = Task(read=read, metrics=("rougeL",), max_new_tokens=7)
"""


def test_a_task_is_a_file_of_its_own(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(OWN_TASK)
    task = find_task(str(path))
    assert (task.metrics, task.max_new_tokens) == (("rougeL",), 7)
    (question,) = read_questions(task, [{"a": "so?"}], {"column": "a"})
    assert (question.prompt, question.completion) == ("so?", " yes")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("logica", None, r"no task 'logica'. Did you mean 'logiqa'\? Choose logiqa or prompt_completion, or give"),
        ("task.txt", OWN_TASK, "ends in .py"),
        ("task.py", "TASK = 1", "defines no TASK"),
        ("task.py", "import nothing_of_this_name", "cannot be loaded: ModuleNotFoundError"),
        ("task.py", "TASK = (", "cannot be loaded: SyntaxError"),
    ],
)
def test_files_that_are_no_task_are_refused(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
        name = str(path)
    with pytest.raises(ValueError, match=words):
        find_task(name)


def test_a_task_that_breaks_on_the_rows_is_bad_input(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(OWN_TASK)
    with pytest.raises(ValueError, match="The task cannot read the rows: KeyError: 'text'"):
        read_questions(find_task(str(path)), [{"a": 1}], {})


@pytest.mark.parametrize("row", [{"en": "a"}, {"de": None}, {"de": 3}, {"de": "  "}])
def test_a_row_without_the_text_names_row_and_column(row):
    with pytest.raises(ValueError, match=r"^Row 5 has no text in the column `de`"):
        text_column(row, "de", 5)
