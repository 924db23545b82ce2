"""A comparison from its plan to its report: what it runs, keeps, refuses and reports as failed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from comparisons import runs_of
from folders import puzzles, tree, write_rows

from warmup_peft.cli.main import BAD_INPUT, INTERRUPTED, main
from warmup_peft.comparison import experiment, runner
from warmup_peft.comparison.experiment import shown_settings
from warmup_peft.comparison.results import Job, Run
from warmup_peft.settings.arguments import CompareOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.config import TRAINING_KINDS


def test_a_job_is_the_recipe_with_what_the_arm_sets(model_folder, data, tmp_path):
    options = {"model_name_or_path": model_folder, "dataset_name": str(data), "task": "logiqa", "bf16": False}
    own = {"output_dir": str(tmp_path / "run"), "seed": 7, "eval_strategy": "steps", "warmup_anchor": 0.5}
    recipe = Recipe(TRAINING_KINDS, options, own)
    asked = CompareOptions(arms="sft,random_warmup", seeds="3", sweep=["num_warmups=2,4"], max_samples=8)
    planned = experiment.plan_experiment(recipe, asked)
    assert planned.folder == tmp_path / "run"
    assert planned.num_test_rows == 8
    assert [arm.name for arm in planned.arms] == [
        "sft", "shuffled_warmup num_warmups=2", "shuffled_warmup num_warmups=4",
    ]  # fmt: skip
    job = planned.job(planned.arms[2], seed=3, max_steps=9)
    assert (job.arm, job.kind, job.seed) == ("shuffled_warmup num_warmups=4", "control", 3)
    assert job.options == {
        **options, **experiment.UNDISTURBED, "warmup_source": "shuffled", "warmup_sampling": "multinomial",
        "objective": "warmup", "warmup_anchor": 0.5, "hindsight_steps": 0, "num_warmups": 4, "max_steps": 9,
    }  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_runs_end_with_a_comparison_that_is_killed(argv, tmp_path):
    """Otherwise the same command again would start a second process in the folder of one that lives on.

    tests/comparison/test_run_arm.py shows the same without processes.
    """
    command = [sys.executable, "-m", "warmup_peft.cli", *argv(arms="paper,sft", max_steps="100000", curve_points="0")]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        place = tmp_path / "cmp" / "runs" / "paper" / "seed-0"
        wait_for(lambda: "/100000 " in log_of(place), seconds=120)
        assert len(working_in(place)) == 1
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: working_in(place) == [], seconds=20)
    assert not (place / "run.json").exists()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def log_of(place: Path) -> str:
    path = place / "log.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def working_in(place: Path) -> list[str]:
    """Ids of the processes that run this arm."""
    command = ["ps", "-axww", "-o", "pid=", "-o", "args="]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in found.splitlines() if "run_arm" in line and line.endswith(str(place))]


def test_every_kind_of_arm(argv, tmp_path, in_this_process):
    arms = "base_model,sft,more_sft,warmup,paper,posterior,shuffled_warmup,empty_warmup"
    assert main(argv(arms=arms, num_warmups="3", warmup_pool_size="3")) == 0
    runs = runs_of(tmp_path / "cmp")
    assert set(runs) == set(arms.split(","))
    assert all(run.error is None and len(run.rows) == 12 for run in runs.values())
    assert runs["base_model"].steps == 0
    assert runs["base_model"].curve == []
    for name in ("base_model", "sft", "more_sft", "empty_warmup"):
        assert runs[name].warmups == runs[name].row_gains == {}
        assert {row.warmup for row in runs[name].rows} == {""}
    slowest = max(runs[name].train_seconds for name in ("warmup", "paper", "posterior"))
    assert runs["more_sft"].steps == max(1, round(2 * slowest / runs["sft"].train_seconds))
    for name in ("warmup", "paper", "posterior", "shuffled_warmup"):
        assert set(runs[name].warmups) == {
            *("gain_over_none", "gain_over_others", "score_after_none", "score_after_others"),
            *("overlap", "distinct", "mean_length"),
        }
        for gain, of_rows in runs[name].row_gains.items():
            assert runs[name].warmups[gain] == pytest.approx(sum(of_rows) / 12)
        assert [point.step for point in runs[name].curve] == [0, 2]
        assert [point.examples for point in runs[name].curve] == [0, 4]
    assert not list((tmp_path / "cmp").rglob("warmup_pool"))
    # before the first step all arms without warmups are the same model
    assert runs["sft"].curve[0].score == runs["more_sft"].curve[0].score


@pytest.mark.slow
def test_arms_that_are_added_run_and_the_others_do_not(argv, in_this_process):
    assert main(argv(arms="sft")) == 0
    assert main(argv(arms="sft,empty_warmup", seeds="0,1")) == 0
    assert in_this_process.started == ["sft 0", "empty_warmup 0", "sft 1", "empty_warmup 1"]


@pytest.mark.slow
def test_an_arm_that_fails_does_not_stop_the_others(argv, tmp_path, in_this_process, capsys):
    in_this_process.fail["paper"] = ValueError("nothing | to see <here>")
    in_this_process.fail["warmup"] = -9
    assert main(argv(arms="paper,warmup,sft,empty_warmup")) == 0
    assert set(runs_of(tmp_path / "cmp")) == {"sft", "empty_warmup"}
    said = capsys.readouterr().out
    assert "paper, seed 0: failed. ValueError: nothing | to see <here>" in said
    assert "SIGKILL (out of memory?)" in said
    assert "nothing | to see &lt;here&gt;" in (tmp_path / "cmp" / "report.html").read_text(encoding="utf-8")
    in_this_process.fail.clear()
    assert main(argv(arms="paper,sft")) == 0
    assert in_this_process.started[4:] == ["paper 0"]  # what failed is tried again


def test_a_report_in_between_says_that_it_is_not_final(argv, tmp_path, in_this_process, monkeypatch):
    seen = []
    write = experiment.write_report
    monkeypatch.setattr(
        experiment, "write_report", lambda c, f: (seen.append((c.runs_done, c.runs_planned)), write(c, f))[1]
    )
    in_this_process.fail["empty_warmup"] = KeyboardInterrupt()
    assert main(argv(arms="sft,empty_warmup,paper")) == INTERRUPTED
    assert seen == [(1, 3)]
    assert "1 of 3 runs are done" in (tmp_path / "cmp" / "report.md").read_text(encoding="utf-8")


def test_a_folder_of_another_version(argv, tmp_path, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    path = tmp_path / "cmp" / "comparison.json"
    path.write_text(json.dumps({"format": 0, "version": "0.0.1"}))
    assert main(argv(arms="sft")) == BAD_INPUT
    assert "another version of warmup_peft (0.0.1, format 0;" in capsys.readouterr().err
    assert main([*argv(arms="sft"), "--overwrite_output_dir"]) == 0
    assert len(in_this_process.started) == 2


def test_a_run_of_another_format_or_with_other_settings(argv, tmp_path, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    assert main(argv(arms="sft", learning_rate="0.02")) == BAD_INPUT
    said = capsys.readouterr().err
    assert "other settings (--learning_rate 0.01; --learning_rate 0.02)" in said
    path = tmp_path / "cmp" / "runs" / "sft" / "seed-0" / "run.json"
    path.write_text(json.dumps({"arm": "sft"}))
    assert main(argv(arms="sft")) == BAD_INPUT
    assert "run.json was written by another version" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(argv, tmp_path, in_this_process, capsys):
    write_rows(tmp_path / "cmp" / "mine.jsonl", [{"a": 1}])
    assert main(argv(arms="sft")) == BAD_INPUT
    assert "holds files that are no comparison" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cmp").iterdir()] == ["mine.jsonl"]


def test_overwriting_takes_only_what_a_comparison_made(argv, tmp_path, in_this_process, capsys):
    """`runs/` is where adapters lie, too."""
    precious = write_rows(tmp_path / "cmp" / "runs" / "mine" / "adapter.json", [{"a": 1}])
    assert main([*argv(arms="sft"), "--overwrite_output_dir"]) == BAD_INPUT
    assert "holds files that are no comparison" in capsys.readouterr().err
    assert precious.is_file()


def test_rows_that_changed_since_are_refused(argv, data, tmp_path, in_this_process, capsys):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    assert main(argv(arms="sft", dataset_name=str(own))) == 0
    write_rows(own / "test.jsonl", puzzles(12, start=50))
    assert main(argv(arms="sft,paper", dataset_name=str(own))) == BAD_INPUT
    assert "was run with other settings (rows:" in capsys.readouterr().err


def test_options_that_would_disturb_are_switched_off(argv, tmp_path, in_this_process):
    best = {"eval_generate": "4", "metric_for_best_model": "exact_match"}
    assert main(argv(arms="sft", save_strategy="steps", save_steps="1", eval_strategy="epoch", **best)) == 0
    assert not list((tmp_path / "cmp").rglob("checkpoint-*"))
    assert Job.load(tmp_path / "cmp" / "runs" / "sft" / "seed-0").options["eval_strategy"] == "no"
    runs = tmp_path / "again"
    assert main(argv(arms="warmup", eval_strategy="epoch", output_dir=runs, **best)) == 0
    assert Run.load(runs / "runs" / "warmup" / "seed-0").steps > 0


def test_more_sft_without_a_time_to_train_for_has_failed(argv, tmp_path, in_this_process):
    in_this_process.fail["paper"] = ValueError("no")
    assert main(argv(arms="sft,paper,more_sft")) == 0
    report = (tmp_path / "cmp" / "report.md").read_text(encoding="utf-8")
    assert "still running" not in report
    assert "SFT or every warmup arm failed" in report


def test_two_at_once_in_one_folder(argv, tmp_path, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    with experiment.only_one(tmp_path / "cmp"):
        assert main(argv(arms="sft,paper")) == BAD_INPUT
    assert "Another comparison is running" in capsys.readouterr().err


def test_two_at_once_in_one_folder_where_the_second_would_replace_it(argv, tmp_path, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    before = tree(tmp_path / "cmp")
    with experiment.only_one(tmp_path / "cmp"):
        assert main([*argv(arms="sft"), "--overwrite_output_dir"]) == BAD_INPUT
    assert "Another comparison is running" in capsys.readouterr().err
    assert tree(tmp_path / "cmp") == before


def test_one_test_row(argv, data, tmp_path, in_this_process, capsys):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    (own / "validation.jsonl").unlink()
    write_rows(own / "test.jsonl", puzzles(1))
    assert main(argv(arms="sft,paper", dataset_name=str(own))) == BAD_INPUT
    assert "0 test rows are too few" in capsys.readouterr().err


def test_a_full_disk_keeps_what_is_done(argv, tmp_path, in_this_process, monkeypatch, capsys):
    assert main(argv(arms="sft")) == 0
    full = shutil._ntuple_diskusage(2**30, 2**30 - 2**20, 2**20)
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda place: full)
    assert main(argv(arms="sft,paper")) == BAD_INPUT
    assert "is full (1 MiB left)" in capsys.readouterr().err
    assert set(runs_of(tmp_path / "cmp")) == {"sft"}


def test_rows_of_a_single_split_are_divided(argv, data, tmp_path, in_this_process):
    """Every other row is for the learning curve, the others are for the verdict."""
    own = tmp_path / "own"
    own.mkdir()
    for name, split in (("train", "train"), ("test", "validation")):
        shutil.copy(data / f"{name}.jsonl", own / f"{split}.jsonl")
    assert main(argv(arms="sft", dataset_name=str(own))) == 0
    rows = runs_of(tmp_path / "cmp")["sft"].rows
    assert [f"Colour {i}?" in row.prompt for i, row in zip(range(25, 37, 2), rows)] == [True] * 6


def test_of_epochs_and_steps_the_report_shows_what_rules():
    values = {"num_train_epochs": 3, "max_steps": -1, "lora_r": 8, "task": None}
    assert shown_settings(values) == {"lora_r": 8, "num_train_epochs": 3}
    assert shown_settings({**values, "max_steps": 40}) == {"lora_r": 8, "max_steps": 40}
