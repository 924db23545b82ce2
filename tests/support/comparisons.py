"""Comparisons of tiny models, whose runs take place in the test's own process."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import TRAINING, puzzles, write_rows

from warmup_peft.comparison import run_arm, runner
from warmup_peft.comparison.results import Job, Run

SETTINGS = {
    "task": "logiqa",
    **TRAINING,
    "warmup_pool_size": "2",
    "save_strategy": "no",
    "curve_points": "1",
    "curve_samples": "4",
}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for start, split in enumerate(("train", "validation", "test")):
        write_rows(folder / f"{split}.jsonl", puzzles(12, start=12 * start))
    return folder


@pytest.fixture
def argv(model_folder, data, tmp_path, monkeypatch, quick_pictures):
    """Of a comparison into `tmp_path / "cmp"`; options may be changed."""
    monkeypatch.setattr("warmup_peft.comparison.significance.RESAMPLES", 99)

    def build(**options: str) -> list[str]:
        given = {"model_name_or_path": model_folder, "dataset_name": data, "output_dir": tmp_path / "cmp"}
        values = {**SETTINGS, **given, "seeds": "0", **options}
        return ["compare", *(str(word) for name, value in values.items() for word in (f"--{name}", value))]

    return build


class InThisProcess:
    """Stands for `subprocess.Popen`: does the work at once, and leaves what a process would leave.

    The same job is trained only once: its second folder gets the same `run.json`, and no model.
    """

    trained: dict[str, Run] = {}  # of a job, for the whole session
    started: list[str] = []
    fail: dict[str, BaseException | int] = {}  # of an arm: what is raised, or the exit code

    def __init__(self, command, stdout, **options):
        folder = Path(command[-1])
        job = Job.load(folder)
        self.started.append(f"{job.arm} {job.seed}")
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
            if repr(job) not in self.trained:
                self.trained[repr(job)] = run_arm.run_arm(job, folder)
            self.trained[repr(job)].save(folder)

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
