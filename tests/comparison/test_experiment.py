"""A comparison from its options to its report: what it runs, takes over, refuses, and says of what went wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import TRAINING, puzzles, tree, write_rows
from trl import SFTTrainer

from warmup_peft.cli.main import BAD_INPUT, INTERRUPTED, main
from warmup_peft.comparison import experiment, run_arm, runner
from warmup_peft.comparison.results import Job, Run

SETTINGS = {
    "task": "logiqa",
    **TRAINING,
    "warmup_pool_size": "2",
    "save_strategy": "no",
    "curve_points": "1",
    "curve_samples": "4",
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("warmup_peft.comparison.significance.RESAMPLES", 99)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for start, split in enumerate(("train", "validation", "test")):
        write_rows(folder / f"{split}.jsonl", puzzles(12, start=12 * start))
    return folder


@pytest.fixture
def argv(model_folder, data, tmp_path):
    """Of a comparison into `tmp_path / "cmp"`; options may be changed."""

    def build(**options: str) -> list[str]:
        given = {"model_name_or_path": model_folder, "dataset_name": data, "output_dir": tmp_path / "cmp"}
        values = {**SETTINGS, **given, "seeds": "0", **options}
        return ["compare", *(str(word) for name, value in values.items() for word in (f"--{name}", value))]

    return build


class InThisProcess:
    """Stands for `subprocess.Popen`: does the work at once, and leaves what a process would leave."""

    started: list[str] = []
    fail: dict[str, BaseException | int] = {}  # of an arm: what is raised, or the exit code

    def __init__(self, command, stdout, **options):
        folder = Path(command[-1])
        job = Job.load(folder)
        self.started.append(f"{job.arm} {job.argv[-1]}")
        fault = self.fail.get(job.arm)
        self.returncode = 0
        if isinstance(fault, KeyboardInterrupt):
            raise fault
        if isinstance(fault, int):
            self.returncode = fault
        elif fault is not None:
            stdout.write(f"Traceback ...\n{type(fault).__name__}: {fault}\n")
            self.returncode = 1
        else:
            run_arm.run_arm(job, folder).save(folder)

    def wait(self) -> int:
        return self.returncode


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(InThisProcess, "started", [])
    monkeypatch.setattr(InThisProcess, "fail", {})
    monkeypatch.setattr(runner.subprocess, "Popen", InThisProcess)
    return InThisProcess


def runs_of(folder: Path) -> dict[str, Run]:
    return {path.parent.parent.name: Run.load(path.parent) for path in sorted(folder.glob("runs/*/*/run.json"))}


def test_a_comparison_in_processes_of_its_own(argv, tmp_path, capsys):
    """Really started, twice: the second time everything is taken over and only the report is written anew."""
    command = argv(arms="sft,paper", jobs="2")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "sft, seed 0: accuracy" in said
    assert "paper, seed 0: accuracy" in said
    folder = tmp_path / "cmp"
    times = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/run.json")}
    (folder / "report.html").unlink()
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/run.json")} == times
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "still running" not in page
    assert all(name in page for name in ("paper", "sft"))
    assert (folder / "report.md").read_text(encoding="utf-8").count("Colour") > 0


def test_the_runs_end_with_a_comparison_that_is_killed(argv, tmp_path):
    """Otherwise the same command again would start a second process in the folder of one that lives on."""
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
    arms = "base_model,sft,more_sft,warmup,paper,posterior,random_warmup,empty_warmup"
    assert main(argv(arms=arms, num_warmups="3", warmup_pool_size="3")) == 0
    runs = runs_of(tmp_path / "cmp")
    assert set(runs) == set(arms.split(","))
    assert all(run.error is None and len(run.rows) == 12 for run in runs.values())
    assert runs["base_model"].steps == 0
    assert runs["base_model"].curve == []
    for name in ("base_model", "sft", "more_sft", "empty_warmup"):
        assert runs[name].warmups == {}
        assert {row.warmup for row in runs[name].rows} == {""}
    slowest = max(runs[name].train_seconds for name in ("warmup", "paper", "posterior"))
    assert runs["more_sft"].steps == max(1, round(2 * slowest / runs["sft"].train_seconds))
    for name in ("warmup", "paper", "posterior", "random_warmup"):
        assert set(runs[name].warmups) == {"gain_over_none", "gain_over_others", "overlap", "distinct", "mean_length"}
        assert [point.step for point in runs[name].curve] == [0, 2]
        assert [point.examples for point in runs[name].curve] == [0, 4]
    assert not list((tmp_path / "cmp").rglob("warmup_pool"))
    # before the first step all arms without warmups are the same model
    assert runs["sft"].curve[0].score == runs["more_sft"].curve[0].score


@pytest.mark.parametrize(
    ("batch", "accumulation", "drop_last", "expected"),
    [(5, 1, False, [0, 5, 10, 12, 17, 22, 24]), (5, 2, False, [0, 10, 12, 22, 24]), (5, 1, True, [0, 5, 10, 15, 20]),
     (4, 1, False, [0, 4, 8, 12, 16])],
)  # fmt: skip
def test_examples_are_those_really_seen(argv, tmp_path, in_this_process, batch, accumulation, drop_last, expected):
    """12 rows in batches of 5 are 5, 5 and 2; with two batches a step 10 and 2."""
    steps = len(expected) - 1
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
               "dataloader_drop_last": drop_last, "max_steps": steps, "curve_points": steps}  # fmt: skip
    seen = [0]
    with pytest.MonkeyPatch.context() as patch:
        training_step = SFTTrainer.training_step

        def counting(self, model, inputs, *more, **options):
            seen.append(seen[-1] + len(inputs["input_ids"]))
            return training_step(self, model, inputs, *more, **options)

        patch.setattr(SFTTrainer, "training_step", counting)
        assert main(argv(arms="sft", **{name: str(value) for name, value in options.items()})) == 0
    run = runs_of(tmp_path / "cmp")["sft"]
    assert run.error is None
    assert [point.examples for point in run.curve] == expected
    assert set(expected) <= set(seen)
    assert seen[-1] == expected[-1]
    assert run.examples_per_second == pytest.approx(expected[-1] / run.train_seconds)


@pytest.mark.slow
def test_arms_that_are_added_run_and_the_others_do_not(argv, in_this_process):
    assert main(argv(arms="sft")) == 0
    assert main(argv(arms="sft,empty_warmup", seeds="0,1")) == 0
    assert in_this_process.started == ["sft 0", "empty_warmup 0", "sft 1", "empty_warmup 1"]


@pytest.mark.slow
def test_a_sweep_given_in_several_words(argv, tmp_path, in_this_process):
    command = [*argv(arms="sft,warmup"), "--sweep", "num_warmups=1,2", "--sweep=max_warmup_length=2,3"]
    assert main(command) == 0
    names = [f"warmup_num_warmups={k}_max_warmup_length={w}" for k in (1, 2) for w in (2, 3)]
    runs = runs_of(tmp_path / "cmp")
    assert set(runs) == {"sft", *names}
    assert "--num_warmups 1" in " ".join(Job.load(tmp_path / "cmp" / "runs" / names[0] / "seed-0").argv)


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


def test_where_every_run_fails_the_first_reason_is_said(argv, in_this_process, capsys):
    in_this_process.fail["sft"] = RuntimeError("no luck")
    assert main(argv(arms="sft")) == BAD_INPUT
    assert "Every run failed, the first one so: RuntimeError: no luck" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arms": "sft,posteriour"}, "no arm 'posteriour'. Did you mean posterior?"),
        ({"arms": "warmup", "sweep": "num_warmup=2"}, "no option of the recipe ('num_warmup')"),
        ({"arms": "warmup", "sweep": "dataset_name=a,b"}, "no option of the recipe ('dataset_name')"),
        ({"arms": "sft,paper", "seeds": "0,x"}, "--seeds 0,x cannot work"),
        ({"arms": "sft,paper", "seeds": "0,0"}, "--seeds 0,0 cannot work"),
        ({"arms": "sft,paper", "goal": "80"}, "goal=80.0 cannot work"),
        ({"arms": "sft,paper", "jobs": "0"}, "jobs=0 cannot work"),
        ({"arms": "sft,paper", "max_samples": "3"}, "3 test rows cannot show any difference"),
        ({"arms": "sft,paper", "num_warmups": "1"}, "The arm paper cannot run: warmup_num_beams"),
        ({"arms": "sft,paper", "task": "nothing.py"}, "no task 'nothing.py'"),
        ({"arms": "sft,paper", "model_name_or_path": "/no/such/model"}, "/no/such/model"),
        ({"arms": "sft,paper", "arm": "x"}, "no option --arm"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run_or_written(
    argv, tmp_path, in_this_process, capsys, options, words
):
    assert main(argv(**options)) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert in_this_process.started == []
    assert not (tmp_path / "cmp").exists()


def test_few_rows_say_which_difference_they_could_show(argv, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    assert "12 test rows: differences below about 57 points will probably not show" in capsys.readouterr().out


def test_a_folder_of_another_version(argv, tmp_path, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    path = tmp_path / "cmp" / "comparison.json"
    path.write_text(json.dumps({"format": 0, "version": "0.0.1"}))
    assert main(argv(arms="sft")) == BAD_INPUT
    assert "another version of warmup_peft (0.0.1;" in capsys.readouterr().err
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
    assert "holds something else than a comparison" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cmp").iterdir()] == ["mine.jsonl"]


def test_overwriting_takes_only_what_a_comparison_made(argv, tmp_path, in_this_process, capsys):
    """`runs/` is where adapters lie, too."""
    precious = write_rows(tmp_path / "cmp" / "runs" / "mine" / "adapter.json", [{"a": 1}])
    assert main([*argv(arms="sft"), "--overwrite_output_dir"]) == BAD_INPUT
    assert "holds something else" in capsys.readouterr().err
    assert precious.is_file()


def test_rows_that_changed_since_are_refused(argv, data, tmp_path, in_this_process, capsys):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    assert main(argv(arms="sft", dataset_name=str(own))) == 0
    write_rows(own / "test.jsonl", puzzles(12, start=50))
    assert main(argv(arms="sft,paper", dataset_name=str(own))) == BAD_INPUT
    assert "was run with other settings (rows:" in capsys.readouterr().err


def test_dashes_and_another_order_are_the_same_options(argv, tmp_path, in_this_process):
    assert main(argv(arms="sft", max_samples="8")) == 0
    command, *pairs = argv(arms="sft")
    turned = [word for i in range(len(pairs) - 2, -1, -2) for word in pairs[i : i + 2]]
    assert main([command, *(w.replace("_", "-") if w.startswith("--") else w for w in turned), "--max-samples=8"]) == 0
    assert in_this_process.started == ["sft 0"]


def test_options_that_would_disturb_are_switched_off(argv, tmp_path, in_this_process):
    assert main(argv(arms="sft", save_strategy="steps", save_steps="1", eval_strategy="epoch")) == 0
    assert not list((tmp_path / "cmp").rglob("checkpoint-*"))
    assert "--eval_strategy no" in " ".join(Job.load(tmp_path / "cmp" / "runs" / "sft" / "seed-0").argv)


def test_compares_own_options_in_a_recipe_are_refused(argv, tmp_path, in_this_process, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seeds: '0,1'\n")
    assert main([*argv(arms="sft"), "--config", str(recipe)]) == BAD_INPUT
    assert "key 'seeds', which is compare's own" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    "words",
    [
        ["--overwrite_output_dir", "false"],
        ["--overwrite_output_dir", "no"],
        ["--overwrite_output_dir=False"],
        ["--overwrite-output-dir", "0"],
        ["--overwrite_output_dir", "true", "--overwrite_output_dir", "false"],
    ],
)
def test_told_not_to_overwrite_it_keeps_what_is_done(argv, tmp_path, in_this_process, words):
    assert main(argv(arms="sft")) == 0
    assert main([*argv(arms="sft"), *words]) == 0
    assert in_this_process.started == ["sft 0"]


@pytest.mark.parametrize("words", [["--overwrite_output_dir"], ["--overwrite-output-dir", "Yes"]])
def test_told_to_overwrite_it_begins_anew(argv, tmp_path, in_this_process, words):
    assert main(argv(arms="sft")) == 0
    assert main([*argv(arms="sft"), *words]) == 0
    assert in_this_process.started == ["sft 0", "sft 0"]


def test_overwriting_is_said_on_the_command_line_only(argv, tmp_path, in_this_process):
    """In a recipe it is meant for `train`, and here would delete what is done at every call."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("overwrite_output_dir: true\n")
    command = [*argv(arms="sft"), "--config", str(recipe)]
    assert main(command) == 0
    assert main(command) == 0
    assert in_this_process.started == ["sft 0"]


