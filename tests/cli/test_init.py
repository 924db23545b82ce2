"""`init`: a copy of a recipe that has its own files and trains from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from folders import tree

from warmup_peft.cli.main import TRAINING, main
from warmup_peft.settings.early import check_early
from warmup_peft.settings.shipped import PATHS, RECIPES, shipped_recipes


@pytest.fixture(autouse=True)
def room(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_copy_differs_in_its_paths_alone(name):
    before = tree(RECIPES)
    assert main(["init", "new/mine", "--recipe", name]) == 0
    text, copy = shipped_recipes()[name].read_text(encoding="utf-8"), Path("new/mine/recipe.yaml")
    old, new = yaml.safe_load(text), yaml.safe_load(copy.read_text(encoding="utf-8"))
    assert new["output_dir"] == "runs/mine"
    for option in PATHS:
        if str(old[option]).startswith("recipes/"):
            assert new[option].startswith("new/mine/")
            assert Path(new[option]).exists()
            old[option] = new[option]
    assert {**old, "output_dir": new["output_dir"]} == new
    assert text.count("#") == copy.read_text(encoding="utf-8").count("#")
    assert tree(RECIPES) == before


@pytest.mark.parametrize("here", [".", "new", "new/my recipe", ".."])
@pytest.mark.parametrize("folder", ["new/my recipe", "ABSOLUTE"])
def test_a_copys_files_are_found_from_any_folder(room, monkeypatch, here, folder):
    place = room / "new" / "my recipe"
    assert main(["init", str(place) if folder == "ABSOLUTE" else folder, "--recipe", "prosqa"]) == 0
    monkeypatch.chdir(room / here)
    values = check_early(TRAINING, ["--config", str(place / "recipe.yaml")])
    assert {option: Path(values[option]).resolve() for option in PATHS} == {
        "model_name_or_path": place / "base", "dataset_name": place / "data", "task": place / "task.py"
    }  # fmt: skip
    assert (place / "data" / "train.jsonl").read_bytes() == (RECIPES / "prosqa/data/train.jsonl").read_bytes()


def test_nothing_is_overwritten(refusal, capsys):
    Path("mine").mkdir()
    assert main(["init", "mine"]) == 0  # into an empty folder
    assert "warmup-peft train --config mine/recipe.yaml" in capsys.readouterr().out
    before = tree(Path("mine"))
    said = "mine is there already, and nothing is overwritten. Name a folder that is not there."
    assert refusal("init", "mine", "--recipe", "thinking") == said
    assert tree(Path("mine")) == before


def test_an_unknown_recipe_lists_those_that_there_are(refusal):
    said = refusal("init", "mine", "--recipe", "thinkin")
    assert said.startswith("The package has no recipe 'thinkin'. Did you mean 'thinking'?")
    assert not Path("mine").exists()
