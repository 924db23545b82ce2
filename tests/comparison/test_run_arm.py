"""One run: its settings, and the examples that it counts."""

from __future__ import annotations

import sys
from threading import Event

import pytest
from comparisons import runs_of
from trl import SFTTrainer

from warmup_peft.cli.main import main
from warmup_peft.comparison import run_arm
from warmup_peft.comparison.results import Job, Run
from warmup_peft.comparison.run_arm import settings_of_job


def test_a_job_is_trained_with_its_options_seed_and_folder(tmp_path):
    job = Job("warmup", "warmup", 3, {"num_warmups": 2, "bf16": False, "lora_r": 5}, None, 10, 128, 32, "f00d")
    settings = settings_of_job(job, tmp_path)
    assert (settings.training.num_warmups, settings.training.seed, settings.model.lora_r) == (2, 3, 5)
    assert settings.training.output_dir == str(tmp_path)


def test_a_run_ends_when_its_parent_has_ended(tmp_path, monkeypatch):
    """The parent is 7, and ends while the arm is trained. `os._exit` would end the whole process."""
    ended, codes, parent = Event(), [], [7]

    def train(job, folder):
        assert not ended.wait(3 * run_arm.PARENT_SECONDS)
        parent[0] = 1  # as the system does it
        assert ended.wait(30)
        return Run("sft", 0)

    monkeypatch.setattr(run_arm.os, "getppid", lambda: parent[0])
    monkeypatch.setattr(run_arm.os, "_exit", lambda code: (codes.append(code), ended.set()))
    monkeypatch.setattr(run_arm, "run_arm", train)
    monkeypatch.setattr(run_arm, "PARENT_SECONDS", 0.05)
    monkeypatch.setattr(sys, "argv", ["run_arm", "7", str(tmp_path)])
    Job("sft", "sft", 0, {}, None, 1, 8, 32, "rows").save(tmp_path)
    run_arm.main()
    assert codes == [1]


@pytest.mark.parametrize(
    ("batch", "accumulation", "drop_last", "expected"),
    [(5, 1, False, [0, 5, 10, 12, 17, 22, 24]), (5, 2, False, [0, 10, 12, 22, 24]), (5, 1, True, [0, 5, 10, 15, 20]),
     (4, 1, False, [0, 4, 8, 12, 16])],
)  # fmt: skip
def test_examples_are_those_really_seen(argv, tmp_path, in_this_process, batch, accumulation, drop_last, expected):
    """12 rows in batches of 5 are 5, 5 and 2; with two batches a step 10 and 2."""
    steps = len(expected) - 1
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
               "dataloader_drop_last": drop_last, "max_steps": steps, "curve_points": steps}  # fmt: skip
    seen = [0]
    with pytest.MonkeyPatch.context() as patch:
        training_step = SFTTrainer.training_step

        def counting(self, model, inputs, *more, **options):
            seen.append(seen[-1] + len(inputs["input_ids"]))
            return training_step(self, model, inputs, *more, **options)

        patch.setattr(SFTTrainer, "training_step", counting)
        assert main(argv(arms="sft", **{name: str(value) for name, value in options.items()})) == 0
    run = runs_of(tmp_path / "cmp")["sft"]
    assert run.error is None
    assert [point.examples for point in run.curve] == expected
    assert set(expected) <= set(seen)
    assert seen[-1] == expected[-1]
    assert run.examples_per_second == pytest.approx(expected[-1] / run.train_seconds)
