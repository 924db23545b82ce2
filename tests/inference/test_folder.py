"""Settings and record of an adapter's folder: they come back, and broken ones are named."""

from __future__ import annotations

import fnmatch
import json

import pytest
from folders import SEPARATOR, logits, relative_difference, warmup_config

from warmup_peft.inference.folder import (
    CARD_NAME,
    MAY_NAME_PLACES,
    PUSHED,
    RUN_FILES,
    SCORES,
    SETTINGS,
    TRAINING_RECORD_NAME,
    TRAINING_STATE,
    WARMUP_CONFIG_NAME,
    TrainingRecord,
    WarmupConfig,
    looks_like_a_path,
    looks_local,
)
from warmup_peft.inference.loading import load_folder


@pytest.fixture
def config(tokenizer) -> WarmupConfig:
    return warmup_config(tokenizer)


def test_config_comes_back_as_it_was_saved(config, tmp_path):
    assert not WarmupConfig.is_in(tmp_path)
    config.save(tmp_path)
    assert WarmupConfig.is_in(tmp_path)
    assert WarmupConfig.load(tmp_path) == config
    assert json.loads((tmp_path / WARMUP_CONFIG_NAME).read_text())["warmup_separator"] == SEPARATOR


def test_missing_config(tmp_path):
    with pytest.raises(ValueError, match=rf"has no {WARMUP_CONFIG_NAME}.*Name the output_dir"):
        WarmupConfig.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "", '{"warmup_separator": " | ", "warm', "[]", "null", '{"warmup_separator": " | "}', '{"unknown": 1}',
        '{"warmup_separator": " | ", "warmup_separator_ids": [1], "max_warmup_length": "8); import os; print("}',
        '{"warmup_separator": " | ", "warmup_separator_ids": ["os"], "max_warmup_length": 8}',
    ],
)  # fmt: skip
def test_broken_config(tmp_path, text):
    (tmp_path / WARMUP_CONFIG_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"{WARMUP_CONFIG_NAME} cannot be read \("):
        WarmupConfig.load(tmp_path)


@pytest.mark.parametrize("text", ['{"base_mod', "[]"])
def test_broken_training_record_is_named(adapter, text):
    (adapter / TRAINING_RECORD_NAME).write_text(text)
    with pytest.raises(ValueError, match=TRAINING_RECORD_NAME):
        load_folder(adapter)


def test_a_training_record_of_a_newer_version_still_loads(adapter):
    path = adapter / TRAINING_RECORD_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "unknown": 1}))
    assert load_folder(adapter).record is not None


def test_adapter_without_training_record_still_loads(adapter):
    expected = logits(load_folder(adapter).model)
    (adapter / TRAINING_RECORD_NAME).unlink()
    loaded = load_folder(adapter)
    assert loaded.record is None
    assert relative_difference(logits(loaded.model), expected) < 1e-6


def test_training_record_comes_back(tmp_path):
    record = TrainingRecord(
        "base", "abc", "bfloat16", {"load_in_4bit": True}, {"seed": 1}, {"task": None}, {"trl": "1"}
    )
    record.save(tmp_path)
    assert TrainingRecord.load(tmp_path) == record
    assert TrainingRecord.load(tmp_path / "nowhere") is None


# ---- Lists of files ----


def test_what_a_training_writes_of_its_own_is_replaced_merged_and_pushed():
    for name in SETTINGS:
        assert name in RUN_FILES
        assert name in PUSHED
        assert name in MAY_NAME_PLACES


def test_scores_go_with_their_weights_and_a_card_stays():
    assert set(SCORES) <= set(RUN_FILES) & set(PUSHED) & set(MAY_NAME_PLACES)
    assert not set(SCORES) & set(SETTINGS)
    assert CARD_NAME in PUSHED
    assert CARD_NAME not in RUN_FILES


def test_the_state_of_a_training_is_nobody_elses():
    assert not set(TRAINING_STATE) & set(PUSHED)
    assert all(not fnmatch.fnmatch(name, pattern) for name in TRAINING_STATE for pattern in PUSHED)


def test_only_configurations_are_searched_for_local_paths():
    """In a tokenizer's files, what looks like a path is a token."""
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in PUSHED) for name in MAY_NAME_PLACES)
    assert not {"tokenizer.json", "vocab.json", "merges.txt"} & set(MAY_NAME_PLACES)


@pytest.mark.parametrize(
    ("name", "is_path", "is_local"),
    [("gpt2", False, False), ("me/model", False, False), ("./model", True, True), ("~/model", True, True),
     ("/models/a", True, True), ("a/b/c", True, True), ("hf://datasets/a", True, True)],
)  # fmt: skip
def test_ids_of_the_hub_and_paths(name, is_path, is_local, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (looks_like_a_path(name), looks_local(name)) == (is_path, is_local)
    (tmp_path / "gpt2").mkdir()
    assert looks_local("gpt2")  # a folder of that name is meant
