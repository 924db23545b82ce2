"""Processes are started so many at a time, taken over when they are done, and ended with the runner."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from warmup_peft.comparison import run_arm, runner
from warmup_peft.comparison.results import LOCK_NAME, Job, Run
from warmup_peft.comparison.runner import Runner, finished_run, line_of, why_it_ended

JOB = Job("sft", "sft", 0, {}, None, 1, 8, 32, "rows")


class Child:
    """Stands for a run's process: it ends when it is told to, or is terminated."""

    def __init__(self, place: Path, returncode: int | None):
        self.place, self.returncode = place, returncode
        self.ended, self.is_terminated = threading.Event(), False
        if returncode is not None:
            self.ended.set()

    def wait(self) -> int:
        assert self.ended.wait(30)
        if self.returncode == 0:
            Run("sft", 0, metrics={"accuracy": 0.5}).save(self.place)
        return self.returncode

    def terminate(self) -> None:
        self.is_terminated, self.returncode = True, -15
        self.ended.set()


@pytest.fixture
def children(monkeypatch):
    """`started` are the processes by folder; `codes` says with what each one ends, 0 where it says nothing;
    `gpus` is what each one sees."""
    started: dict[str, Child] = {}

    def popen(command, **options):
        place = Path(command[-1])
        popen.gpus[place.name] = options["env"].get("CUDA_VISIBLE_DEVICES")
        started[place.name] = Child(place, popen.codes.get(place.name, 0))
        return started[place.name]

    popen.codes = {}
    popen.gpus = {}
    popen.started = started
    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    return popen


def jobs(folder: Path, *names: str) -> list[tuple[Path, Job]]:
    return [(folder / name, JOB) for name in names]


