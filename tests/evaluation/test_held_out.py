"""What is to be scored: rows, task and warmups, from options and a training's record."""

from __future__ import annotations

import dataclasses

import pytest
from folders import write_rows

from warmup_peft.evaluation.held_out import HeldOut, check_warmups
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.settings.arguments import EvaluateArguments

CONFIG = WarmupConfig(" || ", [1], 8)


@pytest.fixture
def data(tmp_path):
    write_rows(tmp_path / "dev.jsonl", [{"prompt": "a", "completion": "b"}])
    return {"dataset_name": str(tmp_path), "task": "logiqa"}


def test_rows_of_the_training_by_default(data):
    found = HeldOut.of(EvaluateArguments("run"), data)
    assert dataclasses.astuple(found) == (data["dataset_name"], "validation", "test", "logiqa", 0.0, True)
    assert HeldOut.of(EvaluateArguments("run", task="prompt_completion"), data).task == "prompt_completion"


@pytest.mark.parametrize(
    ("options", "record", "said"),
    [
        ({}, None, "--dataset_name is not given"),
        ({"dataset_name": "./nowhere"}, None, "nowhere does not exist"),
        ({"dataset_test_split": "train"}, {"dataset_name": "./nowhere"}, "nowhere does not exist"),
        ({}, {"task": "mine.py"}, "a Python file that only the adapter's folder names"),
    ],
)
def test_rows_that_cannot_be_scored(data, options, record, said):
    with pytest.raises(ValueError, match=said):
        HeldOut.of(EvaluateArguments("run", **options), {} if record is None else {**data, **record})


@pytest.mark.parametrize(
    ("warmups", "said"),
    [
        ("own,shufled", "'shufled'. Did you mean 'shuffled'"),
        ("xyz", "Choose from own, plain"),
        ("plain", "one plain call"),
    ],
)
def test_what_cannot_stand_in_a_warmups_place(warmups, said):
    with pytest.raises(ValueError, match=said):
        check_warmups(EvaluateArguments("run", warmups=warmups), CONFIG, None)


def test_sft_that_writes_warmups():
    with pytest.raises(ValueError, match=r"sft=x answers after a warmup"):
        check_warmups(EvaluateArguments("run", sft="x"), CONFIG, CONFIG)
    check_warmups(EvaluateArguments("run", sft="x"), CONFIG, WarmupConfig("", [], 0))
