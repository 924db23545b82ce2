"""`warmup-peft inspect`: the warmups of a run, and where they change the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from warmup_peft.comparison.inspection import inspect_warmups
from warmup_peft.comparison.report.terminal import print_inspection
from warmup_peft.files import check_writable
from warmup_peft.inference.hub import local_folder
from warmup_peft.settings.arguments import InspectArguments
from warmup_peft.settings.parsing import parse_one

OF_THE_COMMAND = ("run", "dataset_name", "task", "output_dir")


def run(argv: Sequence[str]) -> None:
    """Answer held-out rows with and without warmups; show and write what was found.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    options = parse_one(InspectArguments, argv)
    folder = options.run if options.output_dir is None else options.output_dir
    if options.output_dir is None and local_folder(options.run, options.revision) != options.run:
        raise ValueError(f"{options.run} is on the Hub, so its report needs a folder. Add --output_dir <folder>.")
    check_writable(Path(folder), "--output_dir")
    others = {name: value for name, value in vars(options).items() if name not in OF_THE_COMMAND}
    inspection = inspect_warmups(options.run, options.dataset_name, options.task, **others)
    path = inspection.report(folder)
    print_inspection(inspection, Console())
    print(f"Report: {path}")
