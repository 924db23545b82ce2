"""Going on with other options than before: what is refused, what is said, and what is finished."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from warmup_peft.inference.folder import TRAINER_STATE_NAME, TrainingRecord
from warmup_peft.training.resuming import check_resumed, settings_in, what_is_finished

RECORD = TrainingRecord(
    base_model="runs/base/",
    settings={
        "objective": "jensen",
        "lora_r": 16,
        "num_warmups": 4,
        "learning_rate": 1e-4,
        "warmup_separator": " || ",
    },
    data={"dataset_name": "data", "train_rows": 10},
)


@pytest.fixture
def checkpoint(tmp_path):
    RECORD.save(tmp_path)
    return tmp_path


def test_the_same_settings(checkpoint, tmp_path):
    assert check_resumed(checkpoint, settings_in(RECORD)) is None
    assert check_resumed(checkpoint, {}) is None  # nothing is known
    assert check_resumed(checkpoint, {**settings_in(RECORD), "warmup_separator": None}) is None
    assert check_resumed(checkpoint, {**settings_in(RECORD), "model_name_or_path": "/moved/to/base"}) is None
    assert check_resumed(tmp_path / "of-another-trainer", settings_in(RECORD)) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_name_or_path": "runs/other/"}, "model_name_or_path 'runs/base/' -> 'runs/other/'"),
        ({"objective": "warmup"}, r"objective 'jensen' -> 'warmup'. Set them back \(--objective jensen\)"),
        ({"lora_r": 8}, "lora_r 16 -> 8"),
        ({"lora_r": None}, "lora_r 16 -> None"),
        ({"learning_rate": 1e-3}, "learning_rate 0.0001 -> 0.001"),
        ({"warmup_separator": "|", "objective": "rlpr"}, "objective .*, warmup_separator"),
    ],
    ids=str,
)
def test_what_a_run_keeps(checkpoint, change, said):
    with pytest.raises(ValueError, match=f"cannot go on with other settings: .*{said}"):
        check_resumed(checkpoint, {**settings_in(RECORD), **change})


def test_what_may_change_is_said(checkpoint):
    said = check_resumed(checkpoint, {**settings_in(RECORD), "num_warmups": 8, "train_rows": 12})
    assert said == "The run goes on with other settings than before: num_warmups 4 -> 8, train_rows 10 -> 12."


@pytest.mark.parametrize(
    ("max_steps", "epochs", "option"),
    [(20, 3, "max_steps above 20"), (10, 3, "max_steps above 20"), (-1, 2, "num_train_epochs above 2"),
     (21, 1, None), (-1, 3, None)],
)  # fmt: skip
def test_a_run_that_is_finished(tmp_path, max_steps, epochs, option):
    args = SimpleNamespace(output_dir=str(tmp_path), max_steps=max_steps, num_train_epochs=epochs)
    assert what_is_finished(args) is None  # nothing is there
    (tmp_path / TRAINER_STATE_NAME).write_text(json.dumps({"global_step": 20, "epoch": 2.0}))
    said = what_is_finished(args)
    assert (
        said is None
        if option is None
        else f"is finished (20 steps) and stays as it is. To train it longer, raise --{option};" in said
    )
