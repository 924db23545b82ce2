"""The recipes that come with the package, and where the relative paths of a recipe lead. Loads no torch and no trl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmup_peft.settings.words import nearest

PACKAGE = Path(__file__).parents[1]
# in an installed package inside it, in a checkout beside it
RECIPES = next((path for path in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if path.is_dir()), PACKAGE)
ACCELERATE_CONFIGS = RECIPES / "accelerate"
SMALL_WORLDS = ("relay", "tiny")  # profiles with a base of their own, which run anywhere
PATHS = ("model_name_or_path", "dataset_name", "task")  # options that may name a file or a folder to read


def shipped_recipes() -> dict[str, Path]:
    """Name -> YAML file. `logiqa/qlora` is a profile of `logiqa`; `logiqa` alone is the one that runs anywhere."""
    found: dict[str, Path] = {}
    for folder in sorted(path for path in RECIPES.iterdir() if path.is_dir() and path != ACCELERATE_CONFIGS):
        profiles = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        default = next((name for name in (folder.name, *SMALL_WORLDS) if name in profiles), None)
        found |= {folder.name: profiles[default]} if default else {}
        found |= {f"{folder.name}/{name}": path for name, path in profiles.items() if name != folder.name}
    return found


def shipped_recipe(name: str) -> Path:
    """The YAML file of a recipe of the package. Raises ValueError, which lists them, if there is none of this name."""
    recipes = shipped_recipes()
    if name not in recipes:
        raise ValueError(f"The package has no recipe '{name}'. {nearest_recipe(name)}")
    return recipes[name]


def nearest_recipe(name: str) -> str:
    """A question for the recipe that is meant, or all that there are."""
    recipes = shipped_recipes()
    return nearest(name, recipes, f"The recipes are {', '.join(recipes)}.")


def located(name: str, recipe: Path | None = None) -> str:
    """The path that a name in a recipe, or on the command line, leads to; the name itself where nothing is found.

    A path is one from the current folder, as everywhere. Where there is no such file, its first folder may be one that
    the recipe lies in (`mine/data` in the recipe mine/recipe.yaml), or the package's `recipes`. A single word, such as
    the task logiqa, leads nowhere else.
    """
    path = Path(name)
    if path.is_absolute() or path.exists() or len(path.parts) < 2:
        return name
    enclosing = [] if recipe is None else list(recipe.absolute().parents)
    homes = (folder.parent for folder in (*enclosing, RECIPES) if folder.name == path.parts[0])
    return next((str(home / path) for home in homes if (home / path).exists()), name)


def with_located(values: Mapping[str, Any], recipe: Path | None = None) -> dict[str, Any]:
    """The options, those of `PATHS` with the paths that they lead to."""
    paths = {name: values[name] for name in PATHS if isinstance(values.get(name), str)}
    return {**values, **{name: located(path, recipe) for name, path in paths.items()}}


def is_shipped(name: str) -> bool:
    """Whether this is the path of a file of the package's recipes, wherever it is named from."""
    path = RECIPES.parent / name
    return path.is_file() and path.resolve().is_relative_to(RECIPES.resolve())
