"""Small things every test can afford: a byte tokenizer, tiny random models, a few ragged examples. No network."""

from __future__ import annotations

import functools
import gc
import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
if "WITH_GPU" not in os.environ:  # of `make test-gpu`
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing is compiled; importing the compiler takes two seconds a process

import pytest
import torch
from accelerate.utils import imports
from architectures import build
from datasets import Dataset, disable_progress_bars
from folders import logits, random_adapter, save_adapter
from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.files import write_together
from warmup_peft.inference.folder import CURVES_NAME, PAGE_NAME
from warmup_peft.training.benchmark import byte_tokenizer

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
disable_progress_bars()


PEFTS_CARD = PeftModel.create_or_update_model_card


@pytest.fixture(scope="session", autouse=True)
def quick_trainings():
    """Without what takes longer than a tiny training.

    A page takes seconds to draw; tests/comparison/test_training_page.py draws real ones. peft compiles a template for
    a card that ours replaces. Each `Accelerator` reads the metadata of a dozen packages.
    """

    def write(args, state):
        write_together({PAGE_NAME: "<!DOCTYPE html>", CURVES_NAME: b"png"}, Path(args.output_dir))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warmup_peft.comparison.training_page.write_page", write)
        patch.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)
        patch.setattr(imports, "_is_package_available", functools.cache(imports._is_package_available))
        yield


@pytest.fixture
def pefts_card(monkeypatch):
    """Its card all the same, for a test that is about it."""
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", PEFTS_CARD)


def pytest_collection_finish():
    """What was imported stays: each training calls for a search for garbage, which would go through all of it."""
    gc.collect()
    gc.freeze()


EXAMPLES = [
    {"prompt": "Q: one?", "completion": " A"},
    {"prompt": "A longer question: two?", "completion": " no, two"},
    {"prompt": "x", "completion": " yes"},
    {"prompt": "Q: what follows three?", "completion": " four"},
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so any text encodes; ids below 320."""
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 512
    return tokenizer


TINY_SIZES = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=512,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)


def tiny_config(**changes) -> LlamaConfig:
    return LlamaConfig(**{**TINY_SIZES, **changes})


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer) -> str:
    """A tiny random Llama with its tokenizer, on disk, so that every way of loading can be tried."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    set_seed(0)
    model = LlamaForCausalLM(tiny_config())
    for parameter in model.parameters():  # far from uniform, so that sampling and divergences have something to see
        parameter.data.mul_(8.0) if parameter.dim() > 1 else None
    model.generation_config.eos_token_id = [1, *range(200, 270)]  # so that some warmups end early
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def thinker_folder(tmp_path_factory, tokenizer) -> Path:
    """A merged model that thinks in a chat; do not change it."""
    from thinkers import save_thinker

    return save_thinker(tmp_path_factory.mktemp("thinkers") / "merged", tokenizer)


@pytest.fixture
def examples() -> Dataset:
    return Dataset.from_list(EXAMPLES)


@pytest.fixture
def lora() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


@pytest.fixture
def longrope() -> torch.nn.Module:
    """A Phi-3 that turns all positions of a row differently beyond 24 tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    limit = {"original_max_position_embeddings": 24}
    model = build("phi3", rope_parameters={**rope, **limit}, **limit)
    for parameter in model.parameters():
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    return model


@pytest.fixture(params=["float32", "nf4"])
def trained(request, tmp_path, model_folder, tokenizer, lora, nf4):
    """The adapter's folder, and the logits of the model that was saved there."""
    quantization = nf4 if request.param == "nf4" else None
    model = random_adapter(model_folder, lora, quantization)
    return save_adapter(tmp_path / "adapter", model, tokenizer, model_folder, quantization), logits(model)


@pytest.fixture
def adapter(tmp_path, model_folder, tokenizer, lora) -> Path:
    return save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)


@pytest.fixture
def refusal(capsys):
    """Run a command that must fail, and give the one line it says."""

    def run(*argv: str) -> str:
        assert main(list(argv)) == BAD_INPUT
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("warmup-peft: error: ")
        return line.removeprefix("warmup-peft: error: ")

    return run
