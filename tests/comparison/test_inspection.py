"""`inspect` on a tiny run: what it counts is what the rows say."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import puzzles, write_rows

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.comparison.inspection import inspect
from warmup_peft.evaluation.logiqa import logiqa
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.inference.loading import load_folder
from warmup_peft.settings.arguments import InspectArguments


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder) -> Path:
    data = tmp_path_factory.mktemp("data")
    for start, split in enumerate(("train", "test")):
        write_rows(data / f"{split}.jsonl", puzzles(12, start=12 * start))
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = (
        f"train --model_name_or_path {model_folder} --dataset_name {data} --task logiqa --output_dir {folder} "
        "--use_peft true --lora_r 4 --lora_target_modules all-linear --lora_dropout 0 --dtype float32 --bf16 false "
        "--gradient_checkpointing false --report_to none --max_steps 3 --per_device_train_batch_size 4 "
        "--learning_rate 0.05 --num_warmups 2 --max_warmup_length 4 --save_strategy no"
    )
    assert main(argv.split()) == 0
    return folder


def test_what_it_counts_is_what_the_rows_say(run):
    found = inspect(InspectArguments(str(run), batch_size=5))
    loaded, questions = load_folder(run), logiqa(puzzles(12, start=12))
    predictor = Predictor(loaded.model, loaded.tokenizer, loaded.warmup_config)
    own = predictor.answer(questions, max_new_tokens=0)
    none = predictor.answer(questions, max_new_tokens=0, warmup_ids=[[] for _ in questions])
    right = [[p.choice == q.answer for p, q in zip(side, questions)] for side in (own, none)]
    assert found.metrics["accuracy"] == (pytest.approx(sum(right[0]) / 12), pytest.approx(sum(right[1]) / 12))
    assert found.num_better == sum(a and not b for a, b in zip(*right))
    assert found.num_worse == sum(b and not a for a, b in zip(*right))
    assert sum(found.classes.values()) == pytest.approx(1.0)
    assert sum(each.count for each in found.common) <= found.num_rows == 12
    gain = sum(a.option_logps[q.answer] - b.option_logps[q.answer] for a, b, q in zip(own, none, questions)) / 12
    assert found.figures["gain_over_none"] == pytest.approx(gain, abs=1e-3)


def test_the_command_writes_both_reports(run, capsys):
    assert main(["inspect", str(run), "--max_samples", "6"]) == 0
    said = capsys.readouterr().out
    assert "What the warmups say" in said
    assert (run / "inspect.html").is_file()
    assert "6" in (run / "inspect.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["nowhere"], ["--max_samples", "3"], []])
def test_a_folder_that_is_no_run(arguments, capsys):
    assert main(["inspect", *arguments]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("warmup-peft: error: ")
