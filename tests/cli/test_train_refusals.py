"""`warmup-peft train` with bad input: one line, exit code 2, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import EXAMPLES
from folders import (
    puzzles,
    train_argv,
    tree,
    write_rows,
)
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from warmup_peft.cli.main import BAD_INPUT, main


@pytest.fixture
def refused(tmp_path, capsys, model_folder):
    """Train with these changes; gives the one line that is said, and sees that nothing is made."""

    def call(rows=None, **options) -> str:
        file = write_rows(tmp_path / "rows.jsonl", EXAMPLES) if rows is None else rows
        before = tree(tmp_path)
        argv = train_argv(model_folder, file, tmp_path / "run", **options)
        assert main(argv) == BAD_INPUT
        err = capsys.readouterr().err
        assert "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert last.startswith("warmup-peft: error: ")
        assert tree(tmp_path) == before
        assert not (tmp_path / "run").exists()
        return last.removeprefix("warmup-peft: error: ")

    return call


def test_missing_file(refused, tmp_path):
    assert "missing.jsonl does not exist" in refused(tmp_path / "missing.jsonl")


def test_cut_off_line(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    path.write_text(path.read_text()[:-10])
    assert f"{path}, line {len(EXAMPLES)} is no whole JSON value" in refused(path)


def test_missing_column(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "one?", "answer": "A"}])
    said = refused(path)
    assert "(columns answer, prompt)" in said
    assert "`prompt` and `completion`" in said


def test_later_row_without_a_completion(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "five?"}])
    assert refused(path) == "Row 5 of the train dataset has no `completion`. Fill it in or remove the row."


def test_rows_are_counted_as_in_the_file_where_some_are_held_out(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "five?"}, *EXAMPLES])
    assert refused(path, test_split_size=0.5) == "Row 5 has no `completion`. Fill it in or remove the row."
    rows = puzzles(8)
    rows[2]["answer"] = 9
    said = refused(write_rows(tmp_path / "rows.jsonl", rows), test_split_size=0.5, task="logiqa")
    assert said.startswith("Row 3 has answer=9.")


def test_column_of_mixed_kinds(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "2 + 3?", "completion": 5}])
    assert "rows.jsonl" in refused(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 4}, "Row 3 has answer=4. It is the index of the right option, 0 to 3."),
        ({"answer": -1}, "Row 3 has answer=-1."),
        ({"options": ["a", "b", "c"]}, "Row 3 has 3 options."),
        ({"options": None}, "Row 3 has no `options`."),
    ],
    ids=str,
)
def test_rows_that_are_not_logiqas(refused, tmp_path, change, said):
    rows = puzzles(4)
    rows[2] |= change
    assert refused(write_rows(tmp_path / "rows.jsonl", rows), task="logiqa").startswith(said)


def test_empty_file(refused, tmp_path):
    assert "is empty" in refused(write_rows(tmp_path / "rows.jsonl", []))


def test_rows_that_are_all_too_long(refused, tmp_path):
    long = write_rows(tmp_path / "rows.jsonl", [{"prompt": "x" * 40, "completion": "y"}] * 3)
    said = refused(long, max_length=20)
    assert "all 3 prompts fill max_length=20" in said
    assert "Set max_length higher" in said


def test_row_that_leaves_no_room_for_its_warmup(refused, tmp_path):
    long = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "x" * 500, "completion": "y" * 9}])
    assert "more than the model's context of 512" in refused(long, max_length="512")


def test_empty_prompt(refused, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "", "completion": "y"}])
    assert "has no prompt before its target" in refused(rows)


def copy_of_model(model_folder: str, folder: Path, ignore: str = "tokenizer*") -> Path:
    return Path(shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns(ignore)))


def test_model_without_tokenizer(refused, tmp_path, model_folder):
    model = copy_of_model(model_folder, tmp_path / "model")
    assert f"{model} gives no tokenizer" in refused(model_name_or_path=model)


def test_tokenizer_without_pad_and_end_token(refused, tmp_path, model_folder):
    model = copy_of_model(model_folder, tmp_path / "model")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "|": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(model)
    assert "has no eos_token" in refused(model_name_or_path=model)


def test_model_folder_that_is_not_there(refused, tmp_path):
    said = refused(model_name_or_path=tmp_path / "nowhere")
    assert "nowhere" in said
    assert "Save the model's tokenizer" not in said


def test_model_folder_without_weights(refused, tmp_path, model_folder):
    model = copy_of_model(model_folder, tmp_path / "model", ignore="*.safetensors")
    assert str(model) in refused(model_name_or_path=model)


def test_output_folder_below_a_file(tmp_path, capsys, model_folder):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    before = tree(tmp_path)
    assert main(train_argv(model_folder, rows, rows / "run")) == BAD_INPUT
    said = capsys.readouterr().err
    assert f"The output folder {rows / 'run'} cannot be written" in said
    assert "Choose another --output_dir" in said
    assert tree(tmp_path) == before


def test_output_folder_that_is_a_file(tmp_path, capsys, model_folder):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    assert main(train_argv(model_folder, rows, rows)) == BAD_INPUT
    assert "cannot be written" in capsys.readouterr().err


def test_anchor_without_adapter(refused):
    assert refused(use_peft="false", warmup_anchor=0.3).startswith("warmup_anchor=0.3 compares")


def test_missing_evaluation_split(refused, tmp_path):
    folder = write_rows(tmp_path / "data" / "train.jsonl", EXAMPLES).parent
    assert "has no file for the split test (it holds: train.jsonl)" in refused(folder, eval_strategy="epoch")


def test_the_bases_own_folder_is_no_output_folder(model_folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Q", "completion": " A"}\n')
    argv = ["train", "--model_name_or_path", model_folder, "--dataset_name", str(rows), "--output_dir", model_folder]
    assert main([*argv, "--bf16", "false"]) == 2
    assert "base model's own folder" in capsys.readouterr().err
