"""Writes the puzzles of a world, as rows of the LogiQA 2.0 schema, one JSON object a line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_jsonl(puzzles: Sequence[Any], path: Path, first_id: int) -> None:
    """Writes one row a line, with ids counted from `first_id`."""
    rows = (puzzle.row(row_id) for row_id, puzzle in enumerate(puzzles, start=first_id))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def main(generate_splits: Callable[[int], Mapping[str, Sequence[Any]]], folder: Path, seed: int) -> None:
    """The command line of a world's `make_data.py`.

    Args:
        generate_splits: a seed -> the puzzles of each split.
        folder: of the files, where the command line names none.
        seed: where the command line names none.
    """
    parser = argparse.ArgumentParser(description="Write the world's train, validation and test puzzles.")
    parser.add_argument("--folder", type=Path, default=folder, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=seed)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    next_id = 0
    for name, puzzles in generate_splits(args.seed).items():
        path = args.folder / f"{name}.jsonl"
        write_jsonl(puzzles, path, next_id)
        next_id += len(puzzles)
        print(f"{path}: {len(puzzles)} puzzles, {path.stat().st_size:,} bytes")
