"""Repos of the Hub in a cache of its layout, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMITS = ("0" * 39 + "1", "0" * 39 + "2")


def put_into_cache(cache: Path, repo: str, folder: Path, commit: str, ref: str = "main") -> Path:
    """As a download leaves it: files are links to blobs."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for path in (path for path in folder.rglob("*") if path.is_file()):
        blob, link = place / "blobs" / f"{commit[-1]}-{path.name}", snapshot / path.relative_to(folder)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
