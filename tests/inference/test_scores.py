"""Scores belong to the weights that they were measured with."""

from __future__ import annotations

import pytest

from warmup_peft.inference.folder import HARNESS_NAME, METRICS_NAME
from warmup_peft.inference.scores import load_scores, save_scores, scores_are_stale, weights_fingerprint

SCORES = {"adapter": {"accuracy": 0.5}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights of the first training")
    save_scores(tmp_path, METRICS_NAME, SCORES)
    return tmp_path


def test_scores_come_back_with_the_fingerprint_of_their_weights(folder):
    assert load_scores(folder, METRICS_NAME) == {**SCORES, "weights": weights_fingerprint(folder)}
    assert not scores_are_stale(folder, METRICS_NAME)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model-00002-of-00002.safetensors"])
def test_scores_of_other_weights_are_stale_and_not_loaded(folder, name):
    (folder / name).write_bytes(b"weights of the second training")
    assert scores_are_stale(folder, METRICS_NAME)
    assert load_scores(folder, METRICS_NAME) == {}


def test_files_beside_the_weights_do_not_matter(folder):
    (folder / "README.md").write_text("a card")
    assert not scores_are_stale(folder, METRICS_NAME)


@pytest.mark.parametrize("text", [None, "", "[1, 2]", '{"adapter": '])
def test_a_file_that_holds_no_scores_is_no_score(folder, text):
    if text is not None:
        (folder / HARNESS_NAME).write_text(text)
    assert load_scores(folder, HARNESS_NAME) == {}
    assert not scores_are_stale(folder, HARNESS_NAME)