def test_a_value_that_is_neither_true_nor_false_is_refused(argv, tmp_path, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    assert main([*argv(arms="sft"), "--overwrite_output_dir", "maybe"]) == BAD_INPUT
    assert "maybe" in capsys.readouterr().err
    assert in_this_process.started == ["sft 0"]
    assert (tmp_path / "cmp" / "runs" / "sft" / "seed-0" / "run.json").is_file()


def test_one_test_row(argv, data, tmp_path, in_this_process, capsys):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    (own / "validation.jsonl").unlink()
    write_rows(own / "test.jsonl", puzzles(1))
    assert main(argv(arms="sft,paper", dataset_name=str(own))) == BAD_INPUT
    assert "0 test rows cannot show any difference" in capsys.readouterr().err


def test_a_full_disk_keeps_what_is_done(argv, tmp_path, in_this_process, monkeypatch, capsys):
    assert main(argv(arms="sft")) == 0
    full = shutil._ntuple_diskusage(2**30, 2**30 - 2**20, 2**20)
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda place: full)
    assert main(argv(arms="sft,paper")) == BAD_INPUT
    assert "is full (1 MiB left)" in capsys.readouterr().err
    assert set(runs_of(tmp_path / "cmp")) == {"sft"}


def test_rows_of_a_single_split_are_divided(argv, data, tmp_path, in_this_process):
    """Every other row draws the curve, the others make the verdict."""
    own = tmp_path / "own"
    own.mkdir()
    for name, split in (("train", "train"), ("test", "validation")):
        shutil.copy(data / f"{name}.jsonl", own / f"{split}.jsonl")
    assert main(argv(arms="sft", dataset_name=str(own))) == 0
    rows = runs_of(tmp_path / "cmp")["sft"].rows
    assert [f"Colour {i}?" in row.prompt for i, row in zip(range(25, 37, 2), rows)] == [True] * 6
