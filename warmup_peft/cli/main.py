"""`warmup-peft <command>`: one row for each command. Its code is `run(argv)` in `warmup_peft.cli.<command>`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from warmup_peft import __version__
from warmup_peft.settings import arguments
from warmup_peft.settings.early import check_early
from warmup_peft.settings.hub import stay_offline_without_the_hub
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.parsing import (
    describe,
    nearest,
    parse,
    parse_one,
    quieten,
    set_environment_of,
    split_options,
)
from warmup_peft.settings.versions import with_fix

COMPARE_PACKAGES = (
    "jinja2", "markupsafe", "math_verify", "matplotlib", "nltk", "rouge_score", "sacrebleu", "sklearn", "scipy",
    "statsmodels",
)  # fmt: skip
BAD_INPUT = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """One row of `warmup-peft --help`.

    Attributes:
        help: one line of help.
        options: dataclasses whose fields are its options.
        has_trls: whether all fields of TRL's SFTConfig, ModelConfig and ScriptArguments are options, too.
        needs_compare: whether it needs the packages of warmup_peft[compare].
        has_arms: whether its help lists the arms of a comparison.
        first_word: an option that may be given as the first word, without its name.
        overrides: options that it sets itself, whatever the recipe says.
        runs_without_packages: whether it also runs where packages are missing; its options need them.
        examples: command lines, at the end of its help.
    """

    help: str
    options: tuple[type, ...]
    has_trls: bool = False
    needs_compare: bool = False
    has_arms: bool = False
    first_word: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    runs_without_packages: bool = False
    examples: tuple[str, ...] = ()


TRAINING = (WarmupOptions, arguments.RunOptions)
LAUNCHED = (*TRAINING, arguments.LaunchOptions)
COMMANDS = {
    "init": Command(
        "Copy a recipe, to start your own from: warmup-peft init my-recipe --recipe logiqa",
        (arguments.InitArguments,),
        first_word="folder",
        examples=(
            "warmup-peft init my-recipe",
            "warmup-peft init my-thinker --recipe thinking/qlora",
        ),
    ),
    "train": Command(
        "Train an adapter: warmup-peft train --config recipe.yaml [--any_option value ...]",
        LAUNCHED,
        has_trls=True,
        examples=(
            "warmup-peft train --config logiqa --output_dir runs/mine",
            "warmup-peft train --config my-recipe/recipe.yaml --learning_rate 1e-4 --max_steps 100",
        ),
    ),
    "sft": Command(
        "Train the same recipe without warmups (TRL's SFT), to compare with: warmup-peft sft --config recipe.yaml",
        (arguments.SFTOptions, *LAUNCHED),
        has_trls=True,
        examples=("warmup-peft sft --config logiqa --output_dir runs/sft --as_long_as runs/mine",),
    ),
    "sample": Command(
        "Sample the warmups of warmup_source 'base' and train nothing: warmup-peft sample --config recipe.yaml",
        (arguments.SampleOptions, *LAUNCHED),
        has_trls=True,
        overrides={"warmup_source": "base"},
        examples=(
            "warmup-peft sample --config logiqa --warmup_source base --objective posterior --output_dir runs/pool",
        ),
    ),
    "evaluate": Command(
        "Score an adapter and its base on held-out questions: warmup-peft evaluate --adapter <folder>",
        (arguments.EvaluateArguments,),
        examples=(
            "warmup-peft evaluate --adapter runs/mine --sft runs/sft --warmups own,shuffled,none",
            "warmup-peft evaluate --adapter runs/mine --harness logiqa2",
        ),
    ),
    "compare": Command(
        "Train a recipe with and without warmups, and test if they help: warmup-peft compare --config recipe.yaml",
        (arguments.CompareOptions, *TRAINING),
        has_trls=True,
        needs_compare=True,
        has_arms=True,
        examples=(
            "warmup-peft compare --config logiqa",
            "warmup-peft compare --config my-recipe/recipe.yaml --arms sft,warmup --sweep num_warmups=2,4",
        ),
    ),
    "inspect": Command(
        "Show the warmups of a run and where they change the answer: warmup-peft inspect <folder>",
        (arguments.InspectArguments,),
        needs_compare=True,
        first_word="run",
        examples=("warmup-peft inspect runs/mine --max_samples 100",),
    ),
    "generate": Command(
        'Answer prompts, with warmups on standard error: warmup-peft generate --adapter <folder> --prompt "..."',
        (arguments.GenerateArguments,),
        examples=(
            'warmup-peft generate --adapter runs/mine --prompt "..."',
            "warmup-peft generate --adapter runs/mine --prompts_file prompts.txt --json true",
        ),
    ),
    "chat": Command(
        "Talk with an adapter in the terminal: warmup-peft chat --adapter <folder>",
        (arguments.ChatArguments,),
        examples=("warmup-peft chat --adapter runs/mine",),
    ),
    "merge": Command(
        "Merge an adapter into its base: warmup-peft merge --adapter <folder> --output_dir <folder>",
        (arguments.MergeArguments,),
        examples=("warmup-peft merge --adapter runs/mine --output_dir runs/mine-merged",),
    ),
    "push": Command(
        "Upload a folder to the Hub, private by default: warmup-peft push --folder <folder> --repo_id <id>",
        (arguments.PushArguments,),
        examples=("warmup-peft push --folder runs/mine --repo_id me/mine --dry_run true",),
    ),
    "bench": Command(
        "Time a training step with and without warmups: warmup-peft bench --shape small",
        (arguments.BenchArguments,),
        examples=(
            "warmup-peft bench --shape small",
            "warmup-peft bench --predict true --shape llama-3.2-1b --load_in_4bit true --card_memory 24",
        ),
    ),
    "doctor": Command(
        "Show what is installed, what is missing, and if a base fits: warmup-peft doctor --shape llama-3.2-1b",
        (arguments.DoctorArguments,),
        runs_without_packages=True,
        examples=("warmup-peft doctor", "warmup-peft doctor --shape llama-3.1-8b --card_memory 24"),
    ),
    "completion": Command(
        "Print a script that completes commands and options: warmup-peft completion bash",
        (arguments.CompletionArguments,),
        first_word="shell",
        examples=(
            "warmup-peft completion bash > ~/.local/share/bash-completion/completions/warmup-peft",
            "warmup-peft completion zsh >> ~/.zshrc",
            "warmup-peft completion fish > ~/.config/fish/completions/warmup-peft.fish",
        ),
    ),
}
ALIASES = {"draw": "sample"}  # older names; they work but are not listed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 after bad input (explained in one sentence), or 130 after an interrupt.

    Errors of the types in `refusals` count as bad input. Other errors that libraries raise for a file or a model are
    turned into a ValueError where it is read. All other errors (KeyError, TypeError, AssertionError, ...) are bugs of
    this package and keep their traceback. With `--debug` every error does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print_commands()
        return 0
    if argv[0] == "--version":
        print(f"warmup_peft {__version__}")
        return 0
    name, *rest = argv
    name = ALIASES.get(name, name)
    is_debugging, rest = take_debug(rest)
    try:
        if name not in COMMANDS:
            raise ValueError(f"There is no command '{name}'. {nearest(name, COMMANDS)}")
        if "-h" in rest or "--help" in rest:
            print_options(COMMANDS[name])
            return 0
        quieten()
        run_command(name, rest)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except refusals() as error:
        if is_debugging:
            raise
        error = with_fix(error) if isinstance(error, ImportError) else error
        print(f"warmup-peft: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("warmup-peft: interrupted.", file=sys.stderr)
        return INTERRUPTED
    return 0


def run_command(name: str, argv: list[str]) -> None:
    """Check the options as far as that is quick, then import the command's module and run it."""
    command = COMMANDS[name]
    if command.first_word and argv and not argv[0].startswith("-"):
        argv = [f"--{command.first_word}", *argv]
    if command.needs_compare:
        check_packages(name)
    launch, argv = take_launch_options(command, argv)
    options = {} if command.runs_without_packages and not argv else quick_options(command, argv)
    if not command.runs_without_packages:
        check_quantization(options)
    stay_offline_without_the_hub(options)
    if launch.accelerate_config is not None:
        importlib.import_module("warmup_peft.cli.launch").launch(name, argv, launch)
        return
    importlib.import_module(f"warmup_peft.cli.{name}").run(argv)


