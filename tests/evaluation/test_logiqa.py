"""LogiQA rows as prompts and options, and rows that are refused by their number."""

from __future__ import annotations

import json

import pytest

from warmup_peft.evaluation.logiqa import TASK, logiqa
from warmup_peft.evaluation.tasks import read_questions

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
    (question,) = TASK.read([ROW], "letter")
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
    with pytest.raises(ValueError, match=f"^Row 3 has {found}.*fix or remove"):
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


def test_arguments_that_a_task_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"no argument 'source'.*takes answer_format"):
        read_questions(TASK, [ROW], {"source": "de"})
    with pytest.raises(ValueError, match="answer_format='words'"):
        read_questions(TASK, [ROW], {"answer_format": "words"})
