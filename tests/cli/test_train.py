"""`warmup-peft train` end to end on a tiny random model: what it writes, keeps, and goes on with."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import EXAMPLES
from datasets import Dataset
from folders import (
    SETTINGS,
    argv_of,
    puzzles,
    random_adapter,
    train_argv,
    tree,
    write_rows,
)
from trainings import same_weights, weights

from warmup_peft import WarmupSFTTrainer
from warmup_peft.cli.main import BAD_INPUT, INTERRUPTED, main
from warmup_peft.cli.train import what_is_trained, what_was_trained
from warmup_peft.export.model_card import is_edited
from warmup_peft.inference.folder import CARD_NAME, RUN_FILES, SCORES, TrainingRecord, WarmupConfig

TRAINED = {CARD_NAME, "tokenizer.json", "tokenizer_config.json", *RUN_FILES} - {*SCORES}


def test_training_leaves_a_whole_folder(finished, model_folder, puzzle_data, tokenizer):
    assert {name for name in tree(finished) if not name.startswith("checkpoint-")} == TRAINED
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights(finished).items())
    end_token_ids = [1, *range(200, 270)]  # the base's own and the tokenizer's
    assert WarmupConfig.load(finished) == WarmupConfig(" || ", tokenizer(" || ")["input_ids"], 4, end_token_ids)
    record = TrainingRecord.load(finished)
    assert (record.base_model, record.dtype, record.quantization_config) == (model_folder, "float32", None)
    assert record.data["dataset_name"] == str(puzzle_data)
    assert (record.data["task"], record.data["train_rows"]) == ("logiqa", 8)
    assert (record.settings["num_warmups"], record.settings["steps"], record.settings["lora_r"]) == (2, 2, 4)
    state = json.loads((finished / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert {"loss", "mean_token_accuracy", "warmups/mean_length"} <= set(state["log_history"][0])
    card = (finished / "README.md").read_text()
    assert "# run\n" in card
    assert not is_edited(card)


def test_every_checkpoint_is_a_whole_adapter(finished):
    for step in (1, 2):
        checkpoint = finished / f"checkpoint-{step}"
        assert {"warmup_config.json", "warmup_training.json", "tokenizer.json"} <= set(tree(checkpoint))
        assert TrainingRecord.load(checkpoint).settings["steps"] == step
        assert TrainingRecord.load(checkpoint).data == TrainingRecord.load(finished).data
    assert same_weights(finished / "checkpoint-2", finished)
    assert not same_weights(finished / "checkpoint-1", finished)


def test_prompt_completion_files_and_a_recipe(tmp_path, model_folder, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in SETTINGS.items()).replace(" no\n", ' "no"\n'))
    argv = argv_of(
        "train", config=recipe, model_name_or_path=model_folder, dataset_name=rows, output_dir=tmp_path / "run"
    )
    assert main([*argv, "--max_steps", "1"]) == 0
    out = capsys.readouterr().out
    assert "step     1  loss" in out
    assert f"Trained 1 steps. The adapter lies in {tmp_path / 'run'}" in out
    assert set(tree(tmp_path / "run")) == TRAINED
    assert TrainingRecord.load(tmp_path / "run").data["train_rows"] == len(EXAMPLES)


def test_a_share_of_a_single_file_is_held_out_and_scored(tmp_path, model_folder, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", puzzles(8))
    argv = train_argv(model_folder, rows, tmp_path / "run", task="logiqa", test_split_size=0.25)
    assert main(argv) == 0
    assert TrainingRecord.load(tmp_path / "run").data["train_rows"] == 6
    assert main(argv_of("evaluate", adapter=tmp_path / "run", max_new_tokens=0)) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["warmup"]["n"] == 2


def test_rows_are_streamed_from_the_hub(tmp_path, model_folder, monkeypatch):
    def load_dataset(name, config, split, streaming=False):
        return Dataset.from_list(EXAMPLES).to_iterable_dataset() if streaming else None

    monkeypatch.setattr("warmup_peft.evaluation.data.load_dataset", load_dataset)
    argv = train_argv(model_folder, "some/data", tmp_path / "run", dataset_streaming="true", eval_strategy="steps")
    assert main(argv) == 0
    record = TrainingRecord.load(tmp_path / "run")
    assert (record.data["dataset_name"], record.data["train_rows"]) == ("some/data", None)
    assert set(tree(tmp_path / "run")) == TRAINED


def test_a_run_is_not_written_over(run, model_folder, puzzle_data, capsys):
    before = tree(run)
    assert main(train_argv(model_folder, puzzle_data, run, task="logiqa")) == BAD_INPUT
    assert "holds another run" in capsys.readouterr().err
    assert tree(run) == before


def test_overwriting_replaces_only_the_runs_own_files(run, model_folder, puzzle_data):
    (run / "notes.txt").write_text("mine")
    (run / "figures").mkdir()
    (run / "figures" / "loss.png").write_bytes(b"png")
    (run / "metrics.json").write_text('{"warmup": {"accuracy": 0.9, "macro_f1": 0.9, "n": 1}}')
    (run / "README.md").write_text("# A person's card\n")
    old = weights(run)
    argv = train_argv(model_folder, puzzle_data, run, task="logiqa", max_steps=1, seed=1)
    assert main([*argv, "--overwrite_output_dir"]) == 0
    assert set(tree(run)) == TRAINED | {"notes.txt", "figures/loss.png"}
    assert (run / "notes.txt").read_text() == "mine"
    assert (run / "README.md").read_text() == "# A person's card\n"
    assert any(not torch.equal(tensor, old[name]) for name, tensor in weights(run).items())


def test_overwriting_waits_until_the_new_run_can_start(run, model_folder, puzzle_data):
    """A mistake in the data must not cost the old run."""
    before = tree(run)
    bad = train_argv(model_folder, puzzle_data, run, task="logiqa", max_length=4)
    assert main([*bad, "--overwrite_output_dir"]) == BAD_INPUT
    assert tree(run) == before


@pytest.mark.parametrize("name", ["checkpoint-1", "last"])
def test_resuming_ends_where_an_unbroken_run_ends(finished, run, model_folder, puzzle_data, name):
    shutil.rmtree(run / "checkpoint-2")
    for file in TRAINED:
        (run / file).unlink()
    checkpoint = name if name == "last" else run / name
    argv = train_argv(model_folder, puzzle_data, run, task="logiqa", save_strategy="steps", save_steps=1)
    assert main([*argv, "--resume_from_checkpoint", str(checkpoint)]) == 0
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 2
    assert same_weights(run, finished)


def interrupted_here(argv, number, capsys) -> tuple[int, str, str]:
    """Trains in this process, which gets the signal in its second step: exit code and output."""
    steps, training_step = itertools.count(1), WarmupSFTTrainer.training_step

    def step(*args, **kwargs):
        if next(steps) == 2:
            signal.raise_signal(number)
        return training_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WarmupSFTTrainer, "training_step", step)
        code = main(argv)
    return code, *capsys.readouterr()


def interrupted_elsewhere(argv, number, capsys) -> tuple[int, str, str]:
    """The same of a process of its own."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "warmup_peft.cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        seen = next((line for line in process.stdout if line.startswith("step ")), None)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert seen is not None, err
    return process.returncode, out, err


