"""What is wrong with a command line, said before torch is imported, which takes seconds.

TRL's and transformers' training options cannot be imported without torch, so their names and types are read from the
source. What this module does not find, the full parser finds later.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_type_hints

from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.parsing import option_hints
from warmup_peft.settings.recipe import Recipe

TRAINING_CLASSES = (  # package, file, class; a later one replaces fields of an earlier one
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
)
PLAIN_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "list": list, "Any": Any,
               "Literal": Literal}  # fmt: skip


def check_early(
    kinds: Sequence[type], argv: Sequence[str], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Check the options of a command that has TRL's, beside `kinds`, and return all of them, with their defaults.

    A default of TRL's that is no plain value is None.

    Args:
        overrides: what the command itself sets, whatever the recipe says.

    Raises:
        ValueError: an unknown option, a value of the wrong kind, a file that is missing or no YAML mapping, or an
            option of our own that cannot work.
    """
    from trl import ModelConfig, ScriptArguments  # which do not import torch

    theirs = training_options(TRAINING_CLASSES)
    if theirs is None:
        return {}
    recipe = Recipe.read(argv, ScriptArguments, ModelConfig, *kinds, theirs)
    parts = recipe.with_overrides(overrides or {}).settings()
    for part in parts:
        if isinstance(part, WarmupOptions):
            part.check_warmup_options()
    return {name: value for part in parts for name, value in vars(part).items()}


@cache
def training_options(classes: tuple[tuple[str, str, str], ...]) -> type | None:
    """The options of TRL's SFTConfig, as a dataclass that does nothing; None where its source is not where it was."""
    from trl import ModelConfig, ScriptArguments

    nodes = training_nodes(classes)
    if nodes is None:
        return None
    ours = option_hints((ScriptArguments, ModelConfig, WarmupOptions))
    hints = {name: hint for name, hint in hints_of(nodes).items() if name not in ours}
    options = [(name, hint, dataclasses.field(default=default_of(nodes[name]))) for name, hint in hints.items()]
    return dataclasses.make_dataclass("TrainingOptions", options)


def training_fields(classes: tuple[tuple[str, str, str], ...] = TRAINING_CLASSES) -> dict[str, Any] | None:
    """Names and types of TRL's SFTConfig; None where its source is not where it was."""
    nodes = training_nodes(classes)
    return None if nodes is None else hints_of(nodes)


def training_nodes(classes: tuple[tuple[str, str, str], ...]) -> dict[str, ast.AnnAssign] | None:
    """Name -> line in the source, of every option of TRL's SFTConfig."""
    nodes: dict[str, ast.AnnAssign] = {}
    for package, file, name in classes:
        spec = importlib.util.find_spec(package)
        path = spec and spec.origin and Path(spec.origin).parent / file
        if not path or not path.is_file():
            return None
        body = class_body(path.read_text(encoding="utf-8"), name)
        if body is None:
            return None
        nodes |= {ast.unparse(node.target): node for node in body if is_option(node)}
    return nodes


def default_of(node: ast.AnnAssign) -> Any:
    """The default on a line of a dataclass; None where that is no plain value, and for the learning rate as ours."""
    if ast.unparse(node.target) == "learning_rate":
        return None
    value = node.value
    if isinstance(value, ast.Call):
        value = next((word.value for word in value.keywords if word.arg == "default"), None)
    try:
        found = None if value is None else ast.literal_eval(value)
    except ValueError:
        return None
    return None if isinstance(found, list | dict) else found


def class_body(source: str, name: str) -> list[ast.stmt] | None:
    found = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    return next((node.body for node in found), None)


def is_option(node: ast.stmt) -> TypeGuard[ast.AnnAssign]:
    """Whether this line of a dataclass is a field that its constructor takes."""
    if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
        return False
    keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
    return not any(word.arg == "init" and ast.unparse(word.value) == "False" for word in keywords)


class TypeNames(dict):
    """Names that stand in annotations; one that needs torch to be imported is a text, or a dictionary."""

    def __missing__(self, name: str) -> Any:
        return dict if name.endswith("Config") else str


def hints_of(nodes: Mapping[str, ast.AnnAssign]) -> dict[str, Any]:
    annotations = {name: ast.unparse(node.annotation) for name, node in nodes.items()}
    return {**types_of(annotations), "learning_rate": float | None}  # ours may be left open, see WarmupSFTConfig


def types_of(annotations: dict[str, str]) -> dict[str, Any]:
    kind = dataclasses.make_dataclass("Annotated", annotations.items())
    return get_type_hints(kind, globalns={}, localns=TypeNames(PLAIN_TYPES))
