"""Files that are there whole, or as they were before, even where a process is killed while it writes them.

And a sentence where a folder cannot be written, or its disk is full.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

HELD = ".warmup_peft.lock"  # in a scratch folder, while its process lives
NO_SPACE = ("No space left on device", "Disk quota exceeded")
LEAST_FREE = 4096  # bytes: a file that was cut short has taken all but the rest of a block


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


def read_json(path: Path) -> Any:
    """The value that a JSON file holds; ValueError where it holds none."""
    return json.loads(read_text(path))


def write_json(path: Path, value: Any, **options: Any) -> None:
    """`options` are `json.dumps`'s."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, **options) + "\n")


def write_text(path: Path, text: str) -> None:
    """`write_together` of one file."""
    write_together({path.name: text}, path.parent)


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


@contextmanager
def scratch_folder(place: Path, prefix: str = ".writing-") -> Iterator[Path]:
    """An empty folder in `place`, which is gone at the end; those that killed processes left there go at the start.

    Raises:
        OSError: nothing can be written there.
    """
    place.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place, prefix)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
    with FileLock(folder / HELD):
        try:
            yield folder
        finally:
            remove_scratch(folder)


def remove_scratch(folder: Path) -> None:
    """Remove a scratch folder; where a kill comes between, what is left is known for one."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != HELD:
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path, prefix: str = ".writing-") -> None:
    """Remove the scratch folders in `place` whose processes are gone, and no other folder."""
    for folder in place.glob(f"{glob.escape(prefix)}????????"):
        with suppress(Timeout, OSError):  # its process lives, or another one removes it
            if not (folder / HELD).is_file():
                folder.rmdir()  # as empty as its process left it
                continue
            with FileLock(folder / HELD, timeout=0):
                remove_scratch(folder)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files take their places in `folder` at the end; after an error, none does."""
    with scratch_folder(folder) as room:
        staging = room / "new"
        staging.mkdir()
        yield staging
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


@contextmanager
def saying_where_the_disk_is_full(folder: str | Path, how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Raise OSError with a sentence where what the block writes into `folder` does not fit.

    Args:
        how_to_go_on: gives a sentence, when it is needed.
    """
    try:
        yield
    except Exception as error:
        if not is_full(Path(folder), error):
            raise
        raise OSError(f"The disk of {folder} is full. {how_to_go_on()}") from error


def is_full(folder: Path, error: Exception) -> bool:
    """Whether this is why `error` was raised. torch's says nothing of the disk, so that is looked at."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return any(words in str(error) for words in NO_SPACE) or (
        isinstance(error, RuntimeError) and shutil.disk_usage(place).free < LEAST_FREE
    )


def check_writable(folder: Path, option: str) -> None:
    """Raise ValueError, naming the option that chose the folder, where nothing can be written there."""
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written ({error.strerror}). Choose another {option}."
        ) from error


def first_line(error: Exception) -> str:
    """Of an error's message; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
