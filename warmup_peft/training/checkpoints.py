"""The folder of a training: whether it may be written, and which of its checkpoints are whole. Loads no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from warmup_peft.files import check_writable, read_json
from warmup_peft.inference.folder import RUN_FILES, TRAINER_STATE_NAME, training_seconds


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


def check_output_dir(folder: Path, overwrite: bool, resuming: bool) -> None:
    """Raise ValueError for a folder that holds a run, or that cannot be written."""
    holds_run = folder.is_dir() and bool(checkpoints(folder) or any((folder / name).exists() for name in RUN_FILES))
    if holds_run and not overwrite and not resuming:
        raise ValueError(
            f"{folder} holds another run. Pass --overwrite_output_dir to replace it, --resume_from_checkpoint last to "
            "go on with it, or another --output_dir (with make: ARGS=--overwrite_output_dir, or OUTPUT=)."
        )
    check_writable(folder, "--output_dir")


def seconds_of(folder: str) -> float:
    """Seconds of the training that made this folder. Raises ValueError where it does not say so."""
    seconds = training_seconds(folder)
    if seconds is None:
        raise ValueError(
            f"as_long_as={folder} does not say how long it was trained ({Path(folder, TRAINER_STATE_NAME)} is "
            "missing, or the run was cut off). Name the output_dir of a finished training."
        )
    return seconds
