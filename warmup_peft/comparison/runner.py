"""Runs jobs in processes of their own, so many at a time, with one progress display and the time left for them all."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from warmup_peft.comparison.arms import MORE_SFT
from warmup_peft.comparison.results import PROGRESS_NAME, RUN_NAME, Job, Run, read_progress
from warmup_peft.files import remove_abandoned

LOG_NAME = "log.txt"
LEAST_FREE_SPACE = 64 * 2**20  # bytes: an adapter and the rows of a run, and some more
POLL_SECONDS = 0.3
CHILD = "warmup_peft.comparison.run_arm"


@dataclass
class Running:
    place: Path
    job: Job
    process: subprocess.Popen
    start: float

    @property
    def share(self) -> float:
        step, steps = read_progress(self.place)
        return step / steps if steps else 0.0


@dataclass
class Scheduler:
    """Runs what is not done yet.

    Attributes:
        planned: how many runs there will be in all.
        at_a_time: how many processes.
        on_end: called with every run that has ended, those of an earlier comparison too.
        report: called when a process has ended.
    """

    planned: int
    at_a_time: int
    on_end: Callable[[Run], None]
    report: Callable[[], object]
    num_ended: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)  # of each arm, what its runs took

    def run(self, jobs: Sequence[tuple[Path, Job]]) -> None:
        """Run these jobs; those that are done are taken over.

        Raises:
            ValueError: a run that was done with other settings, or by another version.
            OSError: the disk is full.
            KeyboardInterrupt: after the processes were ended.
        """
        waiting = deque()
        for place, job in jobs:
            run = finished_run(place, job)
            if run is None:
                waiting.append((place, job))
            else:
                self._end(run)
        running: list[Running] = []
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        with Progress(*columns, console=Console(), transient=True) as display:
            bar = display.add_task("", total=self.planned, left="")
            try:
                while waiting or running:
                    while waiting and len(running) < self.at_a_time:
                        running.append(self._start(*waiting.popleft()))
                    time.sleep(POLL_SECONDS)
                    for each in [each for each in running if each.process.poll() is not None]:
                        running.remove(each)
                        run = self._result(each)
                        self._end(run)
                        self.report()
                        display.console.print(line_of(run, time.monotonic() - each.start), highlight=False)
                    display.update(bar, **self._state(running, waiting))
            finally:
                for each in running:
                    each.process.terminate()
                    each.process.wait()

    def _start(self, place: Path, job: Job) -> Running:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
        if free < LEAST_FREE_SPACE:
            raise OSError(
                f"The disk of {place} is full ({free // 2**20} MiB left). Free some and run the same command again: "
                "what is done is kept."
            )
        for name in (RUN_NAME, PROGRESS_NAME):
            (place / name).unlink(missing_ok=True)
        job.save(place)
        threads = str(max(1, (os.cpu_count() or 1) // self.at_a_time))
        with (place / LOG_NAME).open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", CHILD, str(os.getpid()), str(place)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": threads, **os.environ},
            )
        return Running(place, job, process, time.monotonic())

    def _result(self, each: Running) -> Run:
        run = Run.load(each.place) if each.process.returncode == 0 else None
        if run is None:
            error = why_it_ended(each.process.returncode, each.place / LOG_NAME)
            return Run(each.job.arm, each.job.seed, error=error)
        self.seconds.setdefault(run.arm, []).append(time.monotonic() - each.start)
        return run

    def _end(self, run: Run) -> None:
        self.num_ended += 1
        self.on_end(run)

    def _state(self, running: Sequence[Running], waiting: Sequence[tuple[Path, Job]]) -> dict:
        """Of the bar: how far, what is done now, and the time left."""
        now = ", ".join(f"{each.job.arm}, seed {each.job.seed}: {each.share:.0%}" for each in running)
        left = self._seconds_left(running, waiting)
        return {
            "description": f"{self.num_ended} of {self.planned} runs; {now}",
            "completed": self.num_ended + sum(each.share for each in running),
            "left": "" if left is None else f"about {in_words(left)} left",
        }

    def _seconds_left(self, running: Sequence[Running], waiting: Sequence[tuple[Path, Job]]) -> float | None:
        """By what runs of the same arm took, or any; of the first ones by how far they are. None before that."""
        known = [seconds for each in self.seconds.values() for seconds in each]
        known += [(time.monotonic() - each.start) / each.share for each in running if each.share > 0.1]
        if not known:
            return None

        def expected(arm: str) -> float:
            return statistics.fmean(self.seconds.get(arm) or known)

        later = self.planned - self.num_ended - len(running) - len(waiting)  # those that are not known yet
        work = sum(expected(each.job.arm) * (1 - each.share) for each in running)
        work += sum(expected(job.arm) for _, job in waiting) + later * max(known)
        return work / self.at_a_time


def finished_run(place: Path, job: Job) -> Run | None:
    """The run in this folder, where it was done as told; None where it has to be done.

    Raises:
        ValueError: it was done with other settings, or by another version.
    """
    run = Run.load(place)
    remove_abandoned(place)
    if run is None:
        return None
    earlier = Job.load(place)
    if earlier.settings() == job.settings():
        return run
    if job.kind == MORE_SFT:  # its steps follow from what the other arms took
        return None
    changed = sorted(set(earlier.settings()) ^ set(job.settings()))
    raise ValueError(
        f"{place} was run with other settings ({'; '.join(changed)[:300]}). Choose another --output_dir, or replace "
        "the comparison with --overwrite_output_dir."
    )


def why_it_ended(returncode: int, log: Path) -> str:
    """In a sentence: the last line of its log, or the signal that ended it."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "") + f"; see {log}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else f"its process ended with exit code {returncode}"


def line_of(run: Run, seconds: float) -> str:
    if run.error is not None:
        return f"{run.arm}, seed {run.seed}: failed. {run.error}"
    metric, score = next(iter(run.metrics.items()))
    return f"{run.arm}, seed {run.seed}: {metric} {score:.3f} ({in_words(seconds)})"


def in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest} s" if minutes else f"{rest} s"