def test_every_job_is_run_and_told_of_once(tmp_path, children):
    ended, reports = [], []
    Runner(3, 2, ended.append, lambda: reports.append(len(ended))).run(jobs(tmp_path, "a", "b", "c"))
    assert [run.error for run in ended] == [None] * 3
    assert reports == [1, 2, 3]
    assert sorted(children.started) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [("0,1", 9, {"0", "1"}), (None, 2, {"0", "1"}), ("GPU-af, 3,-1,2", 9, {"GPU-af", "3"}), ("", 9, {""}),
     (None, 0, {None})],
)  # fmt: skip
def test_each_run_sees_a_gpu_of_its_own(tmp_path, children, monkeypatch, visible, gpus, expected):
    """Two at a time, so that both GPUs are taken; a third run gets the one that is free again."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    running, together, wait = [], [], Child.wait

    def overlapping(self) -> int:
        running.append(children.gpus[self.place.name])
        deadline = time.monotonic() + 1
        while len(children.started) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        together.append(tuple(running))
        running.remove(children.gpus[self.place.name])
        return wait(self)

    monkeypatch.setattr(Child, "wait", overlapping)
    Runner(3, 2, lambda run: None, lambda: None).run(jobs(tmp_path, *"abc"))
    assert set(children.gpus.values()) == expected
    if len(expected) == 2:
        assert children.gpus["a"] != children.gpus["b"]
        assert all(len(set(each)) == len(each) for each in together)


def test_what_is_done_is_taken_over_without_a_new_report(tmp_path, children):
    ended, reports = [], []
    Runner(2, 1, ended.append, lambda: reports.append(1)).run(jobs(tmp_path, "a"))
    Runner(2, 1, ended.append, lambda: reports.append(1)).run(jobs(tmp_path, "a", "b"))
    assert (len(ended), len(reports)) == (3, 2)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, children):
    children.codes["a"] = -9
    ended = []
    Runner(2, 1, ended.append, lambda: None).run(jobs(tmp_path, "a", "b"))
    assert [run.error is None for run in ended] == [False, True]
    assert "SIGKILL (out of memory?)" in ended[0].error


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_an_error_ends_what_runs_and_starts_nothing_more(tmp_path, children, monkeypatch, error):
    """The run a ends while b still runs, and its report cannot be written."""
    children.codes["b"] = None
    ended = []
    wait = Child.wait

    def after_b_has_started(self) -> int:
        while "b" not in children.started:
            time.sleep(0.01)
        return wait(self)

    def report() -> None:
        raise error

    monkeypatch.setattr(Child, "wait", after_b_has_started)
    with pytest.raises(type(error)):
        Runner(3, 2, ended.append, report).run(jobs(tmp_path, "b", "a", "c"))
    assert children.started["b"].is_terminated
    assert set(children.started) == {"a", "b"}
    assert len(ended) == 1


def test_at_most_so_many_at_a_time(tmp_path, children, monkeypatch):
    running, most = [], []
    wait = Child.wait

    def counted(self) -> int:
        running.append(self)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(self)
        return wait(self)

    monkeypatch.setattr(Child, "wait", counted)
    Runner(6, 2, lambda run: None, lambda: None).run(jobs(tmp_path, *"abcdef"))
    assert max(most) == 2


def test_a_run_with_other_settings_is_refused(tmp_path, children):
    Runner(1, 1, lambda run: None, lambda: None).run(jobs(tmp_path, "a"))
    assert finished_run(tmp_path / "a", JOB).metrics == {"accuracy": 0.5}
    assert finished_run(tmp_path / "b", JOB) is None
    with pytest.raises(ValueError, match="other settings"):
        finished_run(tmp_path / "a", dataclasses.replace(JOB, rows="others"))


def test_a_child_has_its_own_log_and_the_last_line_is_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "CHILD", "no.such.module")
    ended = []
    Runner(1, 1, ended.append, lambda: None).run(jobs(tmp_path, "a"))
    log = (tmp_path / "a" / "log.txt").read_text(encoding="utf-8")
    assert "no.such.module" in log or "No module named" in log
    assert ended[0].error == log.strip().splitlines()[-1]
    assert ended[0].error.startswith(sys.executable)


def test_why_it_ended(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text(" 50%|#####     | 1/2\rTraceback ...\nValueError: no\n\n", encoding="utf-8")
    assert why_it_ended(1, log) == "ValueError: no"
    log.write_text("Traceback ...\ntorch.OutOfMemoryError: too large\n\r  4%|4 | 1/24 [00:01<00:41, 1.8s/it]")
    assert why_it_ended(1, log) == "torch.OutOfMemoryError: too large"
    log.write_text("")
    assert why_it_ended(3, log) == "its process ended with exit code 3"


def test_lines_of_runs():
    assert line_of(Run("sft", 1, metrics={"accuracy": 0.5}), 3725.2) == "sft, seed 1: accuracy 0.500 (1:02:05)"
    assert line_of(Run("sft", 1, error="no [/luck]"), 1.0) == "sft, seed 1: failed. no [/luck]"


def test_finished_runs_are_named(tmp_path, children, capsys):
    for _ in range(2):
        Runner(1, 1, lambda run: None, lambda: None).run(jobs(tmp_path, "a"))
    assert "Done before, and kept: sft, seed 0." in capsys.readouterr().out


def test_a_run_waits_for_the_process_of_an_earlier_comparison(tmp_path, children, monkeypatch):
    monkeypatch.setattr(runner, "WAIT_SECONDS", 0.1)
    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a" / LOCK_NAME):
        with pytest.raises(ValueError, match=r"Another process still trains in .*/a\. End it, or choose"):
            Runner(1, 1, lambda run: None, lambda: None).run(jobs(tmp_path, "a"))
        assert children.started == {}
    Runner(1, 1, lambda run: None, lambda: None).run(jobs(tmp_path, "a"))
    assert list(children.started) == ["a"]


def test_a_run_holds_its_lock(tmp_path, monkeypatch):
    def run(job, folder):
        with pytest.raises(runner.Timeout):
            FileLock(folder / LOCK_NAME, timeout=0, is_singleton=False).acquire()
        return Run("sft", 0)

    JOB.save(tmp_path)
    monkeypatch.setattr(run_arm, "run_arm", run)
    monkeypatch.setattr(sys, "argv", ["run_arm", str(tmp_path)])
    run_arm.main()
    assert Run.load(tmp_path).arm == "sft"