def take_launch_options(command: Command, argv: list[str]) -> tuple[arguments.LaunchOptions, list[str]]:
    """How its processes are started, and all other words. Raises ValueError."""
    if arguments.LaunchOptions not in command.options:
        return arguments.LaunchOptions(), argv
    words, argv = split_options(arguments.LaunchOptions, argv)
    launch = parse_one(arguments.LaunchOptions, words)
    if words and launch.accelerate_config is None:
        raise ValueError("--num_processes belongs to --accelerate_config. Give both, or neither.")
    return launch, argv


def quick_options(command: Command, argv: list[str]) -> dict[str, Any]:
    """The options, checked as far as that needs no torch. Raises ValueError."""
    if not command.has_trls:
        return {name: value for part in parse(command.options, argv) for name, value in vars(part).items()}
    set_environment_of(argv)  # some libraries read it when they are imported
    return check_early(command.options, argv, command.overrides)


def take_debug(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether there is a `--debug` without a value, and all other words. With a value it is an option of TRL."""
    is_flag = [
        word == "--debug" and (not following or following[0].startswith("--"))
        for word, following in ((word, argv[i + 1 : i + 2]) for i, word in enumerate(argv))
    ]
    return any(is_flag), [word for word, flag in zip(argv, is_flag) if not flag]


def refusals() -> tuple[type[Exception], ...]:
    """Errors of bad values, files and servers (the Hub's are OSErrors), missing packages, NaN, too little memory."""
    torch = sys.modules.get("torch")  # slow to import; it cannot have raised an error before
    return (ValueError, OSError, ImportError, FloatingPointError, *([torch.OutOfMemoryError] if torch else []))


def check_packages(command: str) -> None:
    """Raise ImportError if a package of warmup_peft[compare] is not installed."""
    missing = [name for name in COMPARE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{command} needs {', '.join(missing)}. Run: pip install 'warmup_peft[compare]'")


def check_quantization(options: Mapping[str, Any]) -> None:
    """Raise ImportError for options that need bitsandbytes where that is not installed."""
    asked = [name for name in ("load_in_4bit", "load_in_8bit") if options.get(name)]
    if asked and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"{asked[0]} needs bitsandbytes. Run: pip install 'warmup_peft[qlora]', or add --{asked[0]} false."
        )


# ---- Help ----


def print_commands() -> None:
    print("Warmup generations for TRL.\n\nusage: warmup-peft <command> [options]\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<12}{command.help}")
    print("\nwarmup-peft <command> --help lists a command's options; --debug shows the traceback of an error.")
    print("Documentation: README.md")


def print_options(command: Command) -> None:
    print(command.help + "\n")
    if command.has_arms:
        print_arms()
    for options in command.options:
        print((options.__doc__ or "").strip())
        hints = get_type_hints(options)
        for option in dataclasses.fields(options):
            default = f"default: {default_of(option)!r}" if has_default(option) else "required"
            print(f"  --{option.name} {describe(hints[option.name])}  ({default})")
            print(f"        {option.metadata['help']}")
        print()
    if command.has_trls:
        print(
            "Every field of TRL's SFTConfig, ModelConfig and ScriptArguments is an option too, here and in --config:\n"
            "--model_name_or_path, --dataset_name, --output_dir, --use_peft, --load_in_4bit, ...\n"
            "Two defaults differ: --lora_dropout is 0, which encodes prompts once; --learning_rate of an adapter\n"
            "is 2e-4. TRL's options are listed at\n"
            "https://huggingface.co/docs/trl/sft_trainer\n"
        )
    print("For example:", *command.examples, sep="\n  ")


def print_arms() -> None:
    from warmup_peft.comparison.arms import arms_of

    print("Arms, each a change to the recipe (where it sets a warmup_anchor, arms take that one):")
    for arm in arms_of(None).values():
        print(f"  {arm.name}\n        {arm.description}")
    print()


def has_default(option: dataclasses.Field) -> bool:
    return option.default is not dataclasses.MISSING or option.default_factory is not dataclasses.MISSING


def default_of(option: dataclasses.Field) -> Any:
    return option.default if option.default is not dataclasses.MISSING else option.default_factory()
