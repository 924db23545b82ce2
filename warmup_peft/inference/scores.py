"""The files of scores in a model's folder, `metrics.json` and `harness.json`. Each names the weights it belongs to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from warmup_peft.files import read_json, write_json
from warmup_peft.inference.folder import WEIGHTS

ARM_NAMES = {
    "base": "base, answering directly",
    "base_with_warmup": "base, after a warmup of its own",
    "sft": "SFT, answering directly",
    "warmup": "adapter, after its warmup",
    "plain": "adapter, in one plain call",
    "shuffled": "adapter, after another row's warmup",
    "dots": "adapter, after dots",
    "none": "adapter, after no warmup",
}


def save_scores(folder: str | Path, name: str, scores: dict[str, Any]) -> Path:
    """Write the scores of the folder's current weights to METRICS_NAME or HARNESS_NAME."""
    path = Path(folder, name)
    scores = {**scores, "weights": weights_fingerprint(folder)}
    write_json(path, scores, default=str)
    return path


def load_scores(folder: str | Path, name: str) -> dict[str, Any]:
    """The scores of the folder's current weights; empty if there are none for these weights."""
    return {} if scores_are_stale(folder, name) else _read(folder, name)


def scores_are_stale(folder: str | Path, name: str) -> bool:
    """Whether the scores belong to other weights than the folder's, for example those of an earlier training."""
    scores = _read(folder, name)
    return bool(scores) and scores.get("weights") != weights_fingerprint(folder)


def weights_fingerprint(folder: str | Path) -> str:
    """A hash of all weights in the folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for pattern in WEIGHTS for path in Path(folder).glob(pattern)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return digest.hexdigest()


def _read(folder: str | Path, name: str) -> dict[str, Any]:
    try:
        scores = read_json(Path(folder, name))
    except (OSError, ValueError):
        return {}
    return scores if isinstance(scores, dict) else {}
