"""The strict parser: typed values from words and files, and one sentence for whatever does not fit."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import pytest

from warmup_peft.settings.arguments import LaunchOptions
from warmup_peft.settings.parsing import (
    SHORT_NAMES,
    nearest,
    parse,
    parse_one,
    read_options,
    split_options,
    typed,
)


@dataclass
class Options:
    name: str
    count: int = 2
    rate: float | None = 0.5
    way: Literal["slow", "fast"] = "slow"
    is_on: bool = True
    parts: list[str] = field(default_factory=list, metadata={"action": "extend"})
    table: dict | str | None = None


@dataclass
class More:
    depth: int = 1


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults_hold_where_nothing_is_said():
    assert parse((Options, More), ["--name", "x"]) == (Options("x"), More())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--count", "3", "--rate=1e-3"], {"count": 3, "rate": 0.001}),
        (["--is_on"], {"is_on": True}),
        (["--is-on", "false"], {"is_on": False}),
        (["--no_is_on"], {"is_on": False}),
        (["--parts", "a", "b", "--parts=c"], {"parts": ["a", "b", "c"]}),
        (["--name", " || "], {"name": " || "}),
        (["--name=--a -- b --", "--count", "-3"], {"name": "--a -- b --", "count": -3}),
        ([], {}),
    ],
)
def test_words_give_typed_values_and_no_defaults(words, expected):
    assert read_options((Options, More), words) == ({}, expected)


def test_a_file_gives_typed_values_whether_it_quotes_them_or_not(file):
    text = 'name: "5"\ncount: "3"\nrate: 1e-3\nis_on: "no"\nparts: a\ntable: {a: 1}\n'
    values = {"name": "5", "count": 3, "rate": 0.001, "is_on": False, "parts": ["a"], "table": {"a": 1}}
    assert read_options((Options,), ["--config", file(text)]) == (values, {})


def test_the_command_line_wins_over_the_file(file):
    path = file("name: x\ncount: 3\nrate: 1.5\nparts: [a, b]\n")
    options = parse_one(Options, [f"--config={path}", "--count", "4", "--parts", "c"])
    assert options == Options("x", count=4, rate=1.5, parts=["c"])


def test_the_environment_that_a_file_names_is_set(file, monkeypatch):
    monkeypatch.setenv("WARMUP_PEFT_TEST", "before")
    assert read_options((Options,), ["--config", file("env: {WARMUP_PEFT_TEST: 3}\n")]) == ({}, {})
    assert os.environ["WARMUP_PEFT_TEST"] == "3"
    with pytest.raises(ValueError, match="env=3 cannot work"):
        read_options((Options,), ["--config", file("env: 3\n")])


@pytest.mark.parametrize("text", ["--", "-", "", "--count=3", "null", "3"])
def test_text_of_a_file_stays_as_it_is(file, text):
    assert read_options((Options,), ["--config", file(f"name: '{text}'\n")]) == ({"name": text}, {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--coun", "3"], r"There is no option --coun\. Did you mean --count\?"),
        (["--config_file", "x"], "There is no option --config_file"),
        (["--name", "x", "stray"], "Unrecognized arguments: stray"),
        (["--count", "three"], "Argument --count: invalid int value: 'three'"),
        (["--way", "faster"], "Argument --way: invalid choice: 'faster'"),
        (["--count", "3"], "The following arguments are required: --name"),
        (["--name", "x", "--config", "--count", "3"], r"--config names no file \(None\)"),
        (["--config"], r"--config names no file \(None\)"),
        (["--config", "one.yaml", "--config=two.yaml"], "--config is given twice"),
        (["--config", "no.yaml"], r"--config names no file \(no.yaml\)"),
    ],
)
def test_words_that_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        parse_one(Options, words)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"coun": 3}, r"The file has an unknown key 'coun'\. Did you mean count\?"),
        ({3: 3}, "The file has an unknown key '3'"),
        ({"count": 2.5}, r"The file has count: 2.5, which does not fit\. It takes int"),
        ({"count": True}, "count: True, which does not fit"),
        ({"count": None}, "count: None, which does not fit"),
        ({"count": "2.5"}, "Argument --count: invalid int value: '2.5'"),
        ({"way": "faster"}, r"way: 'faster', which does not fit\. It takes slow|fast"),
        ({"name": 3}, "name: 3, which does not fit"),
        ({"rate": [1]}, "rate: .*does not fit"),
        ({"is_on": "maybe"}, "maybe"),
    ],
)
def test_values_that_are_refused(value, said):
    with pytest.raises(ValueError, match=said):
        typed((Options,), value, "The file")


def test_none_fits_where_it_may():
    assert typed((Options,), {"rate": None, "table": None}, "The file") == {"rate": None, "table": None}


def test_options_of_one_kind_are_taken_out_with_their_values():
    words = ["--seed", "3", "--num_processes", "2", "--accelerate_config=multi_gpu", "--bf16", "false"]
    own, others = split_options(LaunchOptions, words)
    assert own == ["--num_processes", "2", "--accelerate_config=multi_gpu"]
    assert others == ["--seed", "3", "--bf16", "false"]
    assert split_options(LaunchOptions, ["--num_processes"]) == (["--num_processes"], [])


# ---- What was meant ----

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
    assert nearest(word.lstrip("-"), [name.lstrip("-") for name in KNOWN]) == f"Did you mean {meant.lstrip('-')}?"


@pytest.mark.parametrize("word", ["--device_map", "--xyzzy", "--steps"])
def test_a_word_that_is_like_none(word):
    assert nearest(word, KNOWN) == "See --help."


def test_short_names_stand_for_options():
    from trl import ModelConfig, ScriptArguments

    from warmup_peft.cli.main import COMMANDS
    from warmup_peft.settings.early import training_fields
    from warmup_peft.settings.parsing import option_hints

    ours = option_hints([kind for command in COMMANDS.values() for kind in command.options])
    known = {*ours, *training_fields(), *option_hints((ModelConfig, ScriptArguments))}
    assert {name for names in SHORT_NAMES.values() for name in names} <= known
    assert not set(SHORT_NAMES) & set(option_hints((ModelConfig, ScriptArguments)))
