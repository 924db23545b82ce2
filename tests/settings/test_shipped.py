"""The recipes of the package by their names, and where the paths in a recipe lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmup_peft.settings.parsing import read_config, split_config
from warmup_peft.settings.shipped import ACCELERATE_CONFIGS, PATHS, RECIPES, is_shipped, located, shipped_recipes

ROOT = Path(__file__).parents[2]


def test_every_recipe_has_a_name_and_every_folder_one_that_runs_anywhere():
    files = set(ROOT.glob("recipes/*/*.yaml")) - set(ACCELERATE_CONFIGS.glob("*"))
    found = shipped_recipes()
    assert set(found.values()) == files
    assert {path.parent.name for path in files} <= set(found)
    for name, path in found.items():
        if "/" not in name:
            config = read_config(path)
            assert (ROOT / config["model_name_or_path"] / "config.json").is_file()
    assert found["logiqa"].name == "relay.yaml"
    assert found["logiqa/qlora"].name == "qlora.yaml"


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_name_is_a_config_from_any_folder_and_its_paths_are_found(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path, _ = split_config(["--config", name])
    config = read_config(path)
    named = [config[option] for option in PATHS if str(config[option]).startswith("recipes/")]
    assert all(Path(located(each, path)).exists() for each in named)
    assert all(Path(located(each)).exists() for each in named)  # on the command line, too


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("logiqa").write_text("seed: 1\n")
    assert split_config(["--config", "logiqa"])[0] == Path("logiqa")


@pytest.mark.parametrize("name", ["logica", "xyzzy"])
def test_an_unknown_name_names_the_nearest_or_all(refusal, name):
    every = f"The recipes are {', '.join(shipped_recipes())}."
    meant = {"logica": "Did you mean 'logiqa'?"}.get(name, every)
    assert (
        refusal("train", "--config", name) == f"--config {name} is neither a file nor a recipe of the package. {meant}"
    )


def test_where_a_path_leads(tmp_path, monkeypatch):
    """From the current folder; else from above the folder of the recipe that the path begins with; else nowhere."""
    recipe = tmp_path / "work" / "mine" / "recipe.yaml"
    data = tmp_path / "work" / "mine" / "data"
    data.mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert located("mine/data", recipe) == "mine/data"
    monkeypatch.chdir(tmp_path / "other")
    assert located("mine/data", recipe) == str(data)
    assert located("work/mine/data", recipe) == str(data)
    monkeypatch.chdir(tmp_path / "work" / "mine")
    assert located("mine/data", Path("recipe.yaml")) == str(data)
    monkeypatch.chdir(tmp_path)
    for name in ("data", "mine", "mine/none", "openai/gsm8k", "/no/where", "recipes/none"):
        assert located(name, recipe) == name


def test_only_files_within_the_recipes_are_shipped(tmp_path, monkeypatch):
    assert is_shipped("recipes/prosqa/task.py")
    assert is_shipped(str(RECIPES / "prosqa" / "task.py"))
    own = tmp_path / "recipes" / "prosqa" / "task.py"
    own.parent.mkdir(parents=True)
    own.write_text("")
    monkeypatch.chdir(tmp_path)
    for name in (str(own), "recipes/prosqa/none.py", "recipes/../warmup_peft/files.py", "task.py", "recipes"):
        assert not is_shipped(name)
