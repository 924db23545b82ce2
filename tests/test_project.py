"""What stands beside the code: metadata, the list of packages, citation, and files of a public host."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

import warmup_peft

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
YAML_FILES = ("CITATION.cff", ".pre-commit-config.yaml", *sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml")
))  # fmt: skip
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def test_every_package_is_in_the_wheel():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == {*find_packages(str(ROOT), include=["warmup_peft*"]), "warmup_peft.recipes"}


def test_the_extra_all_has_every_other_one_that_users_need():
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"qlora", "compare", "eval", "serve", "all", "dev"}
    assert extras["all"] == ["warmup_peft[qlora,compare,eval,serve]"]


@pytest.mark.parametrize("name", YAML_FILES)
def test_the_files_of_a_public_host_are_yaml(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == warmup_peft.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert [each["name"] for each in citation["authors"]] == [each["name"] for each in PROJECT["project"]["authors"]]


def test_what_ci_and_commits_run_are_targets_of_make():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    commands += [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    assert {command.split()[0] for command in commands} == {"make"}
    assert {command.split()[1] for command in commands} == {
        "lint",
        "test",
        "test-versions",
        "test-wheel",
        "wheel",
    } & TARGETS


def test_ci_tests_every_python_that_the_metadata_names():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    named = {line.split()[-1] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == named
    others = workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert [each["resolution"] for each in others] == ["lowest-direct", "highest"]


def test_no_module_needs_more_than_windows_has_where_it_is_imported():
    """`resource`, `fcntl` and the like are imported, if at all, where the platform was asked."""
    for path in (ROOT / "warmup_peft").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^(import|from) (resource|fcntl|pwd|grp|termios|tty|pty)\b", text, re.M), path
        assert not re.search(r"os\.(killpg|fork|setsid|getpgid|getuid)\b", text), path


def test_nobody_forces_colours():
    """rich and tqdm leave them out where there is no terminal, and where NO_COLOR is set."""
    forced = r"force_terminal=True|color_system|\\x1b|\\033|no_color"
    for path in (ROOT / "warmup_peft").rglob("*.py"):
        assert not re.search(forced, path.read_text(encoding="utf-8")), path


def test_the_sdist_gets_what_stands_beside_the_code():
    """setuptools adds data files to it; tests/test_wheel.py builds one."""
    (files,) = PROJECT["tool"]["setuptools"]["data-files"].values()
    assert files == ["CHANGELOG.md", "CITATION.cff", "constraints.txt"]
    assert all((ROOT / name).is_file() for name in files)
