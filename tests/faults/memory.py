"""Does a long training grow? Resident memory of `warmup-peft train` at its last step over that at step 300.

    python tests/faults/memory.py [--steps 3000] [--most 1.02] [any option of `warmup-peft train`]

Trains recipes/logiqa/relay.yaml in a process of its own and reads that process's memory from outside, at every line
that it prints. Exit code 1 where it has grown by more than `--most`. Linux only: /proc.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTLED = 300  # steps until every cache and pool of buffers is filled
STEP = re.compile(r"^step +(\d+) ")


def resident(pid: int) -> dict[str, int]:
    """KiB: all of it, and how much of that are files mapped into memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return {name: int(kib) for name, kib in re.findall(r"^(VmRSS|RssFile):\s+(\d+) kB", status, re.MULTILINE)}


def measure(steps: int, options: list[str]) -> dict[int, int]:
    """KiB at each logged step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "warmup_peft.cli", "train", "--config", "recipes/logiqa/relay.yaml"]
        command += ["--output_dir", folder, "--max_steps", str(steps), "--report_to", "none", *options]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        start, found = time.monotonic(), {}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                step = STEP.match(line)
                if step:
                    memory = resident(process.pid)
                    found[int(step[1])] = memory["VmRSS"]
                    seconds = time.monotonic() - start
                    print(
                        f"step {step[1]:>5}  {memory['VmRSS']:>9,} KiB, files {memory['RssFile']:,}  {seconds:.0f} s",
                        flush=True,
                    )
        if process.returncode:
            raise SystemExit(process.returncode)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--most", type=float, default=1.02)
    own, options = parser.parse_known_args()
    found = measure(own.steps, options)
    ratio = found[own.steps] / found[SETTLED]
    print(f"resident memory at step {own.steps} / at step {SETTLED}: {ratio:.4f}")
    return int(ratio > own.most)


if __name__ == "__main__":
    sys.exit(main())
