"""TrlParser, made strict: options and recipes that are misspelt or of the wrong kind are errors, not surprises."""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from warmup_peft.files import read_text


def parse(dataclass_types: tuple[type, ...], argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse options and `--config`.

    Raises:
        ValueError: an unknown or abbreviated option (with the nearest known one), a value of the wrong kind, or a
            configuration file that is missing or no YAML mapping.
    """
    from trl import TrlParser

    class StrictParser(TrlParser):
        def error(self, message: str):
            raise ValueError(message[0].upper() + message[1:] + ".")

    argv = with_config_apart(argv)
    parser = StrictParser(dataclass_types, allow_abbrev=False, add_help=False)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for flag in (arg.split("=")[0] for arg in argv if arg.startswith("--")):
        if flag not in (*flags, "--config"):
            raise ValueError(f"There is no option {flag}. {nearest(flag, flags)}")
    if read_config(argv) is not None:
        check_config_file(argv, {k: hint for kind in dataclass_types for k, hint in get_type_hints(kind).items()})
    return parser.parse_args_and_config(argv)


def parse_one(dataclass_type: type, argv: Sequence[str]) -> Any:
    return parse((dataclass_type,), argv)[0]


def with_config_apart(argv: Sequence[str]) -> list[str]:
    """`--config=file` as two words, which is all that TrlParser knows."""
    return [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]


def read_config(argv: Sequence[str]) -> dict[str, Any] | None:
    """What the file behind `--config` holds; None where there is none.

    Raises:
        ValueError: the file is missing, or no YAML mapping.
    """
    import yaml

    argv = with_config_apart(argv)
    if "--config" not in argv:
        return None
    index = argv.index("--config") + 1
    path = Path(argv[index]) if index < len(argv) else None
    if path is None or not path.is_file():
        raise ValueError(f"--config names no file ({path}). Give it the path of a recipe's YAML file.")
    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no `key: value` lines.")
    return config


def check_config_file(argv: Sequence[str], hints: dict[str, Any]) -> None:
    """Keys and kinds of values: argparse looks at neither where they come from a file."""
    path = argv[argv.index("--config") + 1]
    for key, value in read_config(argv).items():
        if key == "env":
            continue
        if key not in hints:
            raise ValueError(f"{path} has an unknown key '{key}'. {nearest(str(key), list(hints))}")
        if not fits(value, hints[key]):
            raise ValueError(f"{path} has {key}: {value!r}, which does not fit. It takes {describe(hints[key])}.")


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


def nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else "See --help."


def describe(hint: Any) -> str:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    words = [w for kind in kinds for w in (get_args(kind) or (getattr(kind, "__name__", kind),))]
    return "|".join(map(str, words))


def quieten() -> None:
    """Keep what a user can do nothing about off the screen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # asks for a package of faster kernels
