"""Reading and writing files. Every write is atomic: even if the process is killed, a file is either new or unchanged.

Also checks whether a folder can be written, and explains errors of a full disk in one sentence.
"""

from __future__ import annotations

import difflib
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

HELD = ".warmup_peft.lock"  # in a scratch folder; locked while its process lives
NO_SPACE = ("No space left on device", "Disk quota exceeded")
LEAST_FREE = 4096  # bytes; a disk with less than one free block is full


def read_text(path: Path) -> str:
    """The content of a UTF-8 text file.

    Raises:
        ValueError: the file is not valid UTF-8.
        OSError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}). Save it as UTF-8."
        ) from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises ValueError if the file is not valid JSON."""
    return json.loads(read_text(path))


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Write a value as indented JSON; `options` go to `json.dumps`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, **options) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write one text file, atomically."""
    write_together({path.name: text}, path.parent)


def write_together(contents: Mapping[str, str | bytes], folder: Path) -> tuple[Path, ...]:
    """Write several files (name -> content) into a folder, which is created if needed. Returns their paths.

    Raises:
        OSError: a file cannot be written. None of the files is changed then.
    """
    with replacing_files(folder) as staging:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else content.encode("utf-8", errors="replace")
            (staging / name).write_bytes(data)
    return tuple(folder / name for name in contents)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path and move the result to `path`, so that `path` never holds half a file."""
    with replacing_files(path.parent) as staging:
        write(staging / path.name)


@contextmanager
def scratch_folder(place: Path, prefix: str = ".writing-") -> Iterator[Path]:
    """A temporary folder inside `place`, removed at the end. Folders left by killed processes are removed first.

    Raises:
        OSError: `place` cannot be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place, prefix)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=prefix))
    try:
        with FileLock(folder / HELD):
            try:
                yield folder
            finally:
                remove_scratch(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Windows removes no lock that is held


def remove_scratch(folder: Path) -> None:
    """Remove a scratch folder, its lock file last: if this is interrupted, the rest can still be recognised."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != HELD:
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(place: Path, prefix: str = ".writing-") -> None:
    """Remove the scratch folders in `place` whose process no longer runs."""
    for folder in place.glob(f"{glob.escape(prefix)}????????"):
        with suppress(Timeout, OSError):  # its process still runs, or another process is removing it
            if not (folder / HELD).is_file():
                folder.rmdir()  # its process was killed before it made the lock
                continue
            with FileLock(folder / HELD, timeout=0):
                remove_scratch(folder)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into. At the end its files are moved into `folder`; after an error, none is."""
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
    """Explain an error of the block in one sentence if it is caused by the full disk of `folder`.

    Args:
        how_to_go_on: returns a sentence that says how to continue; only called if there is such an error.
    """
    try:
        yield
    except Exception as error:
        if not is_full(Path(folder), error):
            raise
        raise OSError(f"The disk of {folder} is full. {how_to_go_on()}") from error


def is_full(folder: Path, error: Exception) -> bool:
    """Whether the disk is the cause of `error`. torch's error does not say so, so the free space is checked."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return any(words in str(error) for words in NO_SPACE) or (
        isinstance(error, RuntimeError) and shutil.disk_usage(place).free < LEAST_FREE
    )


def check_writable(folder: Path, option: str) -> None:
    """Raise ValueError if the folder cannot be written.

    Args:
        option: the option that sets the folder, for the error message.
    """
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written ({error.strerror}). Choose another {option}."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def near_path(name: str) -> str:
    """A question for the file or folder beside a missing one that is meant; empty where nothing is called like it."""
    path = Path(name)
    beside = sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []
    names = {**{Path(each).stem: each for each in beside}, **{each: each for each in beside}}
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f" Did you mean {path.parent / names[close[0]]}?" if close else ""
