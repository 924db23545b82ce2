"""The strict parser: typed values from words and files, and one sentence for whatever does not fit."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from warmup_peft.settings.arguments import LaunchOptions
from warmup_peft.settings.parsing import (
    is_worth_reading,
    parse,
    parse_one,
    quieten,
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
        (["--way", "faster"], "Argument --way: there is no 'faster'. Did you mean 'fast'"),
        (["--count", "3"], "The following arguments are required: --name"),
        (["--name", "x", "--config", "--count", "3"], r"--config names nothing"),
        (["--config"], r"--config names nothing"),
        (["--config", "one.yaml", "--config=two.yaml"], "--config is given twice"),
        (["--config", "no.yaml"], r"--config no.yaml is neither a file nor a recipe"),
    ],
)
def test_words_that_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        parse_one(Options, words)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"coun": 3}, r"The file has an unknown key 'coun'\. Did you mean 'count'\?"),
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


@pytest.mark.parametrize(("word", "meant"), [("slwo", "Did you mean 'slow'?"), ("xyz", "Choose from slow, fast.")])
def test_a_value_that_is_no_choice(word, meant):
    with pytest.raises(ValueError, match=f"^Argument --way: there is no '{word}'. {re.escape(meant)}$"):
        parse_one(Options, ["--name", "x", "--way", word])


def test_one_line_of_bitsandbytes_is_noise(caplog):
    quieten()
    quieten()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert logger.filters.count(is_worth_reading) == 1
    logger.warning(
        "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please", "No module named 'kernels'"
    )
    logger.warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]
