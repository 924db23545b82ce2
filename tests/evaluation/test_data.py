"""From a name to rows: files, folders and Hub ids, and what is said when they cannot be had."""

from __future__ import annotations

import gzip
import json
import re

import pytest
from datasets import Dataset
from folders import write_rows

from warmup_peft.evaluation.data import load_from_hub, load_split
from warmup_peft.evaluation.splits import MissingSplitError, has_split, read_json

ROWS = [{"prompt": "one?", "completion": "A"}, {"prompt": "two, or é?", "completion": "B"}]
NUMBERED = [{"number": i} for i in range(10)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_json_list(path, rows):
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_csv(path, rows):
    lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet(path, rows):
    Dataset.from_list(rows).to_parquet(str(path))


WRITERS = {
    "rows.jsonl": write_rows,
    "rows.txt": write_rows,
    "lines.json": write_rows,
    "list.json": write_json_list,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
}


# ---- Files ----


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    assert load_split(str(tmp_path / name), "train").to_list() == ROWS


def test_blank_lines_and_unusual_line_separators_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a\u2028b"}, {"prompt": "c\x85d"}]
    path.write_text("\n" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert list(read_json(path)) == rows


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.csv", "folder/missing.parquet", "missing.txt"])
def test_missing_file(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"^The data file or folder {re.escape(str(path))} does not exist.*Check"):
        load_split(str(path), "train")


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist\."):
        load_split(str(tmp_path / "nowhere"), "train")


def test_cut_json_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "one?"}\n\n{"prompt": "two?"}\n{"prompt": "thr', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line 4 is no whole JSON value.*Fix or remove"):
        load_split(str(path), "train")


def test_cut_json_list_names_the_line_where_it_is_cut(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"prompt": "one?"},\n  {"prompt": "two?"},\n  {"prom', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}, line 4 is no whole JSON value"):
        load_split(str(path), "train")


def test_json_that_is_no_object(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "one?"}\n"two?"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 is no JSON object. Write one row"):
        load_split(str(path), "train")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "list.json"])
def test_file_without_rows(tmp_path, name):
    (tmp_path / name).write_text("prompt,completion\n" if name == "rows.csv" else "[]" if "list" in name else "")
    with pytest.raises(ValueError, match=rf"^The train split of .*{name} is empty. Give it at least one row"):
        load_split(str(tmp_path / name), "train")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_file_that_is_something_else(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if name == "rows.csv" else b"no parquet")
    with pytest.raises(ValueError, match=f"{name} cannot be read as {name.split('.')[1]}: "):
        load_split(str(tmp_path / name), "train")


def test_column_of_mixed_kinds_is_a_value_error_that_names_the_file(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "one?"}, {"prompt": 2}])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_split(str(path), "train")


# ---- A share of a single file ----


def test_split_of_a_single_file_is_disjoint_whole_and_repeatable(tmp_path):
    name = str(write_rows(tmp_path / "rows.jsonl", NUMBERED))
    train = load_split(name, "train", test_split_size=0.3)["number"]
    held_out = load_split(name, "test", test_split_size=0.3)["number"]
    assert (len(train), len(held_out)) == (7, 3)
    assert sorted([*train, *held_out]) == list(range(10))
    assert list(train) == list(load_split(name, "train", test_split_size=0.3)["number"])
    assert list(held_out) == list(load_split(name, "validation", test_split_size=0.3)["number"])


def test_without_a_share_every_split_of_a_file_is_the_file(tmp_path):
    name = str(write_rows(tmp_path / "rows.jsonl", NUMBERED))
    assert list(load_split(name, "train")["number"]) == list(load_split(name, "test")["number"]) == list(range(10))


@pytest.mark.parametrize("share", [1.5, -0.5])
def test_impossible_share_is_refused_by_its_name(tmp_path, share):
    name = str(write_rows(tmp_path / "rows.jsonl", NUMBERED))
    with pytest.raises(ValueError, match="test_split_size"):
        load_split(name, "train", test_split_size=share)


# ---- Folders ----


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.jsonl", "train"),
        ("dev.txt", "validation"),
        ("val.json", "validation"),
        ("valid.csv", "validation"),
        ("validation.parquet", "validation"),
        ("test.jsonl", "test"),
        ("odd.jsonl", "odd"),
    ],
)
def test_folder_and_its_aliases(tmp_path, file, split):
    writer = {".csv": write_csv, ".parquet": write_parquet}.get((tmp_path / file).suffix, write_rows)
    writer(tmp_path / file, ROWS)
    write_rows(tmp_path / "another.jsonl", [{"prompt": "not this one", "completion": ""}])
    assert load_split(str(tmp_path), split).to_list() == ROWS
    assert has_split(str(tmp_path), split)


def test_share_does_not_cut_a_folders_split(tmp_path):
    write_rows(tmp_path / "train.jsonl", NUMBERED)
    assert len(load_split(str(tmp_path), "train", test_split_size=0.5)) == 10


def test_missing_split_lists_what_is_there(tmp_path):
    write_rows(tmp_path / "train.jsonl", ROWS)
    write_rows(tmp_path / "dev.jsonl", ROWS)
    (tmp_path / "notes.md").write_text("no data")
    assert not has_split(str(tmp_path), "test")
    with pytest.raises(ValueError, match=r"has no file for the split test \(it holds: dev.jsonl, train.jsonl\)"):
        load_split(str(tmp_path), "test")


def test_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match=r"it holds: no data file\).*train\.jsonl"):
        load_split(str(tmp_path), "train")


