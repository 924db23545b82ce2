"""A disk that is full, and what killed processes leave: nothing is lost, and a sentence says how to go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from folders import logiqa_folder, puzzles, random_adapter, save_adapter, train_argv, tree, write_rows
from thinning import every

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.comparison.experiment import prepare_folder
from warmup_peft.files import remove_abandoned, replacing_files, saying_where_the_disk_is_full, scratch_folder
from warmup_peft.training import pool as pool_module
from warmup_peft.training.checkpoints import checkpoints

ADAPTER = "adapter_model.safetensors"
TRAINING = {"task": "logiqa", "save_strategy": "steps", "save_steps": "1", "max_steps": "3", "disable_tqdm": "true"}


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of so many bytes, or gives the one that there is another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: float) -> Path:
        change = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{change}size={int(size) // 1024}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not allowed here")
        return place

    yield resize
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def size_of(folder: Path) -> int:
    """Bytes on a file system of whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def error_of(capsys) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said[said.index("warmup-peft: error: ") :]


# ---- A full disk ----


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    return logiqa_folder(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, model_folder, rows) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(train_argv(model_folder, rows, folder, **TRAINING)) == 0
    return folder


@pytest.mark.parametrize("share", every(2, [0.1, 0.35, 0.6, 0.8, 0.97]))
def test_a_disk_that_gets_full_in_a_training_keeps_a_whole_checkpoint(
    small_disk, unbroken, model_folder, rows, capsys, share
):
    """At different files of the second checkpoint."""
    size = size_of(unbroken / "checkpoint-1")
    folder = small_disk(size * (1 + share)) / "run"
    argv = train_argv(model_folder, rows, folder, **TRAINING)
    assert main(argv) == BAD_INPUT
    whole = folder / "checkpoint-1"
    said = f"go on with --resume_from_checkpoint {whole}"
    assert f"The disk of {folder} is full. The last checkpoint is complete: free some space and {said}\n" in error_of(
        capsys
    )
    assert checkpoints(folder) == [whole]
    assert not list(folder.rglob(".writing-*"))
    small_disk(50 * size)
    assert main([*argv, "--resume_from_checkpoint", str(whole)]) == 0
    assert (folder / ADAPTER).read_bytes() == (unbroken / ADAPTER).read_bytes()


def test_a_disk_that_is_full_at_the_end_leaves_the_files_before(small_disk, unbroken, model_folder, rows, capsys):
    size = size_of(unbroken / "checkpoint-1")
    folder = small_disk(50 * size) / "run"
    argv = train_argv(model_folder, rows, folder, **{**TRAINING, "save_strategy": "no"})
    assert main(argv) == 0
    before = tree(folder)
    other = [*argv, "--seed", "7", "--resume_from_checkpoint", str(unbroken / "checkpoint-1"), "--max_steps", "4"]
    small_disk(size_of(folder) + 8192)
    assert main(other) == BAD_INPUT
    assert "Free some space and start the run again: there is no checkpoint yet." in error_of(capsys)
    assert tree(folder) == before


def test_a_disk_that_gets_full_while_sampling_keeps_what_was_sampled(
    small_disk, model_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pool_module, "PROMPTS_PER_FILE", 2)
    rows = write_rows(tmp_path / "rows.jsonl", puzzles(12))

    def argv(folder: Path) -> list[str]:
        return ["sample", *train_argv(model_folder, rows, folder, task="logiqa", warmup_pool_size=3)[1:]]

    assert main(argv(tmp_path / "unbroken")) == 0
    whole = tmp_path / "unbroken" / "warmup_pool"
    folder = small_disk(size_of(whole) * 0.6) / "run"
    assert main(argv(folder)) == BAD_INPUT
    assert "What was sampled until then is kept: free some space and run the same command" in error_of(capsys)
    assert 0 < len(list(folder.rglob("part-*"))) < 6
    small_disk(10 * size_of(whole))
    assert main(argv(folder)) == 0
    assert tree(folder / "warmup_pool") == tree(whole)


def test_a_disk_that_is_too_small_for_a_merged_model_keeps_the_older_one(
    small_disk, model_folder, tokenizer, lora, tmp_path, capsys
):
    adapter = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)
    merged = tmp_path / "merged"
    assert main(["merge", "--adapter", str(adapter), "--output_dir", str(merged), "--max_samples", "0"]) == 0
    disk = small_disk(size_of(merged) * 1.5)
    argv = ["merge", "--adapter", str(adapter), "--output_dir", str(disk / "merged"), "--max_samples", "0"]
    assert main(argv) == 0
    before = tree(disk)
    assert main([*argv, "--overwrite_output_dir"]) == BAD_INPUT
    assert "Nothing was replaced. Free some space and run the same command again." in error_of(capsys)
    assert tree(disk) == before


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError("no"), OSError("no"), KeyError("no")):
        with pytest.raises(type(error)) as raised, saying_where_the_disk_is_full(tmp_path, lambda: ""):
            raise error
        assert raised.value is error


# ---- What is left by those who were killed ----


def test_scratch_folders_of_killed_processes_are_removed_and_no_others(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom warmup_peft.files import scratch_folder\n"
        "with scratch_folder(Path(sys.argv[1])) as room:\n"
        "    (room / 'half').write_text('x')\n    print(room.name, flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        name = process.stdout.readline().strip()
        mine = tmp_path / ".writing-precious"
        mine.mkdir()
        (mine / "file").write_text("x")
        remove_abandoned(tmp_path)
        assert (tmp_path / name / "half").is_file()  # its process lives
    finally:
        process.kill()
        process.wait()
    (tmp_path / ".writing-abcd1234").mkdir()  # killed before it held it
    with scratch_folder(tmp_path) as room:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, room.name])
    assert list(tmp_path.iterdir()) == [mine]


def test_files_take_their_places_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), replacing_files(tmp_path) as staging:
        (staging / "a").write_text("new") and (staging / "nowhere" / "b").write_text("new")
    assert tree(tmp_path) == {"a": b"old"}
    with replacing_files(tmp_path) as staging:
        (staging / "a").write_text("new")
        (staging / "deep").mkdir()
        (staging / "deep" / "b").write_text("new")
    assert tree(tmp_path) == {"a": b"new", "deep/b": b"new"}


def test_a_killed_comparison_that_had_written_nothing_yet_can_be_started_again(tmp_path):
    """Its folder holds what it had begun to write, and the lock."""
    folder = tmp_path / "cmp"
    (folder / ".writing-abcd1234" / "new").mkdir(parents=True)
    (folder / ".writing-abcd1234" / ".warmup_peft.lock").touch()
    (folder / ".lock").touch()
    prepare_folder(folder, overwrite=False)
    assert set(tree(folder)) == {".lock", "comparison.json"}
