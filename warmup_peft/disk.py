"""Where the disk is full."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = ("No space left on device", "Disk quota exceeded")
LEAST_FREE = 4096  # bytes: a file that was cut short has taken all but the rest of a block


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
