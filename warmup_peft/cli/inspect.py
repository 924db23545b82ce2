"""`warmup-peft inspect`: the warmups of a run, and where they change the answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from warmup_peft.comparison.formatting import share_text
from warmup_peft.comparison.inspection import CLASSES, Inspection, inspect
from warmup_peft.comparison.report.inspection_report import (
    changed_text,
    use_of_warmups,
    worth_of_warmups,
    write_inspection,
)
from warmup_peft.evaluation.metrics import metric_name, score_text
from warmup_peft.files import check_writable
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.hub import with_local_folder
from warmup_peft.settings.arguments import InspectArguments, check_counts
from warmup_peft.settings.parsing import parse_one


def run(argv: Sequence[str]) -> None:
    """Answer held-out rows with and without warmups; show and write what was found.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    options = parse_one(InspectArguments, argv)
    check_counts(options, batch_size=1, max_samples=1)
    named = options
    options = with_local_folder(named, "run")
    if options.run != named.run and options.output_dir is None:
        raise ValueError(f"{named.run} is on the Hub, so its report needs a folder. Add --output_dir <folder>.")
    if WarmupConfig.load(options.run).max_warmup_length == 0:
        raise ValueError(f"{options.run} writes no warmups (max_warmup_length is 0), so there is nothing to inspect.")
    folder = Path(options.output_dir or options.run)
    check_writable(folder, "--output_dir")
    inspection = inspect(options)
    path = write_inspection(inspection, folder)
    show(inspection)
    print(f"Report: {path}")


def show(inspection: Inspection) -> None:
    console = Console()
    metric = inspection.metric
    kinds = Table(title="What the warmups say", show_header=False)
    for kind, rows in inspection.classes().items():
        kinds.add_row(kind, share_text(len(rows) / len(inspection.rows)), CLASSES[kind])
    common = Table("warmup", "rows", metric_name(metric), title="Most frequent warmups")
    for text, count, score in inspection.common():
        common.add_row(escape(text) or "(empty)", str(count), score_text(metric, score))
    console.print(kinds, common)
    for sentence in (worth_of_warmups(inspection), use_of_warmups(inspection.warmups), changed_text(inspection)):
        console.print(sentence, highlight=False, markup=False)
