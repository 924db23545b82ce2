"""`warmup_peft.compare`: a recipe, as a file or as values, to a `Comparison` that prints and reports."""

from __future__ import annotations

import pytest
import yaml
from folders import SETTINGS

from warmup_peft import compare
from warmup_peft.training.config import read_recipe


@pytest.fixture
def recipe(model_folder, data, tmp_path):
    values = {**SETTINGS, "model_name_or_path": model_folder, "dataset_name": str(data), "task": "logiqa"}
    return {**values, "output_dir": str(tmp_path / "run")}


def test_a_recipe_is_a_file_or_values(recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert read_recipe(recipe).values == read_recipe(path).values == read_recipe(read_recipe(path)).values
    with pytest.raises(ValueError, match=r"unknown key 'num_warmup'\. Did you mean 'num_warmups"):
        read_recipe({**recipe, "num_warmup": 2})


def test_a_comparison_prints_and_reports(recipe, tmp_path, in_this_process):
    found = compare(recipe, arms=["sft", "warmup"], seeds=[3], curve_points=0)
    assert found.folder == str(tmp_path / "run-compare")
    assert [arm.name for arm in found.arms] == ["sft", "warmup"]
    assert found.arms[0].seeds == [3]
    assert " ".join(found.verdict.split()) in " ".join(str(found).split())
    paths = found.report(tmp_path / "elsewhere")
    assert [path.name for path in paths] == ["report.html", "report.md"]
    assert paths[1].read_text() == (tmp_path / "run-compare" / "report.md").read_text()


def test_bad_input_is_refused_before_anything_is_trained(recipe):
    with pytest.raises(ValueError, match="mine"):
        compare(recipe, arms=["mine"])
    with pytest.raises(ValueError, match="goal=2"):
        compare(recipe, goal=2)
