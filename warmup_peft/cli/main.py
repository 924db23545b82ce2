"""`warmup-peft <command>`: one short function a command. Heavy imports inside, so that --help is quick."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from warmup_peft import __version__
from warmup_peft.settings import arguments
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.parsing import describe, nearest, parse_one, quieten

COMPARE_PACKAGES = (
    "jinja2", "markupsafe", "matplotlib", "nltk", "rouge_score", "sacrebleu", "sklearn", "scipy", "statsmodels",
)  # fmt: skip
BAD_INPUT = 2
INTERRUPTED = 130


# ---- Commands ----


def train(argv: Sequence[str]) -> None:
    """Train an adapter: warmup-peft train --config recipe.yaml [--any_option value ...]"""
    from warmup_peft.cli.train import run

    run(argv)


def sample(argv: Sequence[str]) -> None:
    """Sample the warmups of warmup_source 'base' and train nothing: warmup-peft sample --config recipe.yaml"""
    from warmup_peft.cli.sample import run

    run(argv)


def evaluate(argv: Sequence[str]) -> None:
    """Score an adapter and its base on held-out questions: warmup-peft evaluate --adapter <folder>"""
    options = parse_one(arguments.EvaluateArguments, argv)
    from warmup_peft.cli.evaluate import run_evaluation

    run_evaluation(options)


def generate(argv: Sequence[str]) -> None:
    """Answer prompts, with the warmup on standard error: warmup-peft generate --adapter <folder> --prompt "..." """
    options = parse_one(arguments.GenerateArguments, argv)
    from warmup_peft.cli.generate import run_generation

    run_generation(options)


def merge(argv: Sequence[str]) -> None:
    """Merge an adapter into its base: warmup-peft merge --adapter <folder> --output_dir <folder>"""
    options = parse_one(arguments.MergeArguments, argv)
    from warmup_peft.cli.merge import run_merge

    run_merge(options)


def push(argv: Sequence[str]) -> None:
    """Upload a folder to the Hub, private unless told otherwise: warmup-peft push --folder <folder> --repo_id <id>"""
    options = parse_one(arguments.PushArguments, argv)
    from warmup_peft.export.push import push_folder

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
    from warmup_peft.cli.bench import run_bench

    run_bench(options)


def compare(argv: Sequence[str]) -> None:
    """Train a recipe with and without warmups and say if they help: warmup-peft compare --config recipe.yaml"""
    with_extra("compare")
    from warmup_peft.cli.compare import run

    run(argv)


def inspect(argv: Sequence[str]) -> None:
    """Say what a run's warmups say and where they change the answer: warmup-peft inspect <folder>"""
    is_named = bool(argv) and not argv[0].startswith("-")
    argv = ["--run", *argv] if is_named else argv
    parse_one(arguments.InspectArguments, argv)
    with_extra("inspect")
    from warmup_peft.cli.inspect import run

    run(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command for command in (train, sample, evaluate, compare, inspect, generate, merge, push, bench)
}
ALIASES = {"draw": "sample"}  # earlier names
OPTIONS = {
    "train": (WarmupOptions, arguments.RunOptions),
    "sample": (arguments.SampleOptions, WarmupOptions, arguments.RunOptions),
    "evaluate": (arguments.EvaluateArguments,),
    "compare": (arguments.CompareOptions, WarmupOptions, arguments.RunOptions),
    "inspect": (arguments.InspectArguments,),
    "generate": (arguments.GenerateArguments,),
    "merge": (arguments.MergeArguments,),
    "push": (arguments.PushArguments,),
    "bench": (arguments.BenchArguments,),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0; 2 after bad input, said in one sentence; 130 when interrupted.

    Bad input is what `refusals` lists, whoever raised it; whatever else a library raises over a file or model is made
    a ValueError where that is read. Any other error (KeyError, TypeError, AssertionError, ...) is a bug of ours and
    keeps its traceback, as do all with `--debug`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print_commands()
        return 0
    if argv[0] == "--version":
        print(f"warmup_peft {__version__}")
        return 0
    name, rest = ALIASES.get(argv[0], argv[0]), argv[1:]
    is_debugging, rest = take_debug(rest)
    try:
        if name not in COMMANDS:
            raise ValueError(f"There is no command '{name}'. {nearest(name, COMMANDS)}")
        if "-h" in rest or "--help" in rest:
            print_options(name)
            return 0
        quieten()
        COMMANDS[name](rest)
    except refusals() as error:
        if is_debugging:
            raise
        print(f"warmup-peft: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("warmup-peft: interrupted.", file=sys.stderr)
        return INTERRUPTED
    return 0


def take_debug(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a `--debug` is there without a value, and the other words; with one it is a field of TRL's config."""
    is_flag = [
        word == "--debug" and (not following or following[0].startswith("--"))
        for word, following in ((word, argv[i + 1 : i + 2]) for i, word in enumerate(argv))
    ]
    return any(is_flag), [word for word, flag in zip(argv, is_flag) if not flag]


def refusals() -> tuple[type[Exception], ...]:
    """Bad values, files and servers (errors of the Hub are OSErrors), missing packages, NaN, and too little memory."""
    torch = sys.modules.get("torch")  # which is slow to import, and raises nothing before that
    return (ValueError, OSError, ImportError, FloatingPointError, *([torch.OutOfMemoryError] if torch else []))


def with_extra(command: str) -> None:
    """Raise ImportError where the packages of warmup_peft[compare] are not installed."""
    missing = [name for name in COMPARE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{command} needs {', '.join(missing)}. Run: pip install 'warmup_peft[compare]'")


# ---- Help, and what is printed ----


def print_commands() -> None:
    print("Warmup generations for TRL.\n\nusage: warmup-peft <command> [options]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<10}{(command.__doc__ or '').strip()}")
    print("\nwarmup-peft <command> --help lists a command's options; --debug shows the traceback of an error.")
    print("Documentation: README.md")


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
    if name in ("train", "sample", "compare"):
        print(
            "Every field of TRL's SFTConfig, ModelConfig and ScriptArguments is an option too, here and in --config:\n"
            "--model_name_or_path, --dataset_name, --output_dir, --learning_rate, --load_in_4bit, ...\n"
            "https://huggingface.co/docs/trl/sft_trainer"
        )


def has_default(option: dataclasses.Field) -> bool:
    return option.default is not dataclasses.MISSING or option.default_factory is not dataclasses.MISSING


def default_of(option: dataclasses.Field) -> Any:
    return option.default if option.default is not dataclasses.MISSING else option.default_factory()
