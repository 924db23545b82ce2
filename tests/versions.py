"""The oldest and the newest versions that pyproject.toml allows: a part of the suite in an environment of each.

    python tests/versions.py                                   # every Python of `PYTHONS` that is on this machine
    python tests/versions.py --python 3.11 --resolution lowest-direct --pin torch==2.13.0

`lowest-direct` takes the oldest version of every package that pyproject.toml names, `highest` the newest of all. What
is pinned is so in every environment; the line of the result says so. Needs uv: pip install uv.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = ("lowest-direct", "highest")
DIAGONAL = (  # where trl, transformers, peft, datasets, accelerate, pandas and the command line are met
    "tests/test_package.py",
    "tests/settings/test_parsing.py",
    "tests/method/test_prefix.py",
    "tests/method/test_predictions.py",
    "tests/training/test_trainer.py",
    "tests/training/test_trainer_interplay.py",
    "tests/training/test_saving.py",
    "tests/training/test_pool.py",
    "tests/inference/test_loading.py",
    "tests/export/test_merge.py",
    "tests/evaluation/test_built_in_metrics.py",
    "tests/evaluation/test_metrics.py",
    "tests/comparison/test_significance.py",
    "tests/cli/test_train.py",
)
MAIN_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pandas")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="a version or a path; default: all that are here")
    parser.add_argument("--resolution", action="append", choices=RESOLUTIONS, help="default: both")
    parser.add_argument("--pin", action="append", default=[], help="such as torch==2.13.0; may be given several times")
    parser.add_argument("--find_links", help="a folder of wheels to look into first")
    parser.add_argument("--folder", type=Path, help="where the environments stay; default: a temporary folder")
    parser.add_argument("tests", nargs="*", default=DIAGONAL, help="in place of the part that is named in this file")
    args = parser.parse_args()
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        parser.error("uv is not installed. Run: pip install uv")
    pythons = args.python or [version for version in PYTHONS if interpreter(uv, version)]
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for python in pythons:
            for resolution in args.resolution or RESOLUTIONS:
                environment = (args.folder or Path(temporary)) / f"{Path(python).name}-{resolution}"
                said = try_out(uv, environment, python, resolution, args)
                failed += said != "passed"
                pinned = f", {', '.join(args.pin)} pinned" if args.pin else ""
                print(f"Python {python}, {resolution}{pinned}: {said}", flush=True)
    absent = sorted(set(PYTHONS) - set(pythons)) if args.python is None else []
    for python in absent:
        print(f"Python {python}: not on this machine")
    return int(failed > 0)


def interpreter(uv: str, version: str) -> str | None:
    """A Python of that version on this machine: from the path, of pyenv (whose command may name none), or of uv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    managed = subprocess.run([uv, "python", "find", "--offline", version], capture_output=True, text=True).stdout
    found = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python"), managed.strip()]
    runs = (path for path in found if path and not subprocess.run([path, "--version"], capture_output=True).returncode)
    return next(map(str, runs), None)


def try_out(uv: str, environment: Path, python: str, resolution: str, args: argparse.Namespace) -> str:
    """What came of it: passed, or what failed."""
    binary = environment / "bin" / "python"
    install = [uv, "pip", "install", "-q", "--python", str(binary), "--resolution", resolution, *args.pin]
    install += ["--find-links", args.find_links] if args.find_links else []
    python = interpreter(uv, python) or python
    if subprocess.run([uv, "venv", "-q", "--allow-existing", "--python", python, str(environment)]).returncode:
        return "no environment"
    if subprocess.run([*install, "-e", f"{ROOT}[qlora,dev]"]).returncode:
        return "cannot be installed"
    say = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {MAIN_PACKAGES}), sep=', ')"
    subprocess.run([binary, "-c", say])
    test = [str(binary), "-m", "pytest", "-n", "0", "--tb=short", *args.tests]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return "passed" if subprocess.run(test, cwd=ROOT, env=environ).returncode == 0 else "tests failed"


if __name__ == "__main__":
    sys.exit(main())
