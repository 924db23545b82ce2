"""`warmup-peft <command>`: one row for each command. Its code is `run(argv)` in `warmup_peft.cli.<command>`."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, get_type_hints

from warmup_peft import __version__
from warmup_peft.settings import arguments
from warmup_peft.settings.early import check_early
from warmup_peft.settings.hub import stay_offline_without_the_hub
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.parsing import (
    describe,
    parse,
    parse_one,
    quieten,
    set_environment_of,
    split_options,
)
from warmup_peft.settings.shipped import shipped_recipes
from warmup_peft.settings.versions import with_fix
from warmup_peft.settings.words import nearest

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


TRAINING = (arguments.RunOptions, WarmupOptions)
FIRST_OF_TRLS = {  # option of TRL's -> what it is, for those who have not read TRL's documentation
    "config": "A recipe: a YAML file of options, or the name of one that comes with the package, as in logiqa.",
    "dataset_name": "Data: a file or folder of JSON lines, CSV or Parquet, or an id on the Hub.",
    "model_name_or_path": "Base: a folder, or an id on the Hub.",
    "load_in_4bit": "true loads the base in 4 bits (QLoRA).",
    "use_peft": "true trains an adapter (LoRA); otherwise the whole model is trained.",
    "lora_r": "Rank of the adapter (default: 16).",
    "lora_target_modules": "Layers that get an adapter, as in all-linear.",
    "output_dir": "Folder of the trained adapter.",
    "learning_rate": "By default 2e-4 for an adapter, and 2e-5 for a whole model.",
    "num_train_epochs": "How often all rows are trained on (default: 3); max_steps wins over it.",
    "max_steps": "Number of optimizer steps.",
    "per_device_train_batch_size": "Rows of a step on each device (default: 8).",
    "max_length": "Most tokens of prompt and answer; longer rows are cut (default: 1024).",
    "resume_from_checkpoint": "A checkpoint to go on from: its folder, or last.",
}
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
    argv = with_first_word(name, argv)
    if command.needs_compare:
        check_packages(name)
    launch, argv = take_launch_options(command, argv)
    options = {} if command.runs_without_packages and not argv else quick_options(command, argv)
    if not command.runs_without_packages:
        check_quantization(options)
    if options and (nothing_left := early_check(name, options)):
        print(nothing_left)
        return
    stay_offline_without_the_hub(options)
    if launch.accelerate_config is not None:
        imported("warmup_peft.cli.launch").launch(name, argv, launch)
        return
    imported(f"warmup_peft.cli.{name}").run(argv)


def imported(module: str) -> ModuleType:
    """A module of this package. Garbage is not looked for while it imports torch, which would take an eighth of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if was_on:
            gc.enable()


def with_first_word(name: str, argv: list[str]) -> list[str]:
    """The words, with the name of the option that the first one may be given without. Raises ValueError without it."""
    command = COMMANDS[name]
    if command.first_word is None:
        return argv
    if argv and not argv[0].startswith("-"):
        return [f"--{command.first_word}", *argv]
    if not any(word.split("=")[0] == f"--{command.first_word}" for word in argv):
        more = f" The recipes are {', '.join(shipped_recipes())}." if name == "init" else ""
        raise ValueError(f"{name} needs a {command.first_word}, as in: {command.examples[0]}.{more}")
    return argv


def early_check(name: str, options: Mapping[str, Any]) -> str | None:
    """As `warmup_peft.cli.early.check`, which takes half a second to import."""
    from warmup_peft.cli.early import check

    return check(name, options)


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
    if command.has_trls:
        print("What most trainings set. These options are TRL's, and may stand in the recipe of --config, as all may.")
        for name, text in FIRST_OF_TRLS.items():
            print(f"  --{name}\n        {text}")
        print()
    for kind, options in sections(command):
        print((kind.__doc__ or "").strip())
        hints = get_type_hints(kind)
        for option in options:
            default = f"default: {default_of(option)!r}" if has_default(option) else "required"
            print(f"  --{option.name} {describe(hints[option.name])}  ({default})")
            print(f"        {option.metadata['help']}")
        print()
    if command.has_trls:
        print(
            "Every other field of TRL's SFTConfig, ModelConfig and ScriptArguments is an option, too.\n"
            "Two defaults differ: --lora_dropout is 0, which encodes prompts once; --learning_rate of an adapter\n"
            "is 2e-4. TRL's options are listed at\n"
            "https://huggingface.co/docs/trl/sft_trainer\n"
        )
    print("For example:", *command.examples, sep="\n  ")


def sections(command: Command) -> list[tuple[type, list[dataclasses.Field]]]:
    """The options in the order of their use: a command's own ones, then those that its dataclasses inherit."""
    found: dict[type, list[dataclasses.Field]] = {}
    own = [kind for kind in command.options if dataclasses.is_dataclass(kind)]
    inherited = [base for kind in own for base in kind.__mro__[1:] if dataclasses.is_dataclass(base)]
    taken: set[str] = set()
    for kind in (*own, *inherited):
        names = [name for name in inspect.get_annotations(kind) if name not in taken]
        fields = {option.name: option for option in dataclasses.fields(kind)}
        found[kind] = [fields[name] for name in names if name in fields]
        taken |= set(names)
    return [(kind, options) for kind, options in found.items() if options]


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
