"""Runs of `warmup-peft train` on puzzles, and what they wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from folders import (
    argv_of,
    logiqa_folder,
    train_argv,
    write_rows,
)
from safetensors.torch import load_file

from warmup_peft.cli.main import main

PROMPTS = ["Q: one?", "A longer question: two?", "x", "Q: what follows three?"]


@pytest.fixture(scope="module")
def puzzle_data(tmp_path_factory) -> Path:
    return logiqa_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder, puzzle_data) -> Path:
    """A run with two checkpoints; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = train_argv(model_folder, puzzle_data, folder, task="logiqa", save_strategy="steps", save_steps=1)
    assert main(argv) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def load_no_model(monkeypatch):
    def load(*_, **__):
        raise AssertionError("a model is loaded")

    for module in ("evaluation.evaluate", "cli.merge"):
        monkeypatch.setattr(f"warmup_peft.{module}.load_folder", load)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def answers_of(folder: Path, capsys, *flags: str) -> list[dict]:
    prompts = write_rows(folder.parent / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    capsys.readouterr()
    argv = argv_of("generate", adapter=folder, prompts_file=prompts, max_new_tokens=6, json="true")
    assert main([*argv, *flags]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
