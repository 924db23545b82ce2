"""Merging into a folder that cannot be replaced, such as a container's volume: it is filled in place."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from folders import random_adapter, save_adapter, tree

from warmup_peft import merge_adapter
from warmup_peft.export import merge
from warmup_peft.export.merge import whole_or_nothing
from warmup_peft.inference.loading import load_folder


@pytest.fixture
def adapter(tmp_path, model_folder, tokenizer, lora) -> Path:
    return save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)


@pytest.fixture
def merged(adapter, tmp_path) -> dict[str, bytes]:
    """What a merge into a plain folder of the same name writes."""
    merge_adapter(adapter, tmp_path / "plain" / "out")
    return tree(tmp_path / "plain" / "out")


def mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here ({done.stderr.strip()})")


@pytest.fixture(params=["volume", "bind mount"])
def mounted(request, tmp_path):
    """An empty folder that is mounted: another file system, or another folder of the same one."""
    folder = tmp_path / "out"
    folder.mkdir()
    if request.param == "volume":
        mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
    else:
        (tmp_path / "source").mkdir()
        mount("--bind", tmp_path / "source", folder)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_mounted_folder_is_filled_in_place(mounted, adapter, merged):
    (mounted / "lost+found").mkdir()
    merge_adapter(adapter, mounted)
    assert tree(mounted) == merged
    assert (mounted / "lost+found").is_dir()
    load_folder(mounted)


def test_a_mounted_folder_is_overwritten_when_told(mounted, adapter, merged):
    (mounted / "config.json").write_text("{}")
    (mounted / "model-00002-of-00002.safetensors").write_bytes(b"old")
    (mounted / "old").mkdir()
    (mounted / "old" / "file").write_text("old")
    with pytest.raises(ValueError, match="is not empty"):
        merge_adapter(adapter, mounted)
    assert (mounted / "old" / "file").is_file()
    merge_adapter(adapter, mounted, overwrite=True)
    assert tree(mounted) == merged


def test_what_a_killed_merge_left_is_no_obstacle(mounted, adapter, merged):
    leftover = mounted / f"{merge.staging_prefix(mounted)}abc" / "new"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    merge_adapter(adapter, mounted)
    assert {name: content for name, content in tree(mounted).items() if not name.startswith(".")} == merged


def test_a_merge_that_fails_leaves_a_mounted_folder_as_it_was(mounted, adapter, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no luck")

    (mounted / "config.json").write_text("{}")
    monkeypatch.setattr(merge, "merge_layer_by_layer", fail)
    with pytest.raises(RuntimeError, match="no luck"):
        merge_adapter(adapter, mounted, overwrite=True)
    assert tree(mounted.parent / "out") == {"config.json": b"{}"}
    assert [path.name for path in mounted.iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(tmp_path, adapter, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "ro", "tmpfs", folder)
    monkeypatch.setattr(merge, "load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    try:
        with pytest.raises(ValueError, match=r"out cannot be written \(Read-only file system\). Choose another"):
            merge_adapter(adapter, folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("is_known", [True, False])
def test_where_nothing_can_be_mounted_the_same_is_played(tmp_path, adapter, merged, monkeypatch, is_known):
    folder, replace, is_mount = tmp_path / "out", os.replace, os.path.ismount
    (folder / "old").mkdir(parents=True)
    (folder / "config.json").write_text("{}")

    def refuse(source, target):
        if Path(source) == folder or Path(target) == folder:
            raise OSError(errno.EBUSY, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(merge.os, "replace", refuse)
    monkeypatch.setattr(merge.os.path, "ismount", lambda path: (is_known and Path(path) == folder) or is_mount(path))
    merge_adapter(adapter, folder, overwrite=True)
    assert tree(folder) == merged
    assert not (folder / "old").exists()


def test_a_merged_folder_that_was_set_aside_comes_back(tmp_path):
    """The process was killed after the older folder was moved away, and before the new one was moved there."""
    room = tmp_path / ".merged-abcd1234"
    (room / "previous").mkdir(parents=True)
    (room / "previous" / "weights").write_text("older")
    (room / ".warmup_peft.lock").touch()
    with pytest.raises(FileNotFoundError), whole_or_nothing(tmp_path / "merged") as staging:
        (staging / "nowhere" / "weights").write_text("new")
    assert tree(tmp_path) == {"merged/weights": b"older"}
    with whole_or_nothing(tmp_path / "merged") as staging:
        (staging / "weights").write_text("new")
    assert tree(tmp_path) == {"merged/weights": b"new"}
