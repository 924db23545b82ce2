"""Trainers of tiny models, and what they wrote."""

from __future__ import annotations

from typing import NamedTuple

import torch
from conftest import EXAMPLES
from datasets import Dataset

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer


def make_trainer(
    model,
    tmp_path,
    tokenizer,
    *,
    rows=EXAMPLES,
    eval_dataset=None,
    peft_config=None,
    quantization_config=None,
    **settings,
):
    settings = {
        "per_device_train_batch_size": len(rows) if isinstance(rows, list) else 1,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "max_warmup_length": 5,
        "warmup_separator": " | ",
        "num_warmups": 3,
        "objective": "warmup",
        "warmup_anchor": 0.0,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "disable_tqdm": True,
        "save_strategy": "no",
        **settings,
    }
    return WarmupSFTTrainer(
        model,
        WarmupSFTConfig(str(tmp_path / "run"), **settings),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        quantization_config=quantization_config,
    )


def randomise_adapter(model):
    """LoRA starts at zero; move it away, so that the adapter-off model differs and every gradient is there."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1


class Sample(NamedTuple):
    """A sampled warmup: its ids, all decided ids (its end included), and its log-probability when it was sampled."""

    ids: list[int]
    decided: list[int]
    logp: float


def record_warmups(trainer):
    """Every batch's prompts and their samples, in order; those that `warmup_dropout` leaves out are empty."""
    sampled = []
    sample = trainer.sample_warmups

    def recording(model, encoded):
        warmups, prompt = sample(model, encoded), encoded.prompt
        for b in range(len(prompt.ids)):
            samples = [
                Sample(
                    warmups.ids[b, k, : warmups.lengths[b, k]].tolist(),
                    warmups.ids[b, k, : warmups.num_decisions[b, k]].tolist(),
                    0.0 if warmups.logp is None else warmups.logp[b, k].item(),
                )
                for k in range(warmups.ids.size(1))
            ]
            sampled.append((prompt.ids[b][prompt.mask[b]].tolist(), samples))
        return warmups

    trainer.sample_warmups = recording
    return sampled
