"""`warmup-peft init`: a copy of a recipe, to start one of your own from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from warmup_peft.files import check_writable, read_text, replacing_files, write_text
from warmup_peft.settings.arguments import InitArguments
from warmup_peft.settings.parsing import parse_one, read_config
from warmup_peft.settings.shipped import PATHS, RECIPES, shipped_recipe

NAME = "recipe.yaml"


def run(argv: Sequence[str]) -> None:
    options = parse_one(InitArguments, argv)
    path = copy_recipe(options.recipe, Path(options.folder))
    print(f"A copy of the recipe {options.recipe} lies in {options.folder}. Change it, then train with:")
    print(f"  warmup-peft train --config {path.as_posix()}")


def copy_recipe(name: str, folder: Path) -> Path:
    """Copy a recipe of the package with its task, data and base, and return the copy's YAML file.

    The copy names its own files, and `runs/<folder>` for its output. Models and data of the Hub stay where they are.

    Raises:
        ValueError: there is no such recipe, or the folder is not empty or cannot be written.
    """
    source = shipped_recipe(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and nothing is overwritten. Name a folder that is not there.")
    check_writable(folder, "folder")
    values = read_config(source)
    own = {option: str(values[option]) for option in PATHS if is_in_recipes(values.get(option))}
    place = folder.as_posix() if is_plain(folder) else folder.resolve().name
    replaced = {option: f"{place}/{rest_of(path)}" for option, path in own.items()}
    replaced["output_dir"] = f"runs/{folder.resolve().name}"
    with replacing_files(folder) as staging:
        for path in own.values():
            copy_what_is_read(RECIPES.parent / path, staging / rest_of(path))
        write_text(staging / NAME, with_values(read_text(source), replaced))
    return folder / NAME


def is_in_recipes(value: object) -> bool:
    return isinstance(value, str) and value.startswith("recipes/") and (RECIPES.parent / value).exists()


def is_plain(folder: Path) -> bool:
    """Whether the folder's path means the same place as long as one stays in the current folder or above it."""
    return not folder.is_absolute() and bool(folder.parts) and ".." not in folder.parts


def rest_of(path: str) -> str:
    """What follows `recipes/<recipe>/`; for data that lie in that folder itself, `data`."""
    return "/".join(Path(path).parts[2:]) or "data"


def copy_what_is_read(source: Path, target: Path) -> None:
    """Copy a file, a model's folder, or of a folder of data the rows alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, target)
    elif (source / "config.json").is_file():
        shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
    else:
        target.mkdir(exist_ok=True)
        for path in source.glob("*.jsonl"):
            shutil.copyfile(path, target / path.name)


def with_values(text: str, values: dict[str, str]) -> str:
    """The YAML with other values, and its comments as they are."""
    for name, value in values.items():
        word = value if re.fullmatch(r"[\w./-]+", value) else json.dumps(value, ensure_ascii=False)
        text = re.sub(rf"^({name}:\s+)\S+", lambda found, word=word: found[1] + word, text, count=1, flags=re.M)
    return text
