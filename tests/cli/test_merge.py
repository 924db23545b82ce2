"""`warmup-peft merge`: what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses
import re

import pytest
from conftest import EXAMPLES
from folders import (
    argv_of,
    random_adapter,
    save_adapter,
    train_argv,
    tree,
    write_rows,
)
from trainings import PROMPTS, answers_of

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.evaluation import logiqa as logiqa_task
from warmup_peft.evaluation.logiqa import TASK
from warmup_peft.inference.folder import TrainingRecord


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [("adapter_model.safetensors", "cut", "adapter_model.safetensors cannot be read"),
     ("adapter_config.json", "{}", "names no base_model_name_or_path"),
     ("adapter_config.json", "{", "adapter_config.json cannot be read")],
)  # fmt: skip
def test_a_broken_adapter_is_not_merged(tmp_path, model_folder, tokenizer, lora, capsys, file, content, words):
    adapter = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)
    (adapter / file).write_text(content)
    capsys.readouterr()
    assert main(["merge", "--adapter", str(adapter), "--output_dir", str(tmp_path / "merged")]) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_4bit_from_training_to_merge(tmp_path, model_folder, puzzle_data, capsys):
    argv = train_argv(model_folder, puzzle_data, tmp_path / "run", task="logiqa", load_in_4bit="true", max_steps=1)
    assert main([*argv, "--bnb_4bit_quant_type", "nf4", "--use_bnb_nested_quant", "true"]) == 0
    assert TrainingRecord.load(tmp_path / "run").quantization_config["bnb_4bit_quant_type"] == "nf4"
    assert main(argv_of("merge", adapter=tmp_path / "run", output_dir=tmp_path / "merged", dtype="float32")) == 0
    assert answers_of(tmp_path / "run", capsys) == answers_of(tmp_path / "merged", capsys)


def test_merged_model_answers_like_the_adapter(run, tmp_path, capsys):
    assert main(argv_of("merge", adapter=run, output_dir=tmp_path / "merged")) == 0
    out = capsys.readouterr().out
    assert f"Merged into {tmp_path / 'merged'}" in out
    adapter, merged, change = re.search(r"adapter (.....), merged (.....) \((.*) points\)", out).groups()
    assert float(change.replace("\N{MINUS SIGN}", "-")) == pytest.approx(
        100 * (float(merged) - float(adapter)), abs=0.2
    )
    assert float(out.split("adapter's: ")[1].split()[0]) < 1e-5
    answers = answers_of(run, capsys)
    assert [row["prompt"] for row in answers] == PROMPTS
    assert len({(row["warmup"], row["answer"]) for row in answers}) > 1
    assert answers_of(tmp_path / "merged", capsys) == answers


def test_merging_into_a_taken_folder_is_refused(run, tmp_path, capsys):
    taken = write_rows(tmp_path / "taken" / "mine.jsonl", EXAMPLES).parent
    before = tree(taken)
    assert main(argv_of("merge", adapter=run, output_dir=taken)) == BAD_INPUT
    assert "is not empty" in capsys.readouterr().err
    assert tree(taken) == before


def test_a_merge_says_that_a_metric_is_unknown(run, tmp_path, capsys, load_no_model, monkeypatch):
    monkeypatch.setattr(logiqa_task, "TASK", dataclasses.replace(TASK, metrics=("blue",)))
    assert main(argv_of("merge", adapter=run, output_dir=tmp_path / "merged")) == 0
    assert "Scores were not compared: There is no metric 'blue'." in capsys.readouterr().out
