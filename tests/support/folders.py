"""Folders as the commands meet them: data files, and adapters that differ from their base without any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from warmup_peft import warmup_generate
from warmup_peft.inference.folder import CARD_NAME, TrainingRecord, WarmupConfig
from warmup_peft.inference.loading import LoadedModel
from warmup_peft.inference.quantization import keep_4bit_weights_in_place

TRAINING = {  # options of the shortest training that moves a tiny model's weights
    "use_peft": "true",
    "lora_r": "4",
    "lora_dropout": "0",
    "lora_target_modules": "all-linear",
    "dtype": "float32",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "report_to": "none",
    "max_steps": "2",
    "per_device_train_batch_size": "2",
    "learning_rate": "0.01",
    "num_warmups": "2",
    "max_warmup_length": "4",
}
SEPARATOR = " | "
COLOURS = ("red", "green as grass", "a dull blue", "grey")
SETTINGS = {
    **TRAINING,
    "save_strategy": "no",
    "logging_steps": "1",
}
SCORES = {
    "base": {"accuracy": 0.25, "macro_f1": 0.125, "n": 8},
    "warmup": {"accuracy": 0.5, "macro_f1": 0.4321, "n": 8},
    "settings": {"seed": 0},
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def puzzles(count: int, start: int = 0) -> list[dict]:
    """Rows in LogiQA's form, of different lengths."""
    return [
        {"text": "It is so. " * (i % 3 + 1), "question": f"Colour {i}?", "options": list(COLOURS), "answer": i % 4}
        for i in range(start, start + count)
    ]


def warmup_config(tokenizer: PreTrainedTokenizerBase, max_warmup_length: int = 5) -> WarmupConfig:
    return WarmupConfig(SEPARATOR, tokenizer(SEPARATOR)["input_ids"], max_warmup_length)


def random_adapter(base: str, lora: LoraConfig, quantization: BitsAndBytesConfig | None = None) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, **({} if quantization is None else {"quantization_config": quantization})
    )
    keep_4bit_weights_in_place(model)
    model = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


def save_adapter(
    folder: Path,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    base: str,
    quantization: BitsAndBytesConfig | None = None,
) -> Path:
    """What `WarmupSFTTrainer.save_model` leaves, except for the card."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    warmup_config(tokenizer).save(folder)
    TrainingRecord(
        base_model=base,
        dtype="float32",
        quantization_config=None if quantization is None else quantization.to_dict(),
        settings={"num_warmups": 4, "warmup_anchor": 0.3},
    ).save(folder)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def argv_of(command: str, **options) -> list[str]:
    return [command, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]


def train_argv(model, data, output_dir, **options) -> list[str]:
    return argv_of(
        "train",
        **{**SETTINGS, "model_name_or_path": model, "dataset_name": data, "output_dir": output_dir, **options},
    )


def logiqa_folder(folder: Path) -> Path:
    for start, split in enumerate(("train", "validation", "test")):
        write_rows(folder / f"{split}.jsonl", puzzles(8, start=8 * start))
    return folder


def card_of(folder: Path) -> str:
    return (folder / CARD_NAME).read_text(encoding="utf-8")


IDS = torch.arange(3, 120).unsqueeze(0)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits.float()


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def with_code_of_its_own(folder: Path) -> Path:
    """A model of a class that only its folder knows, which leaves a trace when it runs."""
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": own})
    )
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(folder / 'ran')!r}, 'w').close()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


def assert_serves(loaded: LoadedModel, merged: Path, tolerance: float = 1e-5) -> None:
    """Plain transformers has the adapter's logits from the merged folder, and its own code the adapter's answers.

    Args:
        loaded: the adapter.
        tolerance: of the logits, relative.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(merged.parent / "modules"))
        served = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=True).eval()
        assert getattr(served.config, "quantization_config", None) is None
        assert relative_difference(logits(served), logits(loaded.model)) < tolerance
        prompts = loaded.tokenizer(
            ["Q: one?", "A longer question: two?"], padding=True, padding_side="left", return_tensors="pt"
        )
        asked = {**prompts, "max_new_tokens": 6, "do_sample": False}
        answers = served.generate(**asked)
    assert answers.size(1) > prompts["input_ids"].size(1)
    assert torch.equal(answers, warmup_generate(loaded.model, **asked, warmup_config=loaded.warmup_config))