PROCESS = pytest.param(interrupted_elsewhere, marks=pytest.mark.slow)


@pytest.mark.parametrize("interrupted", [interrupted_here, PROCESS])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_a_checkpoint_and_says_how_to_go_on(
    tmp_path, model_folder, puzzle_data, interrupted, number, capsys
):
    folder = tmp_path / "run"
    argv = train_argv(model_folder, puzzle_data, folder, task="logiqa", max_steps=100000)
    code, out, err = interrupted(argv, number, capsys)
    assert code == INTERRUPTED
    assert "Traceback" not in err
    assert "warmup-peft: interrupted." in err
    (checkpoint,) = folder.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"Stopped at step {step}. Go on with: --resume_from_checkpoint {checkpoint}" in out
    go_on = train_argv(model_folder, puzzle_data, folder, task="logiqa", max_steps=step + 1)
    assert main([*go_on, "--resume_from_checkpoint", str(checkpoint)]) == 0
    assert f"Going on from {checkpoint}." in capsys.readouterr().out
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step + 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"eval_strategy": "steps"},
            "eval_strategy=steps would evaluate on the training rows: .*--test_split_size 0.1",
        ),
        ({"dataset_streaming": "true"}, "dataset_streaming needs the id of a data set on the Hub"),
        ({"dataset_streaming": "true", "max_steps": -1}, "A stream does not say how many rows it has. Set max_steps"),
    ],
)
def test_data_that_cannot_be_had_as_asked(tmp_path, model_folder, capsys, options, words):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    assert main(train_argv(model_folder, rows, tmp_path / "run", **options)) == BAD_INPUT
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_share_of_a_single_file_may_be_evaluated_on(tmp_path, model_folder):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    argv = train_argv(model_folder, rows, tmp_path / "run", eval_strategy="steps", eval_steps=2, test_split_size=0.5)
    assert main(argv) == 0
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in entry for entry in history)


def test_only_a_runs_own_checkpoints_are_removed(tmp_path):
    from warmup_peft.cli.train import remove_run

    for name in ("checkpoint-10", "checkpoint-best-by-me"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("keep")
    remove_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best-by-me", "checkpoint-notes.txt"]


@pytest.mark.parametrize(("billions", "is_asked"), [(0.02, False), (1.2, True)])
def test_a_large_model_that_is_trained_as_a_whole(billions, is_asked):
    with torch.device("meta"):
        model = torch.nn.Linear(1000, int(billions * 1e6), bias=False)
    said = what_is_trained(model)
    assert (said is not None) == is_asked
    assert said is None or said.startswith(
        "All 1.2 billion weights are trained, since use_peft is not set; AdamW then"
    )
    assert what_was_trained(model) == "The whole model (use_peft was not set)"


def test_an_adapter_is_no_whole_model(lora, model_folder, monkeypatch):
    monkeypatch.setattr("warmup_peft.cli.train.LARGE_MODEL", 1)
    model = random_adapter(model_folder, lora)
    assert what_is_trained(model) is None
    assert what_was_trained(model) == "The adapter"