def test_two_files_for_one_split(tmp_path):
    write_rows(tmp_path / "dev.jsonl", ROWS)
    write_rows(tmp_path / "validation.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"more than one file for the split validation.*dev.jsonl, validation.jsonl"):
        load_split(str(tmp_path), "validation")


# ---- The Hub ----


def failing(error):
    def call(*_, **__):
        raise error

    return call


def test_hub_id_without_network(monkeypatch):
    monkeypatch.setattr("warmup_peft.evaluation.data.load_dataset", failing(ConnectionError("no route\nto host")))
    with pytest.raises(
        ValueError, match=r"^The data set some/data is no local file.*\(no route\)\. Without a network"
    ):
        load_split("some/data", "train")


def test_hub_id_that_is_a_script(monkeypatch):
    error = RuntimeError("Dataset scripts are no longer supported, but found data.py")
    monkeypatch.setattr("warmup_peft.evaluation.data.load_dataset", failing(error))
    with pytest.raises(ValueError, match=r"loading script.*find a copy in JSON") as refusal:
        load_split("some/data", "train")
    assert "Without a network" not in str(refusal.value)


def test_hub_id_is_asked_for_its_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(*positional, **keywords):
        asked.append((positional, keywords))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("warmup_peft.evaluation.data.load_dataset", load_dataset)
    assert load_split("some/data", "dev", config="small").to_list() == ROWS
    assert asked == [(("some/data", "small"), {"split": "dev", "streaming": False})]
    assert has_split("some/data", "dev")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_that_a_data_set_lacks_is_known_by_its_error(tmp_path, streaming):
    """The words are those of `datasets` itself, of a data set that it builds here."""
    write_rows(tmp_path / "train.jsonl", ROWS)
    arguments = (str(tmp_path), "dev", None, streaming)
    with pytest.raises(MissingSplitError, match=r"has no split dev \((Unknown|Bad) split.*train"):
        load_from_hub(*arguments)


def test_folder_on_the_hub(monkeypatch, tmp_path):
    write_rows(tmp_path / "logiqa" / "DATA" / "dev.txt", ROWS)
    asked = []

    def snapshot_download(repo, **keywords):
        asked.append((repo, keywords))
        return str(tmp_path)

    monkeypatch.setattr("warmup_peft.evaluation.data.snapshot_download", snapshot_download)
    assert load_split("hf://datasets/user/repo/logiqa/DATA", "validation").to_list() == ROWS
    assert asked == [("user/repo", {"repo_type": "dataset", "allow_patterns": "logiqa/DATA/*"})]


def test_folder_on_the_hub_without_network(monkeypatch):
    monkeypatch.setattr("warmup_peft.evaluation.data.snapshot_download", failing(ConnectionError("offline")))
    with pytest.raises(ValueError, match=r"^hf://datasets/user/repo/x cannot be downloaded \(offline\)\. Without"):
        load_split("hf://datasets/user/repo/x", "train")


# ---- Line-aligned texts ----


def write_texts(folder, **texts: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_aligned_texts_of_a_folder(tmp_path):
    write_texts(tmp_path, train_de="ein Hund\nzwei\n", train_en_gz="a dog\ntwo", val_de="drei\n", val_en="three\n")
    assert load_split(str(tmp_path), "train").to_list() == [
        {"de": "ein Hund", "en": "a dog"},
        {"de": "zwei", "en": "two"},
    ]
    assert load_split(str(tmp_path), "validation").to_list() == [{"de": "drei", "en": "three"}]
    assert has_split(str(tmp_path), "validation")
    assert not has_split(str(tmp_path), "test")


def test_two_texts_by_name_are_one_split_that_may_be_divided(tmp_path):
    write_texts(tmp_path, a_de="\n".join(map(str, range(20))), b_en="\n".join(map(str, range(100, 120))))
    name = f"{tmp_path}/a.de, {tmp_path}/b.en"
    parts = {split: load_split(name, split, test_split_size=0.25).to_list() for split in ("train", "test")}
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 15, "test": 5}
    for row in (*parts["train"], *parts["test"]):
        assert int(row["en"]) == int(row["de"]) + 100


def test_texts_of_different_lengths_are_refused_with_both(tmp_path):
    write_texts(tmp_path, train_de="a\nb\n", train_en="a\n")
    with pytest.raises(ValueError, match=r"train\.de has 2, train\.en has 1 lines"):
        load_split(str(tmp_path), "train")


@pytest.mark.parametrize(("name", "words"), [("a.de,c.en", "does not exist"), ("a.de,b.de", "no column of its own")])
def test_texts_that_cannot_be_put_together(tmp_path, name, words):
    write_texts(tmp_path, a_de="x", b_de="y")
    with pytest.raises(ValueError, match=words):
        load_split(",".join(f"{tmp_path}/{part}" for part in name.split(",")), "train")


def test_a_text_that_was_cut_off(tmp_path):
    write_texts(tmp_path, train_en="a\n")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"some longer text\n" * 50)[:40])
    with pytest.raises(ValueError, match=r"train\.de\.gz cannot be read as text"):
        load_split(str(tmp_path), "train")


@pytest.mark.parametrize("name", ["json", "pandas", "text"])
def test_a_formats_name_does_not_read_the_current_folder(tmp_path, monkeypatch, name):
    """An adapter's folder may name it, and pandas reads pickles."""
    write_rows(tmp_path / "train.json", [{"a": 1}])
    (tmp_path / "train.txt").write_text("a line")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{name} is a format that `datasets` reads, and no data set"):
        load_split(name, "train")
