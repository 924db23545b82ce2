"""Loads the rows of a data set: a local file or folder, line-aligned texts, a folder on the Hub, or a Hub id.

This module knows no task and no tokenizer.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow
from datasets import Dataset, IterableDataset, load_dataset
from datasets import config as datasets_config
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from huggingface_hub import snapshot_download

from warmup_peft.files import first_line, near_path, read_text
from warmup_peft.inference.hub import check_at_hand

JSON_ENDINGS = (".jsonl", ".json", ".txt")
ENDINGS = (*JSON_ENDINGS, ".csv", ".parquet")
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
HUB_FOLDER = "hf://datasets/"
NO_NETWORK = (
    "Without a network, download it elsewhere and name the local file or folder instead "
    "(--dataset_name, or DATA= with make)."
)


class MissingSplitError(ValueError):
    """The data set exists, but it has no such split."""


def load_split(
    name: str,
    split: str,
    config: str | None = None,
    test_split_size: float = 0.0,
    check: Callable[[Dataset], object] | None = None,
) -> Dataset:
    """Rows of one split.

    Args:
        name: one of these: a JSON-lines, JSON, CSV or Parquet file, which is one split; a folder of such files, named
            after their splits (`train.jsonl`, `dev.txt`); such a folder on the Hub
            (`hf://datasets/<user>/<repo>/<folder>`); a Hub id; a folder of line-aligned texts, named
            `<split>.<column>` (`train.de`, `train.en`, also with `.gz`); or several line-aligned texts, separated by
            commas, which are one split.
        split: `train`, `validation`, `test`, or another name that the data set uses.
        config: configuration of a Hub id.
        test_split_size: share of a single file to hold out. The split `train` gets the other rows, and every other
            split gets the held-out rows. With 0, every split gets all rows.
        check: called with all rows of a file of which some are held out, so that it counts them as the file does.

    Raises:
        MissingSplitError: the data set has no such split.
        ValueError: the data does not exist, cannot be read, or is empty.
    """
    if name.startswith(HUB_FOLDER):
        dataset = read_file(find_split(download_folder(name), split))
    elif "," in name:
        dataset = part_of_file(
            read_aligned([Path(part.strip()) for part in name.split(",")]), split, test_split_size, check
        )
    elif Path(name).is_dir():
        aligned = aligned_files(Path(name), split)
        dataset = read_aligned(aligned) if aligned else read_file(find_split(Path(name), split))
    elif Path(name).is_file():
        dataset = part_of_file(read_file(Path(name)), split, test_split_size, check)
    elif Path(name).suffix in ENDINGS or name.startswith((".", "/", "~")):
        raise ValueError(
            f"The data file or folder {name} does not exist. Check --dataset_name (DATA= with make).{near_path(name)}"
        )
    else:
        dataset = load_from_hub(name, split, config)
    if len(dataset) == 0:
        raise ValueError(f"The {split} split of {name} is empty. Give it at least one row.")
    return dataset


def part_of_file(
    dataset: Dataset, split: str, test_split_size: float, check: Callable[[Dataset], object] | None = None
) -> Dataset:
    if not 0 <= test_split_size < 1:
        raise ValueError(f"test_split_size={test_split_size} cannot work. Set it to 0 or more and below 1.")
    if test_split_size == 0 or len(dataset) < 2:
        return dataset
    if check is not None:
        check(dataset)
    parts = dataset.train_test_split(test_size=test_split_size, seed=0)
    return parts["train" if split == "train" else "test"]


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


def read_aligned(paths: Sequence[Path]) -> Dataset:
    """Each text is a column, and each line a row.

    Raises:
        ValueError: a text does not exist, its name gives no column, or the numbers of lines differ.
    """
    columns: dict[str, list[str]] = {}
    for path in paths:
        column = column_of(path)
        if not path.is_file():
            raise ValueError(f"The text {path} does not exist. Check --dataset_name (DATA= with make).")
        if column is None or column in columns:
            raise ValueError(
                f"The name of {path} gives no column of its own. Name it <split>.<column>, for example train.de."
            )
        try:
            text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            columns[column] = text.decode("utf-8").removesuffix("\n").split("\n")
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as text ({first_line(error)}). Was it cut off?") from error
    lengths = {len(lines) for lines in columns.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{path.name} has {len(lines):,}" for path, lines in zip(paths, columns.values()))
        raise ValueError(f"The lines of these texts should be aligned, but {counts} lines. Fix the shorter one.")
    return Dataset.from_dict({name: [line.strip() for line in lines] for name, lines in columns.items()})


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


def download_folder(name: str) -> Path:
    user, repo, *folder = name.removeprefix(HUB_FOLDER).split("/")
    check_at_hand(f"{user}/{repo}", "dataset")
    try:
        root = snapshot_download(f"{user}/{repo}", repo_type="dataset", allow_patterns="/".join([*folder, "*"]))
    except Exception as error:
        raise ValueError(f"{name} cannot be downloaded ({first_line(error)}). {NO_NETWORK}") from error
    return Path(root, *folder)


def stream_split(name: str, split: str, config: str | None = None) -> IterableDataset:
    """Stream the rows of one split of a Hub data set.

    Raises:
        MissingSplitError: the data set has no such split.
        ValueError: the data set is local, or does not exist.
    """
    is_local = Path(name).exists() or Path(name).suffix in ENDINGS or name.startswith((".", "/", "~"))
    if is_local or name.startswith(HUB_FOLDER) or "," in name:
        raise ValueError(
            f"dataset_streaming needs the id of a data set on the Hub, which {name} is not. Leave it out."
        )
    return load_from_hub(name, split, config, streaming=True)


def load_from_hub(name: str, split: str, config: str | None, streaming: bool = False) -> Dataset | IterableDataset:
    if name in _PACKAGED_DATASETS_MODULES:  # `datasets` would read any file in the current folder, pickles too
        raise ValueError(
            f"{name} is a format that `datasets` reads, and no data set. Name a file, a folder or a Hub id."
        )
    check_at_hand(name, "dataset", [Path(datasets_config.HF_DATASETS_CACHE, name.replace("/", "___"))])
    try:
        return load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(("Unknown split", "Bad split")):
            raise MissingSplitError(f"The data set {name} has no split {split} ({first_line(error)}).") from error
        if "scripts are no longer supported" in str(error):
            fix = "It is a loading script, which `datasets` no longer runs; find a copy in JSON, CSV or Parquet."
        else:
            fix = NO_NETWORK
        raise ValueError(
            f"The data set {name} is no local file, and the Hub did not give its split {split} "
            f"({first_line(error)}). {fix}{near_path(name)}"
        ) from error


def read_file(path: Path) -> Dataset:
    """Rows of one file.

    Raises:
        ValueError: the file cannot be read; for JSON lines, the message gives the line number.
    """
    if path.suffix in JSON_ENDINGS:
        try:
            return Dataset.from_list(list(read_json(path)))
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"The rows of {path} have different types of values in one column ({first_line(error)}). Use one "
                "type for each column."
            ) from error
    try:
        return Dataset.from_csv(str(path)) if path.suffix == ".csv" else Dataset.from_parquet(str(path))
    except Exception as error:
        if "corresponds to no data" in str(error):
            return Dataset.from_dict({})
        reason = first_line(error.__cause__ or error)  # `datasets` hides the message of its reader
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from error


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
