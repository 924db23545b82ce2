"""`warmup_peft.sample_warmups`; what is sampled, and from where, is tested with the command."""

from __future__ import annotations

import numpy as np
import pytest
from folders import SETTINGS, puzzles, write_rows

from warmup_peft import sample_warmups


def test_a_recipe_gives_a_pool_that_is_filled_once(model_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", puzzles(3))
    recipe = {
        **SETTINGS, "model_name_or_path": model_folder, "dataset_name": str(rows),
        "task": "logiqa", "output_dir": str(tmp_path / "run"), "warmup_pool_size": 3, "warmup_source": "policy",
    }  # fmt: skip
    pool = sample_warmups(recipe)
    assert (len(pool), pool.num_samples, pool.folder) == (3, 3, tmp_path / "run" / "warmup_pool")
    assert len(pool.missing([np.array([5, 6, 7])])) == 1
    before = {path.name: path.stat().st_mtime_ns for path in pool.folder.iterdir()}
    assert len(sample_warmups(recipe)) == 3
    assert {path.name: path.stat().st_mtime_ns for path in pool.folder.iterdir()} == before
    with pytest.raises(ValueError, match="another temperature"):
        sample_warmups({**recipe, "temperature": 0.5})


def test_bad_input_is_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("warmup_peft.training.sample.build_trainer", None)
    with pytest.raises(ValueError, match="served_model belongs to --base_url"):
        sample_warmups({}, served_model="gpt2")
    with pytest.raises(ValueError, match="unknown key 'num_warmup'"):
        sample_warmups({"num_warmup": 3})
