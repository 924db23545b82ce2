"""A strict TrlParser: misspelt options and values of the wrong kind are errors, in recipes and on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from warmup_peft.files import near_path, read_text
from warmup_peft.settings.shipped import nearest_recipe, shipped_recipe, shipped_recipes, with_located
from warmup_peft.settings.words import nearest

if TYPE_CHECKING:
    from trl import TrlParser


def parse(kinds: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """An instance of each dataclass, from options and `--config`; errors as of `read_options` and `settings_of`."""
    in_file, on_command_line = read_options(kinds, argv)
    return settings_of(kinds, {**in_file, **on_command_line})


def parse_one(kind: type, argv: Sequence[str]) -> Any:
    return parse((kind,), argv)[0]


def read_options(kinds: Sequence[type], argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that the file behind `--config` sets, and those that the other words set, as typed values.

    The environment variables that the file names under `env` are set. Paths are located, see `shipped.located`.

    Args:
        kinds: dataclasses whose fields are the options.

    Raises:
        ValueError: an unknown or abbreviated option (with the nearest known one), a value of the wrong kind, or a
            configuration file that is missing or no YAML mapping.
    """
    path, words = split_config(argv)
    on_command_line = with_located(parse_words(kinds, words), path)
    if path is None:
        return {}, on_command_line
    config = read_config(path)
    set_environment(config.pop("env", {}))
    return with_located(typed(kinds, config, str(path)), path), on_command_line


def settings_of(kinds: Sequence[type], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """An instance of each dataclass, with these typed values.

    Raises:
        ValueError: a value is missing or cannot work.
    """
    parser = strict_parser(kinds)
    parser.set_defaults_with_config(**values)
    return parser.parse_args_into_dataclasses([], look_for_args_file=False)


def typed(kinds: Sequence[type], values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values with text converted, as on the command line, to what each option takes.

    Args:
        place: where they come from, to begin an error with.

    Raises:
        ValueError: an unknown option, or a value of the wrong kind.
    """
    hints = option_hints(kinds)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{place} has an unknown key '{name}'. {nearest(str(name), list(hints))}")
        if not fits(value, hints[name]):
            raise ValueError(f"{place} has {name}: {value!r}, which does not fit. It takes {describe(hints[name])}.")
    words = [
        f"--{name}={value}" for name, value in values.items() if isinstance(value, str) and not is_text(hints[name])
    ]
    return {**values, **parse_words(kinds, words)}


def is_text(hint: Any) -> bool:
    """Whether any text is a value as it stands."""
    return hint is str or (get_origin(hint) in (Union, UnionType) and str in get_args(hint))


def option_hints(kinds: Sequence[type]) -> dict[str, Any]:
    """The type hint of every option."""
    return {name: hint for kind in kinds for name, hint in hints_of(kind).items()}


@functools.cache  # a command asks for TRL's dozens of times
def hints_of(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {option.name: hints[option.name] for option in dataclasses.fields(kind) if option.init}


def parse_words(kinds: Sequence[type], words: Sequence[str]) -> dict[str, Any]:
    """The options that the words set, and no defaults."""
    if not words:
        return {}
    parser = parser_of_words(tuple(kinds))
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for flag in (word.split("=")[0] for word in words if word.startswith("--")):
        if flag not in flags:
            raise ValueError(f"There is no option {flag}. {nearest(flag, flags)}")
    return vars(parser.parse_args(words))


@functools.cache
def parser_of_words(kinds: tuple[type, ...]) -> TrlParser:
    """A parser without defaults, so that what it returns was said, and one call leaves nothing for the next."""
    parser = strict_parser(kinds)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return parser


def strict_parser(kinds: Sequence[type]) -> TrlParser:
    from trl import TrlParser

    class StrictParser(TrlParser):
        def _check_value(self, action, value):
            if action.choices is not None and value not in action.choices:
                raise argparse.ArgumentError(action, no_choice(value, action.choices))

        def error(self, message: str):
            raise ValueError(message[0].upper() + message[1:] + ("" if message.endswith((".", "?")) else "."))

    return StrictParser(kinds, allow_abbrev=False, add_help=False)


def no_choice(value: Any, choices: Iterable[Any]) -> str:
    """What is wrong with a value that is none of the choices."""
    words = [str(choice) for choice in choices]
    return f"there is no '{value}'. {nearest(str(value), words, 'Choose from ' + ', '.join(words) + '.')}"


def split_options(kind: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that set options of this dataclass, each with its value, and all other words."""
    flags = {f"--{option.name}" for option in dataclasses.fields(kind)}
    own, others = [], []
    words = iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name not in flags:
            others.append(word)
        elif value:
            own.append(word)
        else:
            own += [word, *(following for following in [next(words, None)] if following is not None)]
    return own, others


def split_config(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file behind `--config`, and the other words. A name that is no file is that of a recipe of the package.

    Raises:
        ValueError: there is neither, or it is named twice.
    """
    if sum(word.split("=")[0] == "--config" for word in argv) > 1:
        raise ValueError("--config is given twice. Give one file, and other options on the command line.")
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--config", nargs="?", type=Path, default=argparse.SUPPRESS)
    found, words = parser.parse_known_args(argv)
    return recipe_file(found.config) if "config" in found else None, words


def recipe_file(path: Path | None) -> Path:
    """The file of this path, or the recipe of the package of this name. Raises ValueError if there is neither."""
    if path is None:
        raise ValueError(f"--config names nothing. Give it a recipe's YAML file, or a name. {nearest_recipe('')}")
    if path.is_file():
        return path
    name = path.as_posix()
    if name in shipped_recipes():
        return shipped_recipe(name)
    meant = near_path(name).strip() if path.suffix in (".yaml", ".yml") else ""
    raise ValueError(f"--config {name} is neither a file nor a recipe of the package. {meant or nearest_recipe(name)}")


def read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no `key: value` lines.")
    return config


def set_environment_of(argv: Sequence[str]) -> None:
    """Set the environment variables that the file behind `--config` names."""
    path, _ = split_config(argv)
    if path is not None:
        set_environment(read_config(path).get("env", {}))


def set_environment(variables: Any) -> None:
    if not isinstance(variables, dict):
        raise ValueError(f"env={variables} cannot work. Write it as lines of `NAME: value`.")
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can stand for a field; text passes where argparse will convert it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(fits_kind(value, kind) for kind in kinds)


def fits_kind(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind) or (isinstance(value, bool) and str(value).lower() in get_args(kind))
    if kind is type(None):
        return value is None
    if kind in (int, float):
        is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        return is_number or isinstance(value, str)
    if kind is bool:
        return isinstance(value, bool | str)
    if kind is str:
        return isinstance(value, str)
    if origin in (list, dict) or kind in (list, dict):
        return isinstance(value, (origin or kind, str))
    return True


def describe(hint: Any) -> str:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    words = [w for kind in kinds for w in (get_args(kind) or (getattr(kind, "__name__", kind),))]
    return "|".join(map(str, words))


def quieten() -> None:
    """Hide warnings that a user cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(is_worth_reading)


def is_worth_reading(record: logging.LogRecord) -> bool:
    """False of bitsandbytes' line about an optional package, without which it computes the same."""
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward from kernels-community")
