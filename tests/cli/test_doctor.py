"""`doctor`: a report whatever is missing or broken, and whether a base fits."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from warmup_peft.cli import doctor
from warmup_peft.cli.early import check_bench
from warmup_peft.cli.main import BAD_INPUT, COMPARE_PACKAGES, main


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    """Packages that are quick to import, one that is broken, and one that is not there."""
    for name, text in {"broken_one": "raise RuntimeError('no such driver\\nmore')", "nameless_one": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "yaml"))
    features = {
        "works": (("nameless_one",), "x"),
        "4 bit": (("broken_one", "no_such_one"), "'warmup_peft[qlora]'"),
    }
    monkeypatch.setattr(doctor, "FEATURES", features)


def test_what_is_optional_may_be_missing_or_broken(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  yes  works" in lines
    assert (
        "  no   4 bit: broken_one broken (RuntimeError: no such driver), no_such_one missing. "
        "Run: pip install 'warmup_peft[qlora]'"
    ) in lines
    assert any(line.startswith("  cpu  ") for line in lines)


def test_what_is_required_and_broken_ends_with_2_after_the_report(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "broken_one", "no_such_one"))
    assert main(["doctor"]) == BAD_INPUT
    out, err = capsys.readouterr()
    assert "Features:" in out
    assert err.endswith("missing or broken: broken_one no_such_one. "
                        "Run: pip install --force-reinstall broken_one no_such_one\n")  # fmt: skip


def test_it_runs_where_the_parsers_packages_are_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr(doctor, "REQUIRED", ("trl",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["doctor"]) == BAD_INPUT
    assert "trl              missing" in capsys.readouterr().out


def test_the_packages_of_a_feature_are_those_of_its_extra(monkeypatch):
    monkeypatch.undo()
    packages, install = doctor.FEATURES["compare, inspect, and the metrics of text"]
    assert (packages, install) == (COMPARE_PACKAGES, "'warmup_peft[compare]'")


def test_devices():
    card = SimpleNamespace(name="Some Card", total_memory=24 * 2**30)
    cuda = SimpleNamespace(
        device_count=lambda: 1, get_device_properties=lambda _: card, is_bf16_supported=lambda: False
    )
    mps = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True))
    torch = SimpleNamespace(cuda=cuda, backends=mps, get_num_threads=lambda: 4)
    gpu, apples, cpu = doctor.device_lines(torch)
    assert gpu == "cuda:0  Some Card, 24.0 GB, takes no bfloat16, so set bf16: false"
    assert apples.startswith("mps")
    assert cpu.startswith("cpu  4 threads")
    cuda.device_count = None
    assert doctor.device_lines(torch)[0].startswith("no GPU can be used (TypeError")
    assert doctor.device_lines(None) == ["unknown, without torch"]


@pytest.mark.parametrize(("words", "memory"), [([], 8.0), (["--card_memory", "24"], 24.0)])
def test_a_base_is_predicted_for_the_card_as_bench_does(monkeypatch, words, memory):
    asked = []
    monkeypatch.setattr("warmup_peft.cli.bench.run_prediction", asked.append)
    monkeypatch.setattr(doctor, "memory_of_the_first_gpu", lambda: 8.0)
    assert main(["doctor", "--shape", "llama-3.2-1b", "--max_warmup_length", "256", *words]) == 0
    (options,) = asked
    check_bench(options)
    assert (options.shape, options.card_memory, options.max_warmup_length) == ("llama-3.2-1b", memory, 256)
    assert (options.load_in_4bit, options.dtype, options.arms) == (True, "bfloat16", ["shared"])


def test_a_shape_that_nobody_knows_is_refused(capsys):
    assert main(["doctor", "--shape", "huge"]) == BAD_INPUT
    assert "shape=huge is unknown. Choose one of small, " in capsys.readouterr().err
