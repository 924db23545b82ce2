"""`warmup-peft <command>`: one short function a command. Heavy imports inside, so that --help is quick."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from warmup_peft import __version__, arguments
from warmup_peft.options import WarmupOptions

BAD_INPUT = 2
INTERRUPTED = 130


# ---- Commands ----


def train(argv: Sequence[str]) -> None:
    """Train an adapter: warmup-peft train --config recipe.yaml [--any_option value ...]"""
    settings = parse_training(argv)
    from warmup_peft.run import run_training

    run_training(*settings)


def draw(argv: Sequence[str]) -> None:
    """Draw the warmups of warmup_source 'base' and train nothing: warmup-peft draw --config recipe.yaml"""
    settings = parse_training([*argv, "--warmup_source", "base"], arguments.DrawOptions)
    from warmup_peft.run import run_draw

    run_draw(*settings)


def evaluate(argv: Sequence[str]) -> None:
    """Score an adapter and its base on held-out questions: warmup-peft evaluate --adapter <folder>"""
    options = parse_one(arguments.EvaluateArguments, argv)
    from warmup_peft.run import run_evaluation

    run_evaluation(options)


def generate(argv: Sequence[str]) -> None:
    """Answer prompts, with the warmup on standard error: warmup-peft generate --adapter <folder> --prompt "..." """
    options = parse_one(arguments.GenerateArguments, argv)
    from warmup_peft.run import run_generation

    run_generation(options)


def merge(argv: Sequence[str]) -> None:
    """Merge an adapter into its base: warmup-peft merge --adapter <folder> --output_dir <folder>"""
    options = parse_one(arguments.MergeArguments, argv)
    from warmup_peft.run import run_merge

    run_merge(options)


def push(argv: Sequence[str]) -> None:
    """Upload a folder to the Hub, private unless told otherwise: warmup-peft push --folder <folder> --repo_id <id>"""
    options = parse_one(arguments.PushArguments, argv)
    from warmup_peft.inference.push import push_folder

    plan = push_folder(
        options.folder,
        options.repo_id,
        private=options.private,
        create_pr=options.create_pr,
        dry_run=options.dry_run,
    )
    verb = "Would upload" if options.dry_run else "Uploaded"
    print(f"{verb} to {plan.repo_id} ({'private' if plan.private else 'public'} where it is new):")
    for name in plan.files:
        path = Path(options.folder, name)
        print(f"  {name}" + (f"  {path.stat().st_size:,} bytes" if path.is_file() else "  (made when it is uploaded)"))
    if plan.card_kept:
        print("The model card on the Hub was edited by a person, so it stays as it is.")
    if plan.url:
        print(plan.url)


def bench(argv: Sequence[str]) -> None:
    """Time a training step with and without warmups: warmup-peft bench --shape small"""
    options = parse_one(arguments.BenchArguments, argv)
    from warmup_peft.bench import run_bench

    run_bench(options)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command for command in (train, draw, evaluate, generate, merge, push, bench)
}
OPTIONS = {
    "train": (WarmupOptions, arguments.RunOptions),
    "draw": (arguments.DrawOptions, WarmupOptions, arguments.RunOptions),
    "evaluate": (arguments.EvaluateArguments,),
    "generate": (arguments.GenerateArguments,),
    "merge": (arguments.MergeArguments,),
    "push": (arguments.PushArguments,),
    "bench": (arguments.BenchArguments,),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0; 2 after bad input, said in one sentence; 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print_commands()
        return 0
    if argv[0] == "--version":
        print(f"warmup_peft {__version__}")
        return 0
    name, *rest = argv
    try:
        if name not in COMMANDS:
            raise ValueError(f"There is no command '{name}'. {nearest(name, COMMANDS)}")
        if "-h" in rest or "--help" in rest:
            print_options(name)
            return 0
        quieten()
        COMMANDS[name](rest)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("WARMUP_PEFT_TRACEBACK"):
            raise
        print(f"warmup-peft: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("warmup-peft: interrupted.", file=sys.stderr)
        return INTERRUPTED
    return 0


# ---- Options: TrlParser, made strict ----


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

    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    parser = StrictParser(dataclass_types, allow_abbrev=False, add_help=False)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for flag in (arg.split("=")[0] for arg in argv if arg.startswith("--")):
        if flag not in (*flags, "--config"):
            raise ValueError(f"There is no option {flag}. {nearest(flag, flags)}")
    if "--config" in argv:
        check_config_file(argv, {k: hint for kind in dataclass_types for k, hint in get_type_hints(kind).items()})
    return parser.parse_args_and_config(argv)


def parse_training(argv: Sequence[str], *more: type) -> tuple[Any, ...]:
    """TRL's script arguments, `RunOptions`, `WarmupSFTConfig`, TRL's model settings, and `more`; errors as `parse`."""
    from trl import ModelConfig, ScriptArguments

    from warmup_peft.config import WarmupSFTConfig

    return parse((ScriptArguments, arguments.RunOptions, WarmupSFTConfig, ModelConfig, *more), argv)


def parse_one(dataclass_type: type, argv: Sequence[str]) -> Any:
    return parse((dataclass_type,), argv)[0]


def check_config_file(argv: Sequence[str], hints: dict[str, Any]) -> None:
    """Keys and kinds of values: argparse looks at neither where they come from a file."""
    import yaml

    index = argv.index("--config") + 1
    path = Path(argv[index]) if index < len(argv) else None
    if path is None or not path.is_file():
        raise ValueError(f"--config names no file ({path}). Give it the path of a recipe's YAML file.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no `key: value` lines.")
    for key, value in config.items():
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


# ---- Help, and what is printed ----


def print_commands() -> None:
    print("Warmup generations for TRL.\n\nusage: warmup-peft <command> [options]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<10}{(command.__doc__ or '').strip()}")
    print("\nwarmup-peft <command> --help lists a command's options. Documentation: README.md")


def print_options(name: str) -> None:
    print((COMMANDS[name].__doc__ or "").strip() + "\n")
    for options in OPTIONS[name]:
        print((options.__doc__ or "").strip())
        hints = get_type_hints(options)
        for option in dataclasses.fields(options):
            default = f"default: {default_of(option)!r}" if has_default(option) else "required"
            print(f"  --{option.name} {describe(hints[option.name])}  ({default})")
            print(f"        {option.metadata['help']}")
        print()
    if name in ("train", "draw"):
        print(
            "Every field of TRL's SFTConfig, ModelConfig and ScriptArguments is an option too, here and in --config:\n"
            "--model_name_or_path, --dataset_name, --output_dir, --learning_rate, --load_in_4bit, ...\n"
            "https://huggingface.co/docs/trl/sft_trainer"
        )


def has_default(option: dataclasses.Field) -> bool:
    return option.default is not dataclasses.MISSING or option.default_factory is not dataclasses.MISSING


def default_of(option: dataclasses.Field) -> Any:
    return option.default if option.default is not dataclasses.MISSING else option.default_factory()


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


if __name__ == "__main__":
    sys.exit(main())
