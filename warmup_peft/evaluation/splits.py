"""Local data, as far as its files say without being read: what is there, and which files are which split.

Also reads JSON lines. Loads neither `datasets` nor torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from warmup_peft.files import near_path, read_text

JSON_ENDINGS = (".jsonl", ".json", ".txt")
ENDINGS = (*JSON_ENDINGS, ".csv", ".parquet")
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
HUB_FOLDER = "hf://datasets/"


class MissingSplitError(ValueError):
    """The data set exists, but it has no such split."""


def parts_of(name: str) -> list[Path]:
    """The texts that a name with commas lists."""
    return [Path(part.strip()) for part in name.split(",")]


def check_data_is_named(name: str | None) -> None:
    if name is None:
        raise ValueError("No data is named. Set --dataset_name to a file, a folder or a Hub id.")


def check_is_there(name: str, split: str) -> None:
    """Raise ValueError if data that can only be local are not there, or a local folder lacks the split."""
    path = Path(name)
    if name.startswith(HUB_FOLDER) or path.is_file():
        return
    if "," in name:
        for part in parts_of(name):
            if not part.is_file():
                raise ValueError(f"The text {part} does not exist. Check --dataset_name (DATA= with make).")
    elif path.is_dir():
        if not aligned_files(path, split):
            find_split(path, split)
    elif path.suffix in ENDINGS or name.startswith((".", "/", "~")):
        raise ValueError(
            f"The data file or folder {name} does not exist. Check --dataset_name (DATA= with make).{near_path(name)}"
        )


def check_streams(name: str) -> None:
    """Raise ValueError if data cannot be streamed, because they are local."""
    is_local = Path(name).exists() or Path(name).suffix in ENDINGS or name.startswith((".", "/", "~"))
    if is_local or name.startswith(HUB_FOLDER) or "," in name:
        raise ValueError(
            f"dataset_streaming needs the id of a data set on the Hub, which {name} is not. Leave it out."
        )


def check_test_split_size(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"test_split_size={share} cannot work. Set it to 0 or more and below 1.")


def has_split(name: str, split: str) -> bool:
    """Whether a local folder has the split. True for every other kind of data."""
    return not Path(name).is_dir() or bool(split_files(Path(name), split) or aligned_files(Path(name), split))


def is_one_split(name: str) -> bool:
    """Whether the name is a file or a list of line-aligned texts, so that all rows are one split."""
    return Path(name).is_file() or "," in name


def is_same_source(name: str, other: str | None) -> bool:
    return other is not None and (name == other or Path(name).resolve() == Path(other).resolve())


def split_files(folder: Path, split: str) -> list[Path]:
    names = SPLIT_NAMES.get(split, (split,))
    return sorted(path for path in folder.iterdir() if path.stem in names and path.suffix in ENDINGS)


def aligned_files(folder: Path, split: str) -> list[Path]:
    """Line-aligned texts of a split, such as `train.de` and `train.en.gz`; none if the split has a file of rows."""
    names = SPLIT_NAMES.get(split, (split,))
    files = [path for path in sorted(folder.iterdir()) if path.name.split(".")[0] in names and path.is_file()]
    texts = [path for path in files if column_of(path)]
    return texts if len(texts) > 1 and not split_files(folder, split) else []


def column_of(path: Path) -> str | None:
    """`de` for `train.de` and for `train.de.gz`."""
    parts = path.name.removesuffix(".gz").split(".")
    return parts[-1] if len(parts) > 1 and f".{parts[-1]}" not in ENDINGS else None


def shows_boundary(columns: Iterable[str]) -> bool:
    """Whether rows with these columns show where the prompt ends and the target begins, as TRL has them."""
    columns = set(columns)
    return bool(
        {"prompt", "completion"} <= columns
        or ("input_ids" in columns and {"labels", "completion_mask", "assistant_masks"} & columns)
        or {"messages", "conversations"} & columns
    )


def check_columns(name: str, columns: Iterable[str]) -> None:
    """Raise ValueError if the rows of some data, which no task reads, do not show where the prompt ends."""
    if not shows_boundary(columns):
        raise ValueError(
            f"The rows of {name} (columns {', '.join(sorted(columns))}) do not show where the prompt ends and the "
            "target begins. Give them the columns `prompt` and `completion`, or `messages`; or name a task that reads "
            "these columns with --task, as --task logiqa does for text, question, options and answer."
        )


def columns_of(name: str, split: str) -> list[str]:
    """The columns of the first row of local JSON lines; none where that is not known without reading all."""
    path = Path(name)
    if path.is_dir() and not aligned_files(path, split):
        path = find_split(path, split)
    if path.suffix not in JSON_ENDINGS or not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            row = json.loads(file.readline())
        except json.JSONDecodeError:  # whoever reads it all says where
            return []
    return list(row) if isinstance(row, dict) else []


def find_split(folder: Path, split: str) -> Path:
    files = split_files(folder, split)
    if len(files) != 1:
        there = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in ENDINGS)) or "no data file"
        problem = "has no file" if not files else "has more than one file"
        raise (ValueError if files else MissingSplitError)(
            f"{folder} {problem} for the split {split} (it holds: {there}). Name the file {split}.jsonl (or .json, "
            ".csv, .parquet), or choose another split."
        )
    return files[0]


def read_json(path: Path) -> Iterator[dict]:
    """Rows of a JSON-lines file, or of a JSON file that holds one list."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        lines = [(1, text)]
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number + error.lineno - 1} is no whole JSON value ({error.msg}). Was the file cut "
                "off? Fix or remove that line."
            ) from error
        rows = value if isinstance(value, list) else [value]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}, line {number} is no JSON object. Write one row {{...}} per line.")
        yield from rows
