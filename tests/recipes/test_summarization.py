"""The summarization recipe's files: they parse, they are what their scripts make, they have the sizes 4 bit needs."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer
from worlds import ROOT, check_base, check_data, read_splits, run_script

from warmup_peft.evaluation.tasks import find_task, read_questions
from warmup_peft.training.config import parse_training

RECIPE = ROOT / "recipes" / "summarization"
TINY = RECIPE / "tiny"
TASK = find_task(str(RECIPE / "task.py"))
COLUMNS = {"document": "text", "summary": "title"}


def test_the_reports_are_what_their_script_makes(tmp_path):
    check_data(TINY, tmp_path)


def test_no_report_is_in_two_splits():
    splits = read_splits(TINY)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4000, "validation": 256, "test": 512}
    documents = [row["document"] for rows in splits.values() for row in rows]
    assert len(set(documents)) == len(documents)


def test_reports_are_short():
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    documents = [row["document"] for rows in read_splits(TINY).values() for row in rows]
    assert {document.count(".") for document in documents} == {4, 5}
    assert max(map(len, tokenizer(documents)["input_ids"])) < 100


def test_sizes():
    check_base(TINY / "base")


@pytest.mark.parametrize("name", ["tiny", "qlora"])
def test_profiles_go_through_the_real_parser(name):
    script, options, args, model = parse_training(["--config", str(RECIPE / f"{name}.yaml"), "--bf16", "false"])
    assert options.task == "recipes/summarization/task.py"
    assert script.dataset_test_split == "test"
    assert (args.num_warmups, args.max_warmup_length) == (4, 8)
    assert model.lora_r in (16, 64)


def test_rows_become_questions():
    row = {"document": " It rained. ", "summary": "Rain."}
    (question,) = TASK.read([row])
    assert (question.prompt, question.completion) == ("Document: It rained.\nSummary:", " Rain.")
    (question,) = read_questions(TASK, [{"text": "It rained.", "title": "Rain."}], COLUMNS)
    assert (question.prompt, question.completion) == ("Document: It rained.\nSummary:", " Rain.")


def test_a_bad_row_is_named():
    good = {"document": "It rained.", "summary": "Rain."}
    with pytest.raises(ValueError, match="Row 2 has no text in the column `summary`"):
        TASK.read([good, {"document": "It rained.", "summary": None}])
    with pytest.raises(ValueError, match="Row 1 has no text in the column `text`"):
        read_questions(TASK, [good], COLUMNS)


@pytest.mark.slow
def test_a_base_is_made_from_documents(tmp_path):
    sizes = ["--vocab_size", "320", "--hidden_size", "64", "--num_layers", "1", "--epochs", "1", "--dtype", "bfloat16"]
    rows = (TINY / "validation.jsonl").read_bytes()
    (tmp_path / "train.jsonl").write_bytes(rows)
    run_script(RECIPE / "make_base.py", "--data", str(tmp_path), "--output_dir", str(tmp_path / "base"), *sizes)
    check_base(tmp_path / "base")
