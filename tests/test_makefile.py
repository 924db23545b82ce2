"""`make recipe-logiqa` without a GPU, with stand-ins for the commands: SFT is trained beside the adapter."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# each call is logged; `await FILE` waits for a file, at most ten seconds
COMMAND = """#!/bin/sh
await() {{ for _ in $(seq 100); do [ -e {folder}/$1 ] && return; sleep 0.1; done; echo "no $1" >&2; exit 9; }}
cd {folder}
echo "$1 threads:$OMP_NUM_THREADS" >> log
case "$1" in
{cases}
esac
"""
ENDS_WHEN_TOLD = "trap 'touch ended; exit 3' TERM; touch ready; sleep 30 & wait"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def make(tmp_path):
    """Starts the recipe with these shell commands as `train`, `sft` and `evaluate`."""

    def start(output: str = "run", **commands: str) -> subprocess.Popen:
        venv = tmp_path / "venv"
        (venv / "bin").mkdir(parents=True)
        script = venv / "bin" / "warmup-peft"
        cases = "\n".join(f"{name}) {command} ;;" for name, command in commands.items())
        script.write_text(COMMAND.format(folder=tmp_path, cases=cases))
        script.chmod(0o755)
        (venv / ".ready").touch()
        return subprocess.Popen(
            ["make", "recipe-logiqa", f"VENV={venv}", f"OUTPUT={tmp_path / output}", "PROFILE=relay"],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "OMP", "SFT"))},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    return start


def wait_for(path: Path) -> None:
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.1)
    pytest.fail(f"There is no {path.name}.")


def test_both_are_trained_at_the_same_time_and_then_scored(make, tmp_path):
    out, error = make(
        train="touch training; await sft-training; echo TRAINED",
        sft="touch sft-training; await training; sleep 0.3; echo LATER",
        evaluate="cat run-sft.log",
    ).communicate(timeout=60)
    *trained, scored = (tmp_path / "log").read_text().splitlines()
    assert sorted(trained) == ["sft threads:1", "train threads:1"], error
    assert scored == "evaluate threads:"
    assert out.split("run-sft.log")[-1].split() == ["TRAINED", "LATER"], "the progress of SFT belongs into its log"


@pytest.mark.parametrize("output", ["run", "run/"])
def test_sft_that_fails_is_said(make, tmp_path, output):
    process = make(output, sft="echo WHY >&2; exit 2")
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "WHY" in error
    assert f"see {tmp_path / 'run-sft.log'}" in error
    assert "evaluate" not in (tmp_path / "log").read_text()


def test_sft_ends_when_the_training_fails(make, tmp_path):
    process = make(train="await ready; exit 2", sft=ENDS_WHEN_TOLD)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(tmp_path / "ended")
    assert "evaluate" not in (tmp_path / "log").read_text()


def test_sft_ends_when_the_user_interrupts(make, tmp_path):
    process = make(train="await ready; touch training; sleep 30", sft=ENDS_WHEN_TOLD)
    wait_for(tmp_path / "training")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(tmp_path / "ended")
