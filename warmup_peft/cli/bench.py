"""`warmup-peft bench`: what do warmups cost on my machine? Times one training step in several ways in one process.

`warmup_peft.training.benchmark` has the ways, and takes the steps. Compare the ratios, not the seconds. Beside the
peak memory of an arm of ours stands what `warmup_peft.training.memory` predicts for it. With `--predict true` that is
all there is: no weights are read and nothing is run.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from warmup_peft.cli.early import check_bench
from warmup_peft.files import write_json
from warmup_peft.settings.arguments import BenchArguments
from warmup_peft.settings.bench import ARMS, OURS
from warmup_peft.settings.parsing import parse_one
from warmup_peft.training.benchmark import SEPARATOR, Arm, build_arms, measure, read_config
from warmup_peft.training.memory import MARGIN, PredictedMemory, Step, predicted_memory
from warmup_peft.training.monitor import log_console

GB = 2**30  # as makers of cards count
LARGEST_BATCH = 1024


# ---- Predicting ----


def step_of(options: BenchArguments, arm: str, batch_size: int) -> Step | None:
    """What an arm does with that many examples; None for an arm that is not ours."""
    changes = ARMS[arm]
    if changes is None:
        return None
    return Step(
        batch_size=batch_size,
        num_warmups=options.num_warmups,
        prompt_length=options.prompt_length,
        max_warmup_length=options.max_warmup_length,
        target_length=options.target_length,
        separator_length=len(SEPARATOR),
        dtype=getattr(torch, options.dtype),
        load_in_4bit=options.load_in_4bit,
        gradient_checkpointing=options.gradient_checkpointing,
        **{name: value for name, value in changes.items() if name != "prefix_sharing"},
        shares=changes.get("prefix_sharing") != "never",
    )


def predict(options: BenchArguments, arm: str, batch_size: int) -> PredictedMemory | None:
    """Bytes of an arm's step; None for an arm that is not ours."""
    step = step_of(options, arm, batch_size)
    return None if step is None else predicted_memory(read_config(options), step)


def largest_fitting(options: BenchArguments, arm: str) -> tuple[int, PredictedMemory]:
    """The largest batch, a power of two, that fits into the card with `MARGIN` left free, and what it takes.

    Where not even a batch of one fits, the size is 0, and the memory is that of one.
    """
    room = options.card_memory * GB * (1 - MARGIN)
    size, memory = 1, predict(options, arm, 1)
    if memory.total > room:
        return 0, memory
    while size < LARGEST_BATCH:
        larger = predict(options, arm, 2 * size)
        if larger.total > room:
            break
        size, memory = 2 * size, larger
    return size, memory


def run_prediction(options: BenchArguments) -> dict[str, Any]:
    """Print, for each arm of ours, the parts of its memory and a sentence, and write them as JSON.

    Without `card_memory` it is about `batch_size`, with it about the largest batch that fits.
    """
    check_bench(options)
    arms = []
    for name in (name for name in options.arms if name in OURS):
        if options.card_memory is None:
            size, memory = options.batch_size, predict(options, name, options.batch_size)
        else:
            size, memory = largest_fitting(options, name)
        arms.append({"arm": name, "batch_size": size, "predicted_bytes": memory.summary()})
        arms[-1]["sentence"] = sentence(options, size, memory)
    result = {"settings": dataclasses.asdict(options), "arms": arms}
    console = log_console()
    console.print(prediction_table(result))
    for arm in arms:
        console.print(f"{arm['arm']}: {arm['sentence']}", soft_wrap=True, highlight=False)
    if options.card_memory is not None:
        console.print(f"{MARGIN:.0%} of the card are left free, for what CUDA and its allocator take themselves.")
    write_result(options, result)
    return result


def sentence(options: BenchArguments, batch_size: int, memory: PredictedMemory) -> str:
    """Such as "Llama-3.2-1B, NF4, 24 GB: fits with batch 4 at W 512; 16.1 GB"."""
    what = options.model_name_or_path or options.shape
    words = [Path(what).name, "NF4" if options.load_in_4bit else options.dtype]
    at, size = f"batch {batch_size or 1} at W {options.max_warmup_length}", f"{memory.total / GB:.1f} GB"
    if options.card_memory is None:
        return f"{', '.join(words)}: {at}; {size}"
    verdict = "fits with" if batch_size else "does not fit, even with"
    return f"{', '.join(words)}, {options.card_memory:g} GB: {verdict} {at}; {size}"


