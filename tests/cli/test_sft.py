"""`warmup-peft sft`: TRL's training with a recipe's settings, for its steps or for another run's time."""

from __future__ import annotations

import json

import pytest
import torch
from folders import train_argv
from safetensors.torch import load_file

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.cli.sft import seconds_of
from warmup_peft.inference.folder import TrainingRecord, WarmupConfig
from warmup_peft.training.build import build_sft_trainer
from warmup_peft.training.config import parse_training


@pytest.fixture
def argv(model_folder, puzzle_data, tmp_path):
    def build(**options):
        return ["sft", *train_argv(model_folder, puzzle_data, tmp_path / "sft", task="logiqa", **options)[1:]]

    return build


def steps_of(folder) -> int:
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def test_it_is_trls_training_and_answers_directly(argv, tmp_path, capsys):
    assert main(argv(max_steps=2, seed=3)) == 0
    folder = tmp_path / "sft"
    assert "Trained 2 steps without warmups" in capsys.readouterr().out
    assert WarmupConfig.load(folder).max_warmup_length == 0
    assert TrainingRecord.load(folder).settings["seed"] == 3
    trainer = build_sft_trainer(
        parse_training([*argv(max_steps=2, seed=3)[1:], "--output_dir", str(tmp_path / "own")])
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "own"))
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sft", "own")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_as_long_as_another_run(argv, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1.0}, {"train_runtime": 3.0}]}))
    assert main(argv(max_steps=1, as_long_as=other, logging_steps=1)) == 0
    assert steps_of(tmp_path / "sft") > 1  # whatever max_steps says
    assert seconds_of(tmp_path / "sft") == pytest.approx(3.0, abs=2.0)
    history = json.loads((tmp_path / "sft" / "trainer_state.json").read_text())["log_history"]
    rates = [log["learning_rate"] for log in history if "learning_rate" in log]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]


@pytest.mark.parametrize("text", [None, "", "[]", '{"log_history": [{"loss": 1.0}]}'])
def test_a_run_that_does_not_say_how_long_it_took_is_refused(argv, tmp_path, capsys, text):
    other = tmp_path / "other"
    other.mkdir()
    if text is not None:
        (other / "trainer_state.json").write_text(text)
    assert main(argv(as_long_as=other)) == BAD_INPUT
    assert "does not say how long it was trained" in capsys.readouterr().err
    assert not (tmp_path / "sft").exists()
