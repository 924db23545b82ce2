"""Classes of warmups, the most frequent ones and the rows they changed, by hand; and what a tiny run's rows say."""

from __future__ import annotations

import math

import pytest
from conftest import EXAMPLES
from folders import puzzles, write_rows
from summaries import difference
from trainers import make_trainer

from warmup_peft.comparison.inspection import Inspection, class_of, content_words, inspect_warmups
from warmup_peft.evaluation.logiqa import logiqa
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.tasks import Row
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.loading import load_folder


def row(warmup: str, score: float, prompt: str = "") -> Row:
    return Row(prompt, "reference", warmup, "answer", score, 1.0, 1)


def inspection(rows: list[Row], without: list[Row] | None = None) -> Inspection:
    pairs = list(zip(rows, without or rows))
    return Inspection("run", "rows", "accuracy", {}, difference(), {}, pairs)


@pytest.mark.parametrize(
    ("warmup", "reference", "expected"),
    [
        ("Gus > Cid > Dan .", "Dan", "direct"),
        ("two DOGS", "Dogs bark", "direct"),
        ("a man walking", "He walked home", "similar"),
        ("the dog of the man", "the cat of a house", "neither"),  # what they share has no meaning of its own
        ("It is", "it is not", "direct"),  # nothing but stop words: these count
        ("catalogue", "cat", "neither"),  # a part of a word is none
        ("...", "Dan", "neither"),
        ("", "Dan", "empty"),
        (" \n", "Dan", "empty"),
        ("Dan", "", "neither"),
        ("赤い花", "花が咲く", "direct"),  # signs are words
    ],
)
def test_classes(warmup, reference, expected):
    assert class_of(warmup, reference) == expected


def test_stop_words_count_only_where_there_is_nothing_else():
    assert content_words("The man and the dog") == {"man", "dog"}
    assert content_words("the and") == {"the", "and"}
    assert content_words("?!") == set()


def test_the_most_frequent_come_first_with_their_mean_score():
    rows = [row("a", 1), row("b", 0), row("b", 1), row("", 0.5), row("b", 1), row("a", 0)]
    assert inspection(rows).common() == [("b", 3, pytest.approx(2 / 3)), ("a", 2, 0.5), ("", 1, 0.5)]
    assert [text for text, _, _ in inspection(rows).common(most=1)] == ["b"]
    assert inspection([]).common() == []


def test_every_row_is_in_one_class():
    rows = [row("reference", 1), row("", 0), row("references", 0), row("else", 1), row("my reference", 0)]
    found = inspection(rows).classes()
    assert found == {"direct": [rows[0], rows[4]], "similar": [rows[2]], "neither": [rows[3]], "empty": [rows[1]]}


def test_changed_rows_are_those_that_changed_most_first():
    """By 0, +0.5, -1, +0.75, -0.25, and by less than rounding."""
    scores = [(1, 1), (1, 0.5), (0, 1), (0.75, 0), (0.5, 0.75), (0.5, 0.5 + 1e-12)]
    after = [row("w", score, str(i)) for i, (score, _) in enumerate(scores)]
    without = [row("", score, str(i)) for i, (_, score) in enumerate(scores)]

    def numbers(sign: int) -> list[str]:
        pairs = inspection(after, without).changed(sign)
        assert all((first.prompt, first.warmup, second.warmup) == (second.prompt, "w", "") for first, second in pairs)
        return [first.prompt for first, _ in pairs]

    assert numbers(1) == ["3", "1"]
    assert numbers(-1) == ["2", "4"]


def test_equal_changes_keep_the_order_of_the_rows():
    after, without = ([row("w", score, str(i)) for i in range(4)] for score in (1, 0))
    assert [first.prompt for first, _ in inspection(after, without).changed(1)] == ["0", "1", "2", "3"]


def test_an_undefined_score_is_no_change():
    undefined = inspection([row("w", math.nan)], [row("", 0)])
    assert undefined.changed(1) == undefined.changed(-1) == []


def test_what_it_counts_is_what_the_rows_say(adapter, tmp_path):
    data = write_rows(tmp_path / "test.jsonl", puzzles(12))
    found = inspect_warmups(adapter, data, "logiqa", batch_size=5)
    loaded, questions = load_folder(adapter), logiqa(puzzles(12))
    predictor = Predictor(loaded.model, loaded.tokenizer, loaded.warmup_config)
    own = predictor.answer(questions, max_new_tokens=0)
    none = predictor.answer(questions, max_new_tokens=0, warmup_ids=[[] for _ in questions])
    right = [[p.choice == q.answer for p, q in zip(side, questions)] for side in (own, none)]
    assert found.scores["accuracy"] == (pytest.approx(sum(right[0]) / 12), pytest.approx(sum(right[1]) / 12))
    assert len(found.changed(1)) == sum(a and not b for a, b in zip(*right))
    assert len(found.changed(-1)) == sum(b and not a for a, b in zip(*right))
    assert sum(map(len, found.classes().values())) == len(found.rows) == 12
    assert sum(count for _, count, _ in found.common()) <= 12
    assert {row.warmup for _, row in found.rows} == {""}
    gain = sum(a.option_logps[q.answer] - b.option_logps[q.answer] for a, b, q in zip(own, none, questions)) / 12
    assert found.warmups["gain_over_none"] == pytest.approx(gain, abs=1e-3)


def test_given_rows_and_a_trainer(model_folder, tokenizer, lora, tmp_path):
    """A trainer's model answers as it is; the inspection prints, and writes where it is asked to."""
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    found = inspect_warmups(trainer, EXAMPLES, max_samples=3, batch_size=2)
    assert (found.folder, found.source, len(found.rows)) == (
        "WarmupSFTTrainer", "3 given rows, the first 3", 3,
    )  # fmt: skip
    assert "What the warmups say" in str(found)
    assert "Of 3 rows, " in str(found)
    assert found.report(tmp_path / "new") == tmp_path / "new" / "inspect.md"
    assert "3 given rows" in (tmp_path / "new" / "inspect.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_samples": 0}, "max_samples=0 cannot work"),
        ({"model": "nowhere"}, "nowhere does not exist"),
        ({"dataset": []}, "has no rows"),
        ({"max_warmup_length": 0}, "writes no warmups"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(adapter, monkeypatch, changes, words):
    monkeypatch.setattr("warmup_peft.evaluation.evaluate.load_folder", None)
    if "max_warmup_length" in changes:
        WarmupConfig(" | ", [1], changes.pop("max_warmup_length")).save(adapter)
    with pytest.raises(ValueError, match=words):
        inspect_warmups(**{"model": adapter, "dataset": EXAMPLES, **changes})
