"""`warmup-peft sample`, and training on its warmups."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from folders import puzzles, train_argv, write_rows

from warmup_peft.cli.main import BAD_INPUT, main

POOL = {"task": "logiqa", "max_steps": 1, "warmup_pool_size": 3, "warmup_pool_batch_size": 12}


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", puzzles(6))


def files_of(pool: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in pool.glob("part-*")}


def sample_argv(*args, **options):
    return ["sample", *train_argv(*args, **options)[1:]]


def test_sampled_warmups_are_trained_on(model_folder, rows, tmp_path, capsys):
    pool = tmp_path / "run" / "warmup_pool"
    assert main(sample_argv(model_folder, rows, tmp_path / "run", **POOL)) == 0
    out = capsys.readouterr().out
    assert f"3 warmups for each of 6 prompts lie in {pool}" in out
    assert f"--warmup_source base --warmup_pool {pool}" in out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"warmup_pool"}
    before = files_of(pool)
    argv = train_argv(model_folder, rows, tmp_path / "other", **POOL, warmup_source="base", warmup_pool=pool)
    assert main(argv) == 0
    assert files_of(pool) == before != {}
    assert not (tmp_path / "other" / "warmup_pool").exists()


def test_a_training_samples_for_itself_and_its_folder_can_be_replaced(model_folder, rows, tmp_path):
    argv = train_argv(model_folder, rows, tmp_path / "run", **POOL, warmup_source="base", warmup_anchor=0.3)
    assert main(argv) == 0
    pool = tmp_path / "run" / "warmup_pool"
    assert files_of(pool)
    again = train_argv(
        model_folder, rows, tmp_path / "run", **POOL, warmup_source="base", max_warmup_length=3,
        overwrite_output_dir="true",
    )  # fmt: skip
    assert main(again) == 0
    assert len(files_of(pool)) == 1  # of the new distribution alone


def test_replacing_a_run_keeps_a_pool_that_was_named(model_folder, rows, tmp_path):
    pool = tmp_path / "run" / "warmup_pool"
    argv = train_argv(model_folder, rows, tmp_path / "run", **POOL, warmup_source="base", warmup_pool=pool)
    assert main(argv) == 0
    before = files_of(pool)
    assert main([*argv, "--overwrite_output_dir"]) == 0
    assert files_of(pool) == before != {}


def test_a_pool_of_another_distribution_is_bad_input(model_folder, rows, tmp_path, capsys):
    pool = tmp_path / "pool"
    assert main(sample_argv(model_folder, rows, tmp_path / "run", **POOL, warmup_pool=pool)) == 0
    argv = sample_argv(model_folder, rows, tmp_path / "run", **POOL, warmup_pool=pool, temperature=0.5)
    assert main(argv) == BAD_INPUT
    assert "sampled with another temperature (1.0, now 0.5)" in capsys.readouterr().err


def test_a_file_cut_short_is_bad_input(model_folder, rows, tmp_path, capsys):
    argv = train_argv(model_folder, rows, tmp_path / "run", **POOL, warmup_source="base")
    assert main(["sample", *argv[1:]]) == 0
    part = next((tmp_path / "run" / "warmup_pool").glob("part-*"))
    whole = part.read_bytes()
    part.unlink()
    part.write_bytes(whole[: len(whole) // 2])
    assert main(argv) == BAD_INPUT
    assert "was cut short. Remove it" in capsys.readouterr().err
    part.unlink()
    assert main(argv) == 0


def test_objectives_that_need_own_samples_are_refused(model_folder, rows, tmp_path, capsys):
    assert main(sample_argv(model_folder, rows, tmp_path / "run", **POOL, objective="jensen")) == BAD_INPUT
    assert "objective=jensen" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_draw_is_another_name_that_is_not_listed(model_folder, rows, tmp_path, capsys):
    said = []
    for name in ("sample", "draw"):
        argv = train_argv(model_folder, rows, tmp_path / "run", **POOL, objective="jensen")
        assert main([name, *argv[1:]]) == BAD_INPUT
        assert main([name, "--help"]) == 0
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert "--warmup_pool_size" in said[0].out
    assert main(["--help"]) == 0
    assert not re.search(r"^  draw\b", capsys.readouterr().out, re.MULTILINE)
