"""`warmup-peft bench`: every arm runs its step, and the results are those in the table."""

from __future__ import annotations

import json

import pytest
import torch

from warmup_peft.cli import bench
from warmup_peft.cli.bench import ARMS, AliveBytes, build_arms, run_bench
from warmup_peft.settings.arguments import BenchArguments

TINY = dict(
    hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    vocab_size=320,
)  # fmt: skip


@pytest.fixture
def options(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "small", TINY)
    return BenchArguments(prompt_length=12, target_length=3, max_warmup_length=4, steps=1, arms=list(ARMS))


def test_every_arm_is_timed_against_sft(options, tmp_path, capsys):
    options.output_file = str(tmp_path / "results.json")
    result = run_bench(options)
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert [arm["arm"] for arm in result["arms"]] == list(ARMS)
    for arm in result["arms"]:
        assert arm["ratio_to_sft"] == pytest.approx(arm["median_seconds"] / result["arms"][0]["median_seconds"])
        assert arm["peak_bytes"] > 0
        is_ours = arm["arm"] not in ("sft", "naive")
        assert bool(arm["split_seconds"]) == is_ours
        assert (0 < arm["diagnostics_share"] < 1) == is_ours
    out = capsys.readouterr().out
    assert all(name in out for name in ("anchored", "base", "jensen"))


def test_arms_are_what_their_names_say(options, tmp_path):
    by_name = {arm.name: arm for arm in build_arms(options, str(tmp_path))}
    by_name["base"].step()
    by_name["shared"].step()
    assert all(len(arm.parts["sample"]) == 1 for arm in (by_name["base"], by_name["shared"]))
    assert ARMS["jensen"] == {"objective": "jensen"}
    assert set(ARMS) >= {"sft", "naive", "plain", "shared", "anchored", "learned", "base", "log_mean_exp", "rlpr"}


def test_peak_bytes_are_those_alive_at_once():

    with AliveBytes() as alive:
        first = torch.zeros(1000)
        del first
        second = torch.zeros(500)
        third = second + 1
    assert alive.peak == 4 * 1000
    assert third.numel() == 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": "huge"}, "shape=huge is unknown"),
        ({"arms": ["shared"]}, "cannot be compared"),
        ({"arms": ["sft", "jepo"]}, "cannot be compared"),
    ],
)
def test_what_cannot_be_timed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run_bench(BenchArguments(**changes))


@pytest.mark.parametrize(
    "name", ["batch_size", "steps", "prompt_length", "target_length", "num_warmups", "max_warmup_length"]
)
def test_impossible_numbers_of_a_bench(refusal, name):
    assert refusal("bench", f"--{name}", "0") == f"{name}=0 cannot work. Set it to 1 or more."


def test_a_bench_does_not_measure_for_nothing(refusal, tmp_path):
    said = refusal("bench", "--output_file", str(tmp_path / "no" / "results.json"))
    assert said.startswith("The folder of output_file=")
