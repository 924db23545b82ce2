"""`--accelerate_config`: run a training command in several processes, as `trl sft` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from warmup_peft.settings.arguments import LaunchOptions, check_counts
from warmup_peft.settings.parsing import read_config
from warmup_peft.settings.shipped import ACCELERATE_CONFIGS

CHILD = "warmup_peft.cli"


def launch(command: str, argv: Sequence[str], options: LaunchOptions) -> None:
    """Run `warmup-peft <command> <argv>` in the processes of an accelerate configuration.

    Precision is the recipe's, whatever the configuration says.

    Raises:
        ValueError: an unknown configuration.
        SystemExit: a process failed; it has said why. Has that process's exit code.
    """
    check_counts(options, num_processes=1)
    words = ["--config_file", config_file(options.accelerate_config), "--mixed_precision", "no"]
    words += ["--num_processes", str(num_processes(options))]
    args = launch_command_parser().parse_args([*words, "--module", CHILD, command, *argv])
    try:
        launch_command(args)
    except ChildFailedError as error:
        raise SystemExit(error.get_first_failure()[1].exitcode) from None


def config_file(name: str) -> str:
    """A file of that name, our own configuration, or one that TRL brings. Raises ValueError if there is none."""
    for path in (Path(name), ACCELERATE_CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return str(path)
    try:
        return resolve_accelerate_config_argument(["--accelerate_config", name])[1]
    except ValueError as error:
        raise ValueError(
            f"accelerate_config={name} is neither a file nor known. Take one_gpu, multi_gpu, fsdp2 or zero2, or "
            "name a file that `accelerate config` wrote."
        ) from error


def num_processes(options: LaunchOptions) -> int:
    """As many as asked for, or as the user's own file says, or one for each GPU."""
    if options.num_processes is not None:
        return options.num_processes
    file = Path(config_file(options.accelerate_config))
    config = read_config(file)
    says = config.get("num_processes")
    is_examples = file.resolve() != Path(options.accelerate_config).resolve()  # TRL's say 8, whatever there is
    if says and not (is_examples and says > 1):
        return says
    return max(1, torch.cuda.device_count())
