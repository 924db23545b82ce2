"""sdist and wheel: built, installed beside the dependencies alone, and used in another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from folders import tree

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
FEW = ("--max_steps", "1", "--per_device_train_batch_size", "2", "--load_in_4bit", "false", "--report_to", "none")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"

pytestmark = pytest.mark.slow


def build(kind: str, source: Path, place: Path) -> Path:
    place.mkdir()
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(place)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = place.iterdir()
    return built


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """One built from the tree, and one from the sdist that was built from it."""
    room = tmp_path_factory.mktemp("built")
    source = Path(shutil.copytree(ROOT, room / "source", ignore=LEFT_OUT))
    sdist = build("sdist", source, room / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(room / "unpacked", filter="data")
    (unpacked,) = (room / "unpacked").iterdir()
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE", "constraints.txt"} <= {path.name for path in unpacked.iterdir()}
    return {"tree": build("wheel", source, room / "of-tree"), "sdist": build("wheel", unpacked, room / "of-sdist")}


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """The scripts of an environment with the wheel that came from the sdist."""
    place = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    scripts = place / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "-q", str(wheels["sdist"])], check=True)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return scripts


def run(program: Path, *words: str, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(program), *words], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_has_all_of_the_package_and_of_the_recipes(wheels):
    expected = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in (("warmup_peft", ROOT / "warmup_peft"), ("warmup_peft/recipes", ROOT / "recipes"))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            names = {name for name in archive.namelist() if not re.search(r"\.(dist-info|data)/", name)}
        assert names == expected


def test_recipes_train_in_another_folder_without_the_clone(installed, tmp_path):
    python, command = installed / "python", installed / "warmup-peft"
    package = Path(run(python, "-c", "import warmup_peft; print(warmup_peft.__file__)", cwd=tmp_path).strip()).parent
    assert package.is_relative_to(installed.parent)

    def without_bytecode() -> dict[str, bytes]:
        return {name: held for name, held in tree(package).items() if "__pycache__" not in name}

    before = without_bytecode()
    run(command, "train", "--config", "logiqa", "--output_dir", "one", *FEW, cwd=tmp_path)
    run(command, "init", "mine", "--recipe", "prosqa", cwd=tmp_path)
    run(command, "train", "--config", "recipe.yaml", *FEW, cwd=tmp_path / "mine")
    assert (tmp_path / "mine" / "runs" / "mine" / "adapter_config.json").is_file()
    assert without_bytecode() == before
    assert not list((package / "recipes").rglob("__pycache__"))
