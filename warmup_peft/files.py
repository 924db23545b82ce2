"""Files that are there whole, or as they were before: whatever another command reads is written here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ValueError: it is in another encoding, or no text at all.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}). Save it as UTF-8."
        ) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, and move it there; folders are made where need be.

    A reader, or whoever comes after a kill, finds the old file or the new one.

    Raises:
        OSError: it cannot be written; an older file stays as it was.
    """
    _write_all({path: write})


def write_text(path: Path, text: str) -> None:
    """`write_whole` with a text, in UTF-8; what UTF-8 cannot hold becomes a question mark."""
    _write_all({path: partial(_write_bytes, text)})


def write_together(texts: Mapping[str, str], folder: Path) -> tuple[Path, ...]:
    """`write_text` for several files of a folder: none is replaced before all are written. Returns their paths."""
    _write_all({folder / name: partial(_write_bytes, text) for name, text in texts.items()})
    return tuple(folder / name for name in texts)


def _write_all(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    unfinished = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in writers}
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(unfinished[path])
        for path, whole in unfinished.items():
            os.replace(whole, path)
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)


def _write_bytes(text: str, path: Path) -> None:
    path.write_bytes(text.encode("utf-8", errors="replace"))
