"""Tables for the trackers of `report_to`: warmups, and answers with their scores.

Numbers go to every tracker that transformers knows, by its own callbacks. Tables are sent to those that can show one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from transformers import Trainer
from transformers.integrations import TensorBoardCallback

MARKUP = re.compile(r"[\\`*_|<>#\[\]]")  # of Markdown, which TensorBoard renders
Row = dict[str, Any]


def send_table(trainer: Trainer, name: str, rows: Sequence[Row], step: int) -> None:
    """Send a table to the trackers of `trainer.args.report_to`.

    Args:
        name: of the table, such as "warmups".
        rows: each with the same columns.
        step: optimizer steps done; a column of the table.
    """
    for tracker in trainer.args.report_to:
        if tracker in TABLES:
            TABLES[tracker](trainer, name, [{"step": step, **row} for row in rows])


def to_wandb(_: Trainer, name: str, rows: Sequence[Row]) -> None:
    _log_table("wandb", name, rows)


def to_trackio(_: Trainer, name: str, rows: Sequence[Row]) -> None:
    _log_table("trackio", name, rows)


def _log_table(tracker_name: str, name: str, rows: Sequence[Row]) -> None:
    tracker = importlib.import_module(tracker_name)
    tracker.log({name: tracker.Table(dataframe=pd.DataFrame(rows))})


def to_tensorboard(trainer: Trainer, name: str, rows: Sequence[Row]) -> None:
    """As text; TensorBoard has no tables. Its writer is there once a training has begun."""
    callbacks = trainer.callback_handler.callbacks
    writers = [each.tb_writer for each in callbacks if isinstance(each, TensorBoardCallback) and each.tb_writer]
    for writer in writers:
        writer.add_text(name, markdown_table(rows), rows[0]["step"])


def to_mlflow(_: Trainer, name: str, rows: Sequence[Row]) -> None:
    """The rows are appended to one table of the run, `<name>.json` among its artifacts."""
    importlib.import_module("mlflow").log_table(data=pd.DataFrame(rows), artifact_file=f"{name}.json")


TABLES = {"wandb": to_wandb, "trackio": to_trackio, "tensorboard": to_tensorboard, "mlflow": to_mlflow}


def markdown_table(rows: Sequence[Row]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
