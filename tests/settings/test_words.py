"""What was meant by a word that nothing is called."""

from __future__ import annotations

import pytest

from warmup_peft.settings.words import SHORT_NAMES, nearest

KNOWN = [
    "--learning_rate",
    "--lora_r",
    "--do_eval",
    "--per_device_train_batch_size",
    "--num_train_epochs",
    "--adapter",
]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lr", "--learning_rate"),
        ("--bs", "--per_device_train_batch_size"),
        ("--epochs", "--num_train_epochs"),
        ("--model", "--adapter"),
        ("--learning_rat", "--learning_rate"),
        ("--adaptor", "--adapter"),
    ],
)
def test_what_was_meant(word, meant):
    assert nearest(word, KNOWN) == f"Did you mean {meant}?"
    assert nearest(word.lstrip("-"), [name.lstrip("-") for name in KNOWN]) == f"Did you mean '{meant.lstrip('-')}'?"


@pytest.mark.parametrize("word", ["--device_map", "--xyzzy", "--steps"])
def test_a_word_that_is_like_none(word):
    assert nearest(word, KNOWN) == "See --help."
    assert nearest(word, KNOWN, "Choose another.") == "Choose another."


def test_short_names_stand_for_options():
    from trl import ModelConfig, ScriptArguments

    from warmup_peft.cli.main import COMMANDS
    from warmup_peft.settings.early import training_fields
    from warmup_peft.settings.parsing import option_hints

    ours = option_hints([kind for command in COMMANDS.values() for kind in command.options])
    known = {*ours, *training_fields(), *option_hints((ModelConfig, ScriptArguments))}
    assert {name for names in SHORT_NAMES.values() for name in names} <= known
    assert not set(SHORT_NAMES) & set(option_hints((ModelConfig, ScriptArguments)))
