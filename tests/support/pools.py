"""What lies in a pool's folder, read without the pool's own code."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset


def rows_in(folder: Path) -> list[dict]:
    """Every prompt's row, file by file."""
    return [row for path in sorted(folder.glob("part-*.arrow")) for row in Dataset.from_file(str(path)).to_list()]
