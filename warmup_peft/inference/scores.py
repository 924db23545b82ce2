"""Scores, and which weights they are of: `metrics.json` and `harness.json` beside a model. No trl."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from warmup_peft.files import read_json, write_json
from warmup_peft.inference.folder import WEIGHTS


def save_scores(folder: str | Path, name: str, scores: dict[str, Any]) -> Path:
    """Write scores of the weights that lie in the folder now, under METRICS_NAME or HARNESS_NAME."""
    path = Path(folder, name)
    scores = {**scores, "weights": weights_fingerprint(folder)}
    write_json(path, scores, default=str)
    return path


def load_scores(folder: str | Path, name: str) -> dict[str, Any]:
    """The scores of the weights that lie in the folder now; empty where there are none, or only those of others."""
    return {} if scores_are_stale(folder, name) else _read(folder, name)


def scores_are_stale(folder: str | Path, name: str) -> bool:
    """Whether a file of scores is of other weights than those in the folder: of an earlier training, for example."""
    scores = _read(folder, name)
    return bool(scores) and scores.get("weights") != weights_fingerprint(folder)


def weights_fingerprint(folder: str | Path) -> str:
    """Of every byte of the folder's weights."""
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
