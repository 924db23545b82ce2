"""Files of a comparison: what was written is read, and nothing else."""

from __future__ import annotations

import dataclasses
import json

import pytest

from warmup_peft import __version__
from warmup_peft.comparison.results import FORMAT, Job, Point, Run, check_format, mark_format
from warmup_peft.evaluation.tasks import Row

JOB = Job("warmup num_warmups=2", "warmup", 3, {"num_warmups": 2, "task_args": {"a": 1}}, None, 10, 128, 32, "f00d")


def test_a_job_is_read_as_it_was_written(tmp_path):
    JOB.save(tmp_path)
    assert Job.load(tmp_path) == JOB


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"at_a_time": 2}, set()),
        ({"options": {"task_args": {"a": 1}, "num_warmups": 2}}, set()),
        ({"seed": 4}, {"seed: 3", "seed: 4"}),
        ({"options": {**JOB.options, "num_warmups": 4}}, {"--num_warmups 2", "--num_warmups 4"}),
        ({"options": {**JOB.options, "bf16": False}}, {"--bf16 False"}),
        ({"rows": "beef"}, {"rows: f00d", "rows: beef"}),
    ],
)
def test_how_two_jobs_differ(change, differs):
    assert set(JOB.settings()) ^ set(dataclasses.replace(JOB, **change).settings()) == differs


def test_a_run_is_read_as_it_was_written(tmp_path):
    assert Run.load(tmp_path) is None
    run = Run("sft", 1, steps=2, curve=[Point(1, 2, 3.0, 0.5, 0.25)], rows=[Row("p", "r", "w", "a", 1.0, 0.5, 2)])
    run.save(tmp_path)
    assert dataclasses.asdict(Run.load(tmp_path)) == dataclasses.asdict(run)


@pytest.mark.parametrize("text", ["{", "[]", '{"arm": "sft", "argv": []}', json.dumps({"format": 1})])
def test_a_job_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(ValueError, match=r"job.json (cannot be read|was written by another version)"):
        Job.load(tmp_path)


def test_a_folder_says_which_version_made_it(tmp_path):
    with pytest.raises(ValueError, match="holds files that are no comparison"):
        check_format(tmp_path)
    mark_format(tmp_path)
    check_format(tmp_path)


@pytest.mark.parametrize("found", [{"format": 1, "version": __version__}, {"format": FORMAT, "version": "0.0.1"}, []])
def test_a_folder_of_another_version_is_refused(tmp_path, found):
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=f"another version of warmup_peft .*this is {__version__}, format {FORMAT}"):
        check_format(tmp_path)
