"""Files that are there whole, or as they were before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
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


def write_together(texts: Mapping[str, str], folder: Path) -> tuple[Path, ...]:
    """Write file name -> text into the folder, made if need be; returns the files' paths.

    Raises:
        OSError: they cannot be written; older files stay as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as room:
        for name, text in texts.items():
            Path(room, name).write_bytes(text.encode("utf-8", errors="replace"))
        for name in texts:
            os.replace(Path(room, name), folder / name)
    return tuple(folder / name for name in texts)
