"""Bases that are stored quantised, or quantised when they are loaded, become again what they were in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import FP8, MXFP4, in_fp8, in_mxfp4, stored_as
from folders import TRAINING, assert_serves, logits, puzzles, random_adapter, save_adapter, tree, write_rows
from trainers import make_trainer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from warmup_peft import merge_adapter
from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.inference.folder import TrainingRecord
from warmup_peft.inference.loading import load_base, load_folder

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4").to_dict()
INT8 = BitsAndBytesConfig(load_in_8bit=True).to_dict()
QUANTO = {"quant_method": "quanto", "weights": "int8", "activations": None, "modules_to_not_convert": None}


class WeightsAreLoaded(Exception):
    pass


@pytest.fixture
def adapter_on(tmp_path, model_folder, tokenizer, lora):
    """An adapter whose base is stored, and was trained on, in a given quantisation."""
    model = random_adapter(model_folder, lora)

    def make(stored: dict | None, recorded: dict | None) -> Path:
        base = stored_as(model_folder, tmp_path / "base", stored)
        folder = save_adapter(tmp_path / "adapter", model, tokenizer, str(base))
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))
        record = TrainingRecord.load(folder)
        record.quantization_config = recorded
        record.save(folder)
        return folder

    return make


@pytest.fixture
def passed(monkeypatch):
    """Instead of weights, what is given to load them. To transformers, None means weights that are not quantised."""
    quantizations = []

    def from_pretrained(*_, quantization_config="its own", **__):
        quantizations.append(quantization_config)
        raise WeightsAreLoaded

    monkeypatch.setattr("warmup_peft.inference.loading.AutoModelForCausalLM.from_pretrained", from_pretrained)
    return quantizations


@pytest.mark.parametrize("stored", [GPTQ, AWQ, FP8, MXFP4, NF4], ids=lambda q: q["quant_method"])
def test_a_base_that_is_stored_quantised_brings_its_own_configuration(adapter_on, passed, stored):
    folder = adapter_on(stored, stored)
    with pytest.raises(WeightsAreLoaded):
        load_folder(folder)
    assert passed == ["its own"]


@pytest.mark.parametrize("stored", [FP8, MXFP4], ids=lambda q: q["quant_method"])
def test_a_base_that_was_dequantised_for_training_is_again(adapter_on, passed, stored):
    folder = adapter_on(stored, None)
    with pytest.raises(WeightsAreLoaded):
        load_folder(folder)
    assert passed[0].quant_method == stored["quant_method"]
    assert passed[0].dequantize


@pytest.mark.parametrize(
    ("recorded", "name"),
    [
        (NF4, "BitsAndBytesConfig"),
        (INT8, "BitsAndBytesConfig"),
        (FP8, "FineGrainedFP8Config"),
        (QUANTO, "QuantoConfig"),
        (GPTQ, "GPTQConfig"),
    ],
    ids=["nf4", "int8", "fp8", "quanto", "gptq"],
)
def test_a_quantisation_chosen_for_training_is_chosen_again(adapter_on, passed, recorded, name):
    folder = adapter_on(None, recorded)
    with pytest.raises(WeightsAreLoaded):
        load_folder(folder)
    assert type(passed[0]).__name__ == name
    assert {key: passed[0].to_dict()[key] for key in recorded} == recorded


@pytest.mark.parametrize(
    ("stored", "recorded", "merge_base", "message"),
    [
        (GPTQ, GPTQ, "dequantized", r"cannot dequantise gptq, in which the base .* set quantization_config to null"),
        (AWQ, AWQ, "dequantized", r"cannot dequantise awq"),
        (GPTQ, GPTQ, "original", r"stored quantised \(gptq\), so it has no original weights"),
        (NF4, NF4, "original", r"stored quantised \(bitsandbytes\), so it has no original weights"),
        (None, FP8, "dequantized", r"cannot dequantise fp8, .* Set merge_base to original"),
        (None, QUANTO, "dequantized", r"cannot dequantise quanto, .* Set merge_base to original"),
    ],
)
def test_a_merge_that_cannot_be_is_refused_before_weights_are_loaded(
    adapter_on, passed, tmp_path, stored, recorded, merge_base, message
):
    folder = adapter_on(stored, recorded)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        merge_adapter(folder, tmp_path / "merged", merge_base=merge_base)
    assert (passed, tree(tmp_path)) == ([], before)


@pytest.mark.parametrize(
    ("stored", "recorded", "merge_base"),
    [(FP8, FP8, "dequantized"), (MXFP4, None, "original"), (NF4, NF4, "dequantized"), (None, FP8, "original")],
)
def test_other_merges_go_on_to_the_weights(adapter_on, passed, tmp_path, stored, recorded, merge_base):
    folder = adapter_on(stored, recorded)
    with pytest.raises(WeightsAreLoaded):
        merge_adapter(folder, tmp_path / "merged", merge_base=merge_base)


def test_dequantised_weights_are_asked_for_while_they_are_loaded(adapter_on, passed):
    folder = adapter_on(FP8, FP8)
    with pytest.raises(WeightsAreLoaded):
        load_base(folder, "dequantized")
    assert passed[0].dequantize


@pytest.fixture(scope="module")
def fp8_folder(tmp_path_factory, model_folder) -> Path:
    return in_fp8(model_folder, tmp_path_factory.mktemp("fp8") / "base")


@pytest.fixture(scope="module")
def mxfp4_folder(tmp_path_factory, tokenizer) -> Path:
    return in_mxfp4(tmp_path_factory.mktemp("mxfp4") / "base", tokenizer)


@pytest.mark.parametrize("stored", [FP8, pytest.param(MXFP4, marks=pytest.mark.slow)], ids=["fp8", "mxfp4"])
def test_a_base_that_is_dequantised_is_trained_scored_used_merged_and_served(stored, request, tmp_path):
    base = request.getfixturevalue(f"{stored['quant_method']}_folder")
    data, run = write_rows(tmp_path / "rows.jsonl", puzzles(8)), tmp_path / "run"
    task = {"dataset_name": data, "test_split_size": 0.5, "task": "logiqa"}
    options = {**TRAINING, **task, "model_name_or_path": base}
    argv = [str(word) for key, value in {**options, "output_dir": run}.items() for word in (f"--{key}", value)]
    assert main(["train", *argv, "--save_strategy", "no"]) == 0
    assert main(["evaluate", "--adapter", str(run), "--max_new_tokens", "2"]) == 0
    assert main(["generate", "--adapter", str(run), "--prompt", "Q1:", "--max_new_tokens", "2"]) == 0
    expected = logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    for recorded in (None, stored):  # dequantised for training, as without a GPU, and as it is
        record = TrainingRecord.load(run)
        record.quantization_config = recorded
        record.save(run)
        torch.testing.assert_close(logits(load_base(run)), expected)
        report = merge_adapter(run, tmp_path / "merged", overwrite=True)
        assert report.relative_logit_error < 1e-5
        assert_serves(load_folder(run), tmp_path / "merged", tolerance=1e-4)


def test_a_dequantised_base_that_is_trained_whole_is_saved_as_it_was_trained(fp8_folder, tokenizer, tmp_path):
    trainer = make_trainer(str(fp8_folder), tmp_path, tokenizer, model_init_kwargs={"dtype": "float32"})
    trainer.save_model()
    ids = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad():
        expected = trainer.model.eval().model(ids).last_hidden_state
        saved = load_folder(tmp_path / "run").model.model(ids).last_hidden_state
    torch.testing.assert_close(saved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("chosen", "limit"),
    [
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), 1e-5),
        pytest.param(
            BitsAndBytesConfig(load_in_8bit=True), 0.1, marks=pytest.mark.slow
        ),  # activations are rounded too
    ],
    ids=["nf4", "int8"],
)
def test_an_adapter_on_a_base_that_is_stored_quantised_comes_back(
    tmp_path, model_folder, tokenizer, lora, chosen, limit
):
    stored = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, quantization_config=chosen)
    stored.save_pretrained(tmp_path / "base")
    model = random_adapter(str(tmp_path / "base"), lora)
    folder = save_adapter(tmp_path / "adapter", model, tokenizer, str(tmp_path / "base"), chosen)
    loaded = load_folder(folder)
    assert loaded.model.get_base_model().is_quantized
    torch.testing.assert_close(logits(loaded.model), logits(model))
    assert merge_adapter(folder, tmp_path / "merged").relative_logit_error < limit  # 8 bit rounds activations, too
    assert_serves(load_folder(tmp_path / "merged") if limit > 1e-5 else loaded, tmp_path / "merged")


def test_an_int8_adapter_comes_back_and_is_merged(tmp_path, model_folder, tokenizer, lora):
    int8 = BitsAndBytesConfig(load_in_8bit=True)
    model = random_adapter(model_folder, lora, int8)
    folder = save_adapter(tmp_path / "adapter", model, tokenizer, model_folder, int8)
    ids = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(load_folder(folder).model(ids).logits, model(ids).logits)
    assert merge_adapter(folder, tmp_path / "merged").relative_logit_error < 0.1  # activations are rounded too
    assert_serves(load_folder(tmp_path / "merged"), tmp_path / "merged")


def test_the_command_says_in_one_sentence_what_cannot_be_merged(adapter_on, tmp_path, capsys):
    argv = ["merge", "--adapter", str(adapter_on(GPTQ, GPTQ)), "--output_dir", str(tmp_path / "merged")]
    assert main(argv) == BAD_INPUT
    assert "transformers cannot dequantise gptq" in capsys.readouterr().err
