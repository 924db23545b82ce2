"""Files that are there whole, or as they were before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from warmup_peft.disk import replacing_files


def write_together(texts: Mapping[str, str], folder: Path) -> tuple[Path, ...]:
    """Write file name -> text into the folder, made if need be; returns the files' paths.

    Raises:
        OSError: they cannot be written; older files stay as they were.
    """
    with replacing_files(folder) as staging:
        for name, text in texts.items():
            (staging / name).write_bytes(text.encode("utf-8", errors="replace"))
    return tuple(folder / name for name in texts)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file elsewhere and move it to `path`, so that it is whole or as it was before."""
    with replacing_files(path.parent) as staging:
        write(staging / path.name)
