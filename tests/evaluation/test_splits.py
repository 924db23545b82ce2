"""Local data, as far as their names and first rows say: what is missing, and what nobody can read."""

from __future__ import annotations

import pytest
from folders import write_rows

from warmup_peft.evaluation.splits import check_columns, check_is_there, check_streams, columns_of, shows_boundary

ROW = {"prompt": "one?", "completion": "A"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [ROW])
    write_rows(tmp_path / "data" / "train.jsonl", [ROW])
    (tmp_path / "texts").mkdir()
    for name in ("train.de", "train.en"):
        (tmp_path / "texts" / name).write_text("x\n")


@pytest.mark.parametrize("name", ["rows.jsonl", "data", "texts", "texts/train.de,texts/train.en", "me/on-the-hub"])
def test_what_is_there_or_may_be(name):
    check_is_there(name, "train")


@pytest.mark.parametrize(
    ("name", "split", "said"),
    [
        ("row.jsonl", "train", r"row.jsonl does not exist. .*Did you mean rows.jsonl\?"),
        ("./nowhere", "train", "does not exist"),
        ("data", "test", r"no file for the split test \(it holds: train.jsonl\)"),
        ("texts", "test", "no file for the split test"),
        ("texts/train.de,texts/train.fr", "train", "The text texts/train.fr does not exist"),
    ],
)
def test_what_is_not_there(name, split, said):
    with pytest.raises(ValueError, match=said):
        check_is_there(name, split)


@pytest.mark.parametrize(
    ("name", "columns"),
    [("rows.jsonl", ["prompt", "completion"]), ("data", ["prompt", "completion"]), ("texts", []), ("me/hub", [])],
)
def test_columns_that_a_first_line_shows(name, columns):
    assert columns_of(name, "train") == columns


@pytest.mark.parametrize("text", ["", "[\n", '[{"a": 1}]\n', '{"a": ', "3\n"])
def test_columns_that_only_the_whole_file_shows(tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    assert columns_of("odd.json", "train") == []


def test_rows_without_a_boundary():
    assert shows_boundary(["messages"])
    assert shows_boundary(["input_ids", "labels"])
    with pytest.raises(ValueError, match=r"columns a, q\).* `messages`; or name a task .* with --task"):
        check_columns("rows.jsonl", ["q", "a"])


def test_local_data_are_no_stream():
    check_streams("me/on-the-hub")
    with pytest.raises(ValueError, match="dataset_streaming needs the id"):
        check_streams("rows.jsonl")
