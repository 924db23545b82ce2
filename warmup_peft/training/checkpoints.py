"""Checkpoints of a training: which of them are whole, and how an adapter comes back from one as it was saved."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from warmup_peft.files import read_json


def checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints in a run's folder, whole or not, the last one at the end."""
    named = (path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit())
    folders = (path for path in named if path.is_dir() and not path.is_symlink())
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def is_whole(checkpoint: str | Path) -> bool:
    """Whether its state can be read, which the trainer writes when everything else is there."""
    try:
        read_json(Path(checkpoint, TRAINER_STATE_NAME))
    except (OSError, ValueError):
        return False
    return True


def last_checkpoint(folder: str | Path) -> Path | None:
    """The last whole checkpoint; None where there is none."""
    return next((path for path in reversed(checkpoints(folder)) if is_whole(path)), None)


def remove_unfinished(folder: str | Path) -> None:
    """Remove the checkpoints that were cut short: nobody can go on from them, and they take room."""
    for path in checkpoints(folder):
        if not is_whole(path):
            shutil.rmtree(path, ignore_errors=True)


def checkpoint_to_resume(name: str | bool | None, folder: str | Path) -> str | None:
    """The checkpoint that a run in `folder` is to go on from; None where it starts anew.

    Args:
        name: a checkpoint's folder; `true` or `last` name the last whole one; `false` or nothing, none.

    Raises:
        ValueError: there is none, or the one that is named is not whole.
    """
    if not name or str(name).lower() == "false":
        return None
    if str(name).lower() in ("true", "last"):
        name = last_checkpoint(folder)
        if name is None:
            raise ValueError(f"There is no checkpoint in {folder} to resume from. Start the run without it.")
    if not Path(name, TRAINER_STATE_NAME).is_file():
        raise ValueError(f"{name} is no checkpoint. Name a folder such as {folder}/checkpoint-100.")
    if not is_whole(name):
        raise ValueError(f"{name} was cut short while it was written. Name an earlier one, or 'last'.")
    return str(name)


@contextmanager
def adapters_load_as_saved(model: nn.Module) -> Iterator[None]:
    """Let `load_adapter`, as transformers calls it, keep a 16-bit adapter; peft's default makes it float32."""
    if not isinstance(model, PeftModel):
        yield
        return
    model.load_adapter = functools.partial(model.load_adapter, autocast_adapter_dtype=False)
    try:
        yield
    finally:
        del model.load_adapter
