"""LogiQA rows as prompts and options, and rows that are refused by their number."""

from __future__ import annotations

import json

import pytest

from warmup_peft.evaluation.tasks import TASKS, find_task, logiqa, read_questions, text_column

ROW = {
    "text": " All cats purr.\n",
    "question": "Which purrs?  ",
    "options": ["a dog", " a cat ", "a cow", "none"],
    "answer": 1,
}
PROMPT = "Passage: All cats purr.\nQuestion: Which purrs?\nA. a dog\nB. a cat\nC. a cow\nD. none\nAnswer:"


def test_prompt_and_options_by_hand():
    (question,) = logiqa([ROW])
    assert question.prompt == PROMPT
    assert question.options == (" a dog", " a cat", " a cow", " none")
    assert (question.answer, question.completion) == (1, " a cat")


def test_letters():
    (question,) = TASKS["logiqa"].read([ROW], "letter")
    assert question.prompt == PROMPT
    assert (question.options, question.completion) == ((" A", " B", " C", " D"), " B")


def test_options_in_a_string_as_csv_has_them():
    assert logiqa([{**ROW, "options": json.dumps(ROW["options"])}]) == logiqa([ROW])


def test_rows_keep_their_order_and_are_left_as_they_are():
    rows = [{**ROW, "answer": answer} for answer in (2, 0, 3)]
    before = json.dumps(rows)
    assert [question.answer for question in logiqa(rows)] == [2, 0, 3]
    assert json.dumps(rows) == before


@pytest.mark.parametrize("column", ["text", "question", "options", "answer"])
@pytest.mark.parametrize("value", ["absent", None])
def test_missing_column(column, value):
    row = {key: value for key, value in ROW.items() if key != column}
    if value is None:
        row[column] = None
    with pytest.raises(ValueError, match=rf"^Row 2 has no `{column}`.*text, question, options"):
        logiqa([ROW, row])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["a", "b", "c"], "3 options"),
        (list("abcde"), "5 options"),
        ("a, b, c, d", "no list of options"),
        ('"abcd"', "no list of options"),
        (4, "no list of options"),
        ({"A": "a", "B": "b", "C": "c", "D": "d"}, "no list of options"),
    ],
)
def test_options_of_another_form(options, found):
    with pytest.raises(ValueError, match=f"^Row 3 has {found}.*mend or remove"):
        logiqa([ROW, ROW, {**ROW, "options": options}])


@pytest.mark.parametrize("answer", [-1, 4, "B", "1", 1.5, True, False])
def test_answer_out_of_range(answer):
    with pytest.raises(ValueError, match=f"^Row 1 has answer={answer!r}.*0 to 3"):
        logiqa([{**ROW, "answer": answer}])


def test_whole_number_as_float_is_an_index():
    """Parquet and CSV give floats where a column has gaps elsewhere."""
    (question,) = logiqa([{**ROW, "answer": 1.0}])
    assert question.answer == 1
    assert isinstance(question.answer, int)


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
        ("logica", None, "no task 'logica'. Choose logiqa, or give the path"),
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


def test_arguments_that_a_task_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"no argument 'source'.*takes answer_format"):
        read_questions(TASKS["logiqa"], [ROW], {"source": "de"})
    with pytest.raises(ValueError, match="answer_format='words'"):
        read_questions(TASKS["logiqa"], [ROW], {"answer_format": "words"})


def test_a_task_that_breaks_on_the_rows_is_bad_input(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(OWN_TASK)
    with pytest.raises(ValueError, match="The task cannot read the rows: KeyError: 'text'"):
        read_questions(find_task(str(path)), [{"a": 1}], {})


@pytest.mark.parametrize("row", [{"en": "a"}, {"de": None}, {"de": 3}, {"de": "  "}])
def test_a_row_without_the_text_names_row_and_column(row):
    with pytest.raises(ValueError, match=r"^Row 5 has no text in the column `de`"):
        text_column(row, "de", 5)
