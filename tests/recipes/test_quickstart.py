"""The notebook: whole and without paths of the machine it ran on; and run again, as its reader would."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbclient import NotebookClient
from worlds import ROOT

NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook) -> str:
    """All text that its cells show, but for warnings and progress."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output for output in shown if output.get("name") != "stderr"]
    return "\n".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in shown)


def test_the_notebook_is_whole_and_was_run_in_order(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert "Its warmups are read" in outputs(notebook)


def test_it_names_no_place_and_no_person(notebook):
    text = NOTEBOOK.read_text(encoding="utf-8")
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    assert re.findall(r"(?<![\w.:/])/(?:home|root|tmp|usr|work|opt|Users)/[^\s\"]*|[A-Z]:\\\\", text) == []
    assert len(text) < 100_000


@pytest.mark.slow
def test_it_runs_in_another_folder_and_its_warmups_are_read(notebook, tmp_path):
    """Offline, in at most three minutes of computing; a kernel takes some seconds to start."""
    (tmp_path / "logiqa").symlink_to(ROOT / "recipes" / "logiqa")
    again = nbformat.from_dict(notebook)
    NotebookClient(again, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = outputs(again)
    assert "Its warmups are read" in said
    answer, right = said.rstrip().splitlines()[-2:]
    assert answer.split() == right.removeprefix("right:").split()
    assert (tmp_path / "runs" / "quickstart" / "training.html").is_file()
