"""Writing where things go wrong: a disk that is full, a process that is killed."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

HELD = ".warmup_peft.lock"  # in a scratch folder, while its process lives
NO_SPACE = ("No space left on device", "Disk quota exceeded")
LEAST_FREE = 4096  # bytes: a file that was cut short has taken all but the rest of a block


@contextmanager
def scratch_folder(place: Path, prefix: str = ".writing-") -> Iterator[Path]:
    """An empty folder in `place`, which is gone at the end; those that killed processes left there go at the start.

    Raises:
        OSError: nothing can be written there.
    """
    place.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place, prefix)
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix) as name, FileLock(Path(name, HELD)):
        yield Path(name)


def remove_abandoned(place: Path, prefix: str = ".writing-") -> None:
    """Remove the scratch folders in `place` whose processes are gone, and no other folder."""
    for folder in place.glob(f"{glob.escape(prefix)}????????"):
        if (folder / HELD).is_file():
            try:
                with FileLock(folder / HELD, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
            except Timeout:  # its process lives
                continue


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
