"""Runs jobs in their own processes, a few at a time, with one progress bar for all of them."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import Lock

import torch
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from warmup_peft.comparison.arms import MORE_SFT
from warmup_peft.comparison.results import LOCK_NAME, RUN_NAME, Job, Run
from warmup_peft.files import remove_abandoned

LOG_NAME = "log.txt"
LEAST_FREE_SPACE = 64 * 2**20  # bytes, enough for an adapter and the rows of a run
WAIT_SECONDS = 15  # for the process of a comparison that was killed
LOG_SECONDS = 5  # between two updates of a training's progress bar in its log
CHILD = "warmup_peft.comparison.run_arm"
ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception)\b")


@dataclass
class Runner:
    """Runs the jobs that are not done yet. Each run reports its own progress in its log.

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
    _num_ended: int = 0
    _processes: dict[subprocess.Popen, str] = field(default_factory=dict)  # -> which run it is
    _devices: dict[subprocess.Popen, str | None] = field(default_factory=dict)  # -> the GPU that it sees
    _is_stopped: bool = False
    _lock: Lock = field(default_factory=Lock)  # held to change the fields above and to call on_end and report

    def run(self, jobs: Sequence[tuple[Path, Job]]) -> None:
        """Run these jobs; those that are done are taken over.

        Raises:
            ValueError: a run that was done with other settings, or by another version.
            OSError: the disk is full.
            KeyboardInterrupt: after the processes were ended.
        """
        waiting, done = [], []
        for place, job in jobs:
            run = finished_run(place, job)
            if run is None:
                waiting.append((place, job))
            else:
                done.append(f"{run.arm}, seed {run.seed}")
                self._end(run)
        if done:
            print(f"Done before, and kept: {'; '.join(done)}.")
        columns = (MofNCompleteColumn(), TextColumn("runs"), BarColumn(), TimeRemainingColumn(),
                   TextColumn("left; now {task.description}"))  # fmt: skip
        bar = Progress(*columns, transient=True, speed_estimate_period=float("inf"))
        bar.advance(bar.add_task("", total=self.planned, completed=self._num_ended), 0)  # time is counted from here
        with bar, ThreadPoolExecutor(self.at_a_time) as pool:
            try:
                for future in as_completed([pool.submit(self._run_one, place, job, bar) for place, job in waiting]):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with self._lock:
                    self._stop()
                raise

    def _run_one(self, place: Path, job: Job, bar: Progress) -> None:
        begin = time.monotonic()
        with self._stopping_after_errors():
            if self._is_stopped:
                return
            device = self._least_busy()
            process = start(place, job, self.at_a_time, device)
            self._devices[process] = device
            self._processes[process] = f"{job.arm}, seed {job.seed}"
            self._show(bar)
        process.wait()
        with self._stopping_after_errors():
            del self._processes[process], self._devices[process]
            if self._is_stopped:
                return
            run = result(place, job, process.returncode)
            self._end(run)
            self._show(bar)
            self.report()
            bar.console.print(line_of(run, time.monotonic() - begin), highlight=False, markup=False)

    @contextmanager
    def _stopping_after_errors(self) -> Iterator[None]:
        """Hold the lock; after an error, terminate all processes and start no more."""
        with self._lock:
            try:
                yield
            except BaseException:
                self._stop()
                raise

    def _least_busy(self) -> str | None:
        """The GPU that the fewest runs are on; None where there is none."""
        taken = list(self._devices.values())
        return min(visible_gpus(), key=taken.count, default=None)

    def _stop(self) -> None:
        self._is_stopped = True
        for process in self._processes:
            process.terminate()

    def _end(self, run: Run) -> None:
        self._num_ended += 1
        self.on_end(run)

    def _show(self, bar: Progress) -> None:
        now = "; ".join(self._processes.values())
        bar.update(bar.task_ids[0], description=now, completed=self._num_ended)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in named.split(",")]
    return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))  # as CUDA reads it


def start(place: Path, job: Job, at_a_time: int, gpu: str | None = None) -> subprocess.Popen:
    """Start the process of a run.

    Args:
        gpu: the only one that it sees, since transformers would spread a run over several (DataParallel).

    Raises:
        ValueError: another process trains in its folder.
        OSError: the disk is full.
    """
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE_SPACE:
        raise OSError(
            f"The disk of {place} is full ({free // 2**20} MiB left). Free some and run the same command again: "
            "what is done is kept."
        )
    wait_for_another(place)
    (place / RUN_NAME).unlink(missing_ok=True)
    job.save(place)
    only = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    threads = str(max(1, (os.cpu_count() or 1) // at_a_time))
    with (place / LOG_NAME).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", CHILD, str(os.getpid()), str(place)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, "TQDM_MININTERVAL": str(LOG_SECONDS), **os.environ, **only},
        )


def wait_for_another(place: Path) -> None:
    """Wait until a process that an earlier comparison started here has ended: it does so soon after its parent.

    Raises:
        ValueError: it goes on.
    """
    try:
        with FileLock(place / LOCK_NAME, timeout=WAIT_SECONDS):
            return
    except Timeout as error:
        raise ValueError(
            f"Another process still trains in {place}. End it, or choose another --output_dir."
        ) from error


def result(place: Path, job: Job, returncode: int) -> Run:
    """The finished run, or a failed one with the reason."""
    run = Run.load(place) if returncode == 0 else None
    return run or Run(job.arm, job.seed, error=why_it_ended(returncode, place / LOG_NAME))


def finished_run(place: Path, job: Job) -> Run | None:
    """The run in this folder if it has these settings; None if it has to be run.

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
    """The signal that ended the process, or the last error in its log, else the log's last line."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "") + f"; see {log}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if ERROR.match(line)] or lines  # a progress bar may come after the error
    return lines[-1][:500] if lines else f"its process ended with exit code {returncode}"


def line_of(run: Run, seconds: float) -> str:
    if run.error is not None:
        return f"{run.arm}, seed {run.seed}: failed. {run.error}"
    metric, score = next(iter(run.metrics.items()))
    return f"{run.arm}, seed {run.seed}: {metric} {score:.3f} ({timedelta(seconds=round(seconds))})"
