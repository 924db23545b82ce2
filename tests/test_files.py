"""Writing a file that other commands read: where it cannot be finished, the old one is there, and nothing else."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from folders import random_adapter, save_adapter, tree

from warmup_peft.export.custom_generate import export_decoding
from warmup_peft.export.model_card import write_model_card
from warmup_peft.files import (
    check_writable,
    first_line,
    near_path,
    read_json,
    write_json,
    write_text,
    write_together,
    write_whole,
)
from warmup_peft.inference.folder import HARNESS_NAME, METRICS_NAME, TrainingRecord, WarmupConfig
from warmup_peft.inference.scores import save_scores


@contextmanager
def files_end_after(num_bytes: int):
    """As on a full disk: a file takes so many bytes, then writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def adapter(tmp_path, model_folder, tokenizer, lora) -> Path:
    folder = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)
    for write in WRITERS.values():
        write(folder, "old")
    return folder


def change_config(folder: Path, text: str) -> None:
    config = WarmupConfig.load(folder)
    WarmupConfig(text, config.warmup_separator_ids, config.max_warmup_length).save(folder)


def export(folder: Path, text: str) -> None:
    config = json.loads((folder / "warmup_config.json").read_text())
    config["end_token_ids"] = [len(text)] * len(text)
    (folder / "warmup_config.json").write_text(json.dumps(config))
    export_decoding(folder)


WRITERS = {
    "warmup_config.json": change_config,
    "warmup_training.json": lambda folder, text: TrainingRecord(base_model=text).save(folder),
    "custom_generate/generate.py": export,
    "README.md": lambda folder, text: write_model_card(folder, title=text),
    METRICS_NAME: lambda folder, text: save_scores(folder, METRICS_NAME, {"x": text}),
    HARNESS_NAME: lambda folder, text: save_scores(folder, HARNESS_NAME, {"x": text}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_be_finished_stays_as_it_was(adapter, name):
    before = tree(adapter)
    if name == "custom_generate/generate.py":
        (adapter / "warmup_config.json").unlink()
        WarmupConfig("new", [1], 3).save(adapter)
        before["warmup_config.json"] = (adapter / "warmup_config.json").read_bytes()
        write = export_decoding
    else:
        write = lambda folder: WRITERS[name](folder, "new, and longer than it was")  # noqa: E731
    with files_end_after(20), pytest.raises(OSError, match="File too large"):
        write(adapter)
    assert tree(adapter) == before
    write(adapter)
    after = tree(adapter)
    assert after.pop(name) != before.pop(name)
    assert after == before


def test_several_files_are_replaced_together(tmp_path):
    write_together({"a": "old", "b": "old"}, tmp_path)
    with files_end_after(20), pytest.raises(OSError, match="File too large"):
        write_together({"a": "new", "b": "new" * 100}, tmp_path)
    assert tree(tmp_path) == {"a": b"old", "b": b"old"}


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def write(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "new" / "file", write)
    assert tree(tmp_path) == {}
    write_text(tmp_path / "new" / "file", "whole, \N{SNOWMAN} and \ud800")
    assert tree(tmp_path) == {"new/file": "whole, \N{SNOWMAN} and ?".encode()}


def test_json_comes_back_with_every_character(tmp_path):
    value = {"text": "caf\u00e9 \N{SNOWMAN}", "numbers": [1, 2.5, None, True]}
    write_json(tmp_path / "new" / "file.json", value)
    assert read_json(tmp_path / "new" / "file.json") == value


@pytest.mark.parametrize("content", [b"{", b"", b'{"a": "\xe9"}'])
def test_what_is_no_json_is_a_value_error(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "file.json")


def test_a_folder_that_cannot_be_written_is_said_with_the_option_that_chose_it(tmp_path):
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "new" / "folder", "--output_dir")
    assert tree(tmp_path) == {"file": b"x"}
    with pytest.raises(ValueError, match=r"file/run cannot be written \(.*\)\. Choose another --here\.$"):
        check_writable(tmp_path / "file" / "run", "--here")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (OSError("\n one \n"), "one"),
        (KeyError(), "KeyError"),
        (ValueError(" "), "ValueError"),
    ],
)
def test_first_line_of_an_error(error, line):
    assert first_line(error) == line


def test_a_file_that_is_called_nearly_so(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    assert near_path(str(tmp_path / "row.jsonl")) == f" Did you mean {tmp_path / 'rows.jsonl'}?"
    assert near_path(str(tmp_path / "rows")) == f" Did you mean {tmp_path / 'rows.jsonl'}?"
    assert near_path(str(tmp_path / "else")) == near_path(str(tmp_path / "no" / "rows.jsonl")) == ""
