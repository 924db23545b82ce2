"""`warmup-peft bench`: every arm runs its step, and the results are those in the table."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig

from warmup_peft.cli import bench
from warmup_peft.cli.bench import GB, largest_fitting, predict, run_bench, run_prediction
from warmup_peft.method.objective import OBJECTIVES
from warmup_peft.settings.arguments import BenchArguments
from warmup_peft.settings.bench import ARMS, OURS
from warmup_peft.training import benchmark
from warmup_peft.training.benchmark import AliveBytes, build_arms

TINY = dict(
    hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    vocab_size=320,
)  # fmt: skip


@pytest.fixture
def options(monkeypatch):
    monkeypatch.setitem(benchmark.SHAPES, "small", TINY)
    return BenchArguments(prompt_length=12, target_length=3, max_warmup_length=4, steps=1, arms=list(ARMS))


ONE_OF_A_KIND = [name for name in ARMS if name == "jensen" or name not in OBJECTIVES]


@pytest.mark.parametrize("names", [ONE_OF_A_KIND, pytest.param(list(ARMS), marks=pytest.mark.slow)])
def test_every_arm_is_timed_against_sft(options, tmp_path, capsys, names):
    options.arms = names
    options.output_file = str(tmp_path / "results.json")
    result = run_bench(options)
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert [arm["arm"] for arm in result["arms"]] == names
    for arm in result["arms"]:
        assert arm["ratio_to_sft"] == pytest.approx(arm["median_seconds"] / result["arms"][0]["median_seconds"])
        assert arm["peak_bytes"] > 0
        assert bool(arm["split_seconds"]) == (arm["arm"] in OURS)
        assert bool(arm["predicted_bytes"]) == (arm["arm"] in OURS)
        if arm["predicted_bytes"]:
            assert arm["predicted_bytes"]["total"] == pytest.approx(arm["peak_bytes"], rel=0.15), arm["arm"]
    out = capsys.readouterr().out
    assert all(name in out for name in ("anchored", "base", "jensen"))


def test_memory_alone_needs_no_sft(options, capsys):
    options.arms, options.steps = ["sft_rows", "shared"], 0
    rows, shared = run_bench(options)["arms"]
    assert set(rows) == {"arm", "peak_bytes", "predicted_bytes"}
    assert f"{shared['peak_bytes'] / rows['peak_bytes']:.2f}" in capsys.readouterr().out


def test_what_cannot_be_predicted_is_measured_all_the_same(options, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("The memory of llama cannot be predicted.")

    monkeypatch.setattr(bench, "predicted_memory", fail)
    options.arms = ["sft", "shared"]
    shared = run_bench(options)["arms"][1]
    assert shared["peak_bytes"] > 0
    assert shared["predicted_bytes"] is None
    assert "shared: The memory of llama cannot be predicted." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("shared", {"max_warmup_length": 24, "dtype": "bfloat16"}),
        ("anchored", {"max_warmup_length": 12, "batch_size": 3, "gradient_checkpointing": True, "target_length": 9}),
        ("shared", {"max_warmup_length": 16, "load_in_4bit": True}),
    ],
)
def test_predicted_memory_is_what_a_step_takes(monkeypatch, tmp_path, arm, changes):
    """Of the tensors of the step alone: the weights are no news."""
    shape = dict(TINY, num_hidden_layers=2, intermediate_size=160, num_key_value_heads=1, vocab_size=2048)
    monkeypatch.setitem(benchmark.SHAPES, "small", shape)
    options = BenchArguments(prompt_length=40, arms=[arm], **changes)
    (made,) = build_arms(options, str(tmp_path))
    made.step()
    with AliveBytes() as alive:
        made.step()
    predicted = max(predict(options, arm, options.batch_size).moments.values())
    assert predicted == pytest.approx(alive.peak, rel=0.1)


def no_weights(*_, **__):
    raise AssertionError("weights were made or read")


@pytest.mark.parametrize("named", [False, True])
def test_a_card_is_told_its_largest_batch_and_nothing_is_loaded(options, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "load_model", no_weights)
    options.arms, options.predict, options.output_file = ["sft", "shared"], True, str(tmp_path / "memory.json")
    if named:
        LlamaConfig(**TINY).save_pretrained(tmp_path / "Tiny-1B")  # a configuration, and no weights
        options.model_name_or_path = str(tmp_path / "Tiny-1B")
    sizes = {batch: predict(options, "shared", batch).total for batch in (1, 2, 4)}
    assert sorted(sizes.values()) == list(sizes.values())
    options.card_memory = (sizes[2] + 1) / GB / 0.9
    result = run_prediction(options)
    assert json.loads((tmp_path / "memory.json").read_text()) == result
    (arm,) = result["arms"]
    assert (arm["batch_size"], arm["predicted_bytes"]["total"]) == (2, sizes[2])
    name = "Tiny-1B" if named else "small"
    said = f"shared: {name}, float32, {options.card_memory:g} GB: fits with batch 2 at W 4; {sizes[2] / GB:.1f} GB"
    assert said in capsys.readouterr().out
    options.card_memory = (sizes[1] - 1) / GB / 0.9
    assert largest_fitting(options, "shared")[0] == 0
    assert "does not fit, even with batch 1 at W 4" in run_prediction(options)["arms"][0]["sentence"]


def test_without_a_card_the_batch_that_was_asked_for_is_predicted(options):
    options.arms, options.predict, options.batch_size = ["base"], True, 3
    (arm,) = run_prediction(options)["arms"]
    assert arm["batch_size"] == 3
    assert arm["sentence"].startswith("small, float32: batch 3 at W 4; ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--card_memory", "0", "--predict", "true"], "card_memory=0 cannot work. Set it to the card's GB, as in 24."),
        (["--card_memory", "24"], "card_memory is for predictions. Add --predict true, or leave it out."),
        (["--predict", "true", "--arms", "sft"], "arms=['sft'] cannot be predicted. Choose of plain, shared"),
        (["--predict", "true", "--model_name_or_path", "./nowhere"], "The model folder ./nowhere does not exist."),
        (["--predict", "true", "--model_name_or_path", "nobody/nothing"], "nobody/nothing gives no configuration ("),
    ],
)
def test_what_cannot_be_predicted_is_refused(refusal, words, message):
    assert refusal("bench", *words).startswith(message)


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


@pytest.mark.parametrize("name", ["batch_size", "prompt_length", "target_length", "num_warmups", "max_warmup_length"])
def test_impossible_numbers_of_a_bench(refusal, name):
    assert refusal("bench", f"--{name}", "0") == f"{name}=0 cannot work. Set it to 1 or more."


def test_a_bench_does_not_measure_for_nothing(refusal, tmp_path):
    said = refusal("bench", "--output_file", str(tmp_path / "no" / "results.json"))
    assert said.startswith("The folder of output_file=")
