"""Mistakes that options and the file system show are said before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from folders import write_rows

from warmup_peft.cli import main
from warmup_peft.cli.early import CHECKS
from warmup_peft.inference.folder import TRAINER_STATE_NAME, TrainingRecord, WarmupConfig

MISTAKES = {
    "train": "No model is named",
    "train --config logqa": "Did you mean 'logiqa'?",
    "train --config logiqa --objective jenson": "Did you mean 'jensen'?",
    "train --config logiqa --task logica": "Did you mean 'logiqa'?",
    "train --config logiqa --packing true": "packing=True does not work with warmups",
    "train --config logiqa --dataset_name row.jsonl": "Did you mean rows.jsonl?",
    "train --config logiqa --model_name_or_path ./bse": "Did you mean base?",
    "train --config logiqa --dataset_name rows.jsonl --task prompt_completion": "do not show where the prompt ends",
    "train --config logiqa --resume_from_checkpoint last": "There is no checkpoint",
    "train --config logiqa --output_dir run": "run holds another run",
    "train --config logiqa --use_peft false --warmup_anchor 0.3": "Set use_peft to true",
    "train --config logiqa --output_dir run --resume_from_checkpoint last --objective rlpr": "'jensen' -> 'rlpr'",
    "sft --config logiqa --as_long_as nowhere": "does not say how long it was trained",
    "sft --config logiqa --resume_from_checkpoint last": "`sft` starts anew",
    "compare --config logiqa --arms sft,wamup": "Did you mean 'warmup'?",
    "compare --config logiqa --seeds 0,0": "--seeds 0,0 cannot work",
    "compare --config logiqa --sweep num_warmup=2": "Did you mean 'num_warmups'?",
    "evaluate --adapter runs/nowhere": "The folder runs/nowhere does not exist",
    "evaluate --adapter run --metrics exactmatch": "Did you mean 'exact_match'?",
    "evaluate --adapter run --warmups own,shufled": "Did you mean 'shuffled'?",
    "evaluate --adapter run --device cpu --device_map auto": "are both given",
    "inspect run --dataset_name row.jsonl": "Did you mean rows.jsonl?",
    "inspect": "inspect needs a run, as in: warmup-peft inspect",
    "generate --adapter run --prompt x --messages y": "--prompt and --messages are both given",
    "generate --adapter nowhere --prompt x": "The folder nowhere does not exist",
    "chat --adapter nowhere": "The folder nowhere does not exist",
    "merge --adapter base --output_dir y": "has no adapter_config.json",
    "push --folder run --repo_id mine": "as in me/mine",
    "push --folder empty --repo_id me/mine": "neither an adapter nor a model",
    "init": "as in: warmup-peft init my-recipe. The recipes are logiqa, ",
    "bench --shape smal": "Did you mean 'small'?",
    "doctor --shape smal": "Did you mean 'small'?",
}
GUARDED = """
import contextlib, io, json, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise RuntimeError("torch is imported")

sys.meta_path.insert(0, NoTorch())
from warmup_peft.cli.main import main
for line in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error):
        try:
            code = main(line.split())
        except RuntimeError as failure:
            code, error = 1, io.StringIO(str(failure))
    print(json.dumps([code, error.getvalue()]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows, an empty base and a run that was trained to its end."""
    place = tmp_path_factory.mktemp("place")
    for name in ("base", "empty", "runs", "run/checkpoint-2"):
        (place / name).mkdir(parents=True)
    write_rows(place / "rows.jsonl", [{"q": "one?", "a": "A"}])
    WarmupConfig(" || ", [1], 8).save(place / "run")
    for folder in (place / "run", place / "run" / "checkpoint-2"):
        TrainingRecord("base", settings={"objective": "jensen", "lora_r": 16}, data={"task": "logiqa"}).save(folder)
        (folder / TRAINER_STATE_NAME).write_text(json.dumps({"global_step": 2, "epoch": 1.0}))
    return place


@pytest.fixture(scope="module")
def said(place):
    """What each command line ends with, and says; all in one process that cannot import torch."""
    command = [sys.executable, "-c", GUARDED, json.dumps([*MISTAKES, FINISHED])]
    run = subprocess.run(command, capture_output=True, text=True, cwd=place, check=True)
    return dict(zip([*MISTAKES, FINISHED], map(json.loads, run.stdout.splitlines()), strict=True))


FINISHED = "train --config logiqa --output_dir run --resume_from_checkpoint last --max_steps 2 --lora_r 16"


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_said_before_torch_is_imported(said, line):
    code, text = said[line]
    assert MISTAKES[line] in text
    assert (code, text.count("\n")) == (main.BAD_INPUT, 1)  # and nothing before it
    assert text.startswith("warmup-peft: error: ")


def test_a_run_that_is_finished_stays_as_it_is(said):
    code, text = said[FINISHED]
    assert (code, text.partition(". ")[0]) == (0, "The run in run is finished (2 steps) and stays as it is")


def test_every_command_that_takes_a_model_is_checked():
    assert set(main.COMMANDS) - set(CHECKS) == {"init", "completion"}