def prediction_table(result: dict[str, Any]) -> Table:
    settings = result["settings"]
    table = Table(
        title=f"Predicted memory of a step in GB: prompt {settings['prompt_length']}, target "
        f"{settings['target_length']}, K {settings['num_warmups']}, W {settings['max_warmup_length']}"
        + (", gradient checkpointing" if settings["gradient_checkpointing"] else "")
    )
    table.add_column("")
    for arm in result["arms"]:
        table.add_column(f"{arm['arm']}, batch {arm['batch_size'] or 1}", justify="right")
    columns = [dict(arm["predicted_bytes"]) for arm in result["arms"]]
    for column in columns:
        column |= {f"peak: {moment}": size for moment, size in column.pop("moments").items()}
        column["total"] = column.pop("total")  # the last row
    for part in dict.fromkeys(part for column in columns for part in column):
        sizes = [f"{column[part] / GB:.2f}" if part in column else "" for column in columns]
        table.add_row(part.replace("_", " "), *sizes, style="bold" if part == "total" else None)
    return table


# ---- Running ----


def run(argv: Sequence[str]) -> None:
    options = parse_one(BenchArguments, argv)
    (run_prediction if options.predict else run_bench)(options)


def run_bench(options: BenchArguments) -> dict[str, Any]:
    """Measure, print the table and, if `output_file` is given, write the results as JSON.

    Raises:
        ValueError: a shape or an arm is unknown, a count cannot work, or the folder of `output_file` does not exist.
    """
    check_bench(options)
    with tempfile.TemporaryDirectory() as folder:
        arms = build_arms(options, folder)
        measure(arms, options.steps)
    for arm in arms:
        try:
            arm.predicted = predict(options, arm.name, options.batch_size)
        except ValueError as error:  # what was measured is not lost for it
            log_console().print(f"{arm.name}: {error}", soft_wrap=True, highlight=False)
    result = {
        "settings": dataclasses.asdict(options),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arms": summaries(arms, options),
    }
    log_console().print(bench_table(result))
    write_result(options, result)
    return result


def summaries(arms: list[Arm], options: BenchArguments) -> list[dict[str, Any]]:
    """What was measured of each arm, in seconds and bytes; no seconds where no step was timed."""
    found = [
        {
            "arm": arm.name,
            "peak_bytes": arm.peak_bytes,
            "predicted_bytes": None if arm.predicted is None else arm.predicted.summary(),
        }
        for arm in arms
    ]
    if options.steps:
        sft = statistics.median(next(arm for arm in arms if arm.name == "sft").seconds)
        for summary, arm in zip(found, arms):
            seconds = statistics.median(arm.seconds)
            summary |= {
                "median_seconds": seconds,
                "ratio_to_sft": seconds / sft,
                "examples_per_second": options.batch_size / seconds,
                "split_seconds": arm.split(),
            }
    return found


def write_result(options: BenchArguments, result: dict[str, Any]) -> None:
    if options.output_file is not None:
        write_json(Path(options.output_file), result)
        print(f"Written to {options.output_file}")


def bench_table(result: dict[str, Any]) -> Table:
    settings = result["settings"]
    what = settings["model_name_or_path"] or settings["shape"]
    table = Table(
        title=f"One training step: {what} on {result['device']}, batch {settings['batch_size']}, prompt "
        f"{settings['prompt_length']}, target {settings['target_length']}, K {settings['num_warmups']}, "
        f"W {settings['max_warmup_length']}"
    )
    arms, is_timed = result["arms"], settings["steps"] > 0
    parts = list(dict.fromkeys(part for arm in arms for part in arm.get("split_seconds", ())))
    timed = ("seconds", "to SFT", "examples/s") if is_timed else ()
    first = next((arm for arm in arms if arm["arm"] == "sft"), arms[0])
    table.add_column("", no_wrap=True)
    for column in (*timed, "peak MiB", "predicted", f"to {'SFT' if first['arm'] == 'sft' else first['arm']}", *parts):
        table.add_column(column, justify="right")
    for arm in arms:
        cells = [
            f"{arm['peak_bytes'] / 2**20:.0f}",
            f"{arm['predicted_bytes']['total'] / 2**20:.0f}" if arm["predicted_bytes"] else "",
            f"{arm['peak_bytes'] / first['peak_bytes']:.2f}",
        ]
        if is_timed:
            seconds, ratio, speed = (arm[key] for key in ("median_seconds", "ratio_to_sft", "examples_per_second"))
            split = arm["split_seconds"]
            cells = [f"{seconds:.3f}", f"{ratio:.2f}", f"{speed:.2f}", *cells]
            cells += [f"{split[part]:.3f}" if part in split else "" for part in parts]
        table.add_row(arm["arm"], *cells)
    return table
