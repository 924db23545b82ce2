"""What is said about a command line before torch is imported: as the full parser says it, in a second."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from trl import SFTConfig

from warmup_peft.settings import arguments, early
from warmup_peft.settings.early import check_early, training_fields
from warmup_peft.settings.options import WarmupOptions

ROOT = Path(__file__).parents[2]
TRAINING = (WarmupOptions, arguments.RunOptions)


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> list[str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return write


def test_the_training_options_are_those_of_trl():
    hints = get_type_hints(SFTConfig)
    theirs = {field.name: hints[field.name] for field in dataclasses.fields(SFTConfig) if field.init}
    found = training_fields()
    assert found.keys() == theirs.keys()
    plain = {bool, int, float, str, type(None)}
    for name, hint in theirs.items():
        if name != "learning_rate" and {*(get_args(hint) or (hint,))} <= plain:
            assert found[name] == hint, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_stepss: 3\n", "has an unknown key 'max_stepss'. Did you mean 'max_steps'?"),
        ("max_steps: few\n", "Argument --max_steps"),
        ("max_steps: [3]\n", "has max_steps: [3], which does not fit. It takes int."),
        ("num_warmups: 0\n", "num_warmups=0 cannot work"),
        ("lora_rr: 3\n", "has an unknown key 'lora_rr'. Did you mean 'lora_r'?"),
        ("max_steps: [\n", "is no valid YAML"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_work(recipe, text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        check_early(TRAINING, recipe(text))


def test_a_recipe_that_works(recipe):
    text = "max_steps: 3\neval_strategy: steps\nparallelism_config: {}\nlearning_rate: null\nreport_to: [wandb]\n"
    check_early(TRAINING, [*recipe(text), "--lr_scheduler_type", "cosine", "--bf16", "false"])


@pytest.mark.parametrize(
    "path",
    sorted(set(ROOT.glob("recipes/*/*.yaml")) - set(ROOT.glob("recipes/accelerate/*"))),
    ids=lambda path: path.parent.name + path.stem,
)
def test_the_recipes_of_the_repository(path):
    check_early(TRAINING, ["--config", str(path)])


def test_another_trl_leaves_it_to_the_full_parser(monkeypatch, recipe):
    for file, name in ("elsewhere.py", "SFTConfig"), ("sft_config.py", "Elsewhere"):
        monkeypatch.setattr(early, "TRAINING_CLASSES", (("trl", f"trainer/{file}", name),))
        assert training_fields(early.TRAINING_CLASSES) is None
        check_early(TRAINING, recipe("max_stepss: 3\n"))


def test_plain_defaults_are_those_of_trl():
    found, theirs = check_early(TRAINING, []), SFTConfig.__dataclass_fields__
    for name in ("per_device_train_batch_size", "max_steps", "loss_type", "packing", "eval_strategy", "max_length"):
        assert found[name] == theirs[name].default, name
    assert found["learning_rate"] is None  # as ours
    assert found["objective"] == "jensen"
