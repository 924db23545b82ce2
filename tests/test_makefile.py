"""`make recipe-logiqa` without a GPU, with stand-ins for the commands: SFT is trained beside the adapter."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = """#!/bin/sh
echo "$1 $OMP_NUM_THREADS" >> {log}
{bodies}
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def make(tmp_path):
    """Runs the recipe with these shell commands as `train`, `sft` and `evaluate`."""
    log = tmp_path / "log"

    def run(**bodies: str):
        venv = tmp_path / "venv"
        (venv / "bin").mkdir(parents=True)
        script = venv / "bin" / "warmup-peft"
        script.write_text(
            COMMAND.format(
                log=log, bodies="\n".join(f'[ "$1" = {name} ] && {{ {body}; }}' for name, body in bodies.items())
            )
            + "exit 0\n"
        )
        script.chmod(0o755)
        (venv / ".ready").touch()
        words = ["make", "recipe-logiqa", f"VENV={venv}", f"OUTPUT={tmp_path / 'run'}", "PROFILE=relay"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        return done, log.read_text().splitlines()

    return run


def test_both_are_trained_before_they_are_scored(make, tmp_path):
    done, called = make(train="sleep 0.2; echo TRAINED", sft="sleep 0.4; echo LATER")
    assert done.returncode == 0, done.stderr
    assert sorted(called[:2]) == ["sft 1", "train 1"]
    assert called[2].split()[0] == "evaluate"
    assert "TRAINED" in done.stdout
    assert "LATER" not in done.stdout, "its progress would disturb the other one's"
    assert (tmp_path / "run-sft.log").read_text() == "LATER\n"


def test_sft_that_fails_is_said(make):
    done, called = make(sft="echo WHY >&2; exit 2")
    assert done.returncode != 0
    assert "WHY" in done.stdout
    assert "evaluate" not in " ".join(called)


def test_sft_ends_when_the_training_fails(make, tmp_path):
    ended = tmp_path / "ended"
    start = time.monotonic()
    done, called = make(train="sleep 0.3; exit 2", sft=f"trap 'touch {ended}; exit' TERM; sleep 30 & wait")
    assert done.returncode != 0
    assert "evaluate" not in " ".join(called)
    assert time.monotonic() - start < 20
    for _ in range(100):
        if ended.exists():
            return
        time.sleep(0.1)
    pytest.fail("SFT still runs")
