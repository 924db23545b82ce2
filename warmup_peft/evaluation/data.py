"""Loads the rows of a data set: a local file or folder, line-aligned texts, a folder on the Hub, or a Hub id.

This module knows no task and no tokenizer.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
from datasets import Dataset, IterableDataset, load_dataset
from datasets import config as datasets_config
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from huggingface_hub import snapshot_download

from warmup_peft.evaluation.splits import (
    HUB_FOLDER,
    JSON_ENDINGS,
    MissingSplitError,
    aligned_files,
    check_is_there,
    check_streams,
    check_test_split_size,
    column_of,
    find_split,
    parts_of,
    read_json,
)
from warmup_peft.files import first_line, near_path
from warmup_peft.inference.hub import check_at_hand

NO_NETWORK = (
    "Without a network, download it elsewhere and name the local file or folder instead "
    "(--dataset_name, or DATA= with make)."
)


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
    check_is_there(name, split)
    if name.startswith(HUB_FOLDER):
        dataset = read_file(find_split(download_folder(name), split))
    elif "," in name:
        dataset = part_of_file(read_aligned(parts_of(name)), split, test_split_size, check)
    elif Path(name).is_dir():
        aligned = aligned_files(Path(name), split)
        dataset = read_aligned(aligned) if aligned else read_file(find_split(Path(name), split))
    elif Path(name).is_file():
        dataset = part_of_file(read_file(Path(name)), split, test_split_size, check)
    else:
        dataset = load_from_hub(name, split, config)
    if len(dataset) == 0:
        raise ValueError(f"The {split} split of {name} is empty. Give it at least one row.")
    return dataset


def part_of_file(
    dataset: Dataset, split: str, test_split_size: float, check: Callable[[Dataset], object] | None = None
) -> Dataset:
    check_test_split_size(test_split_size)
    if test_split_size == 0 or len(dataset) < 2:
        return dataset
    if check is not None:
        check(dataset)
    parts = dataset.train_test_split(test_size=test_split_size, seed=0)
    return parts["train" if split == "train" else "test"]


def read_aligned(paths: Sequence[Path]) -> Dataset:
    """Each text is a column, and each line a row.

    Raises:
        ValueError: the name of a text gives no column, or the numbers of lines differ.
    """
    columns: dict[str, list[str]] = {}
    for path in paths:
        column = column_of(path)
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
    check_streams(name)
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
