"""The second half of a training, in a new trainer, goes where the whole one went: bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from bases import in_fp8, in_mxfp4, with_biases, with_experts
from conftest import EXAMPLES
from datasets import Dataset, IterableDataset
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    RandLoraConfig,
    TrainableTokensConfig,
    VeraConfig,
)
from trainers import make_trainer
from transformers import BitsAndBytesConfig, set_seed

RUNS = {
    "objective": "jensen", "warmup_anchor": 0.3, "learning_rate": 0.01, "per_device_train_batch_size": 2,
    "num_warmups": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "max_warmup_length": 3,
}  # fmt: skip
LINEAR = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "up_proj"]}
ADAPTERS = {
    "rsLoRA": LoraConfig(**LINEAR, use_rslora=True),
    "DoRA": LoraConfig(**LINEAR, use_dora=True),
    "AdaLoRA": AdaLoraConfig(**LINEAR, total_step=10),
    "embeddings": LoraConfig(**{**LINEAR, "target_modules": ["embed_tokens", "q_proj"]}),
    "modules_to_save": LoraConfig(**LINEAR, modules_to_save=["embed_tokens", "norm"]),
    "trainable_token_indices": LoraConfig(**LINEAR, trainable_token_indices=[3, 4, 50]),
    "IA3": IA3Config(**LINEAR, feedforward_modules=["up_proj"]),
    "VeRA": VeraConfig(**{**LINEAR, "target_modules": ["q_proj", "v_proj"]}, r=8),
    "OFT": OFTConfig(**LINEAR, oft_block_size=4),
    "orthogonal": LoraConfig(**LINEAR, init_lora_weights="orthogonal"),
    "trainable tokens": TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3, 4, 50]),
    "RandLoRA": RandLoraConfig(**LINEAR, r=4),
    "BOFT": BOFTConfig(**LINEAR, boft_block_size=4),
    "LoHa": LoHaConfig(**LINEAR),
    "LoKr": LoKrConfig(**LINEAR),
    "HRA": HRAConfig(**LINEAR),
    "FourierFT": FourierFTConfig(**LINEAR, n_frequency=20),
    "layer norms": LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm", "norm"]),
    "PiSSA": LoraConfig(**LINEAR, init_lora_weights="pissa"),
    "OLoRA": LoraConfig(**LINEAR, init_lora_weights="olora"),
    "layer_replication": LoraConfig(**LINEAR, layer_replication=[[0, 2], [1, 2]]),
}
BASES = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
SETTINGS = {
    "gradient checkpointing": {"gradient_checkpointing": True},
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "adafactor": {"optim": "adafactor"},
    "adamw_bnb_8bit": {"optim": "adamw_bnb_8bit"},
    "paged_adamw_8bit": {"optim": "paged_adamw_8bit"},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "shuffled_warmup": {"warmup_source": "shuffled", "objective": "warmup", "warmup_anchor": 0.0},
    "load_best_model_at_end": {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_dataset": Dataset.from_list(EXAMPLES),
    },
}


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for _, p in sorted(trainer.model.named_parameters()) if p.requires_grad])


def assert_goes_on(model_folder, tokenizer, tmp_path, **settings) -> None:
    ended, losses = [], []
    for resume in (None, str(tmp_path / "run" / "checkpoint-2")):
        set_seed(0)  # of what an adapter starts from
        trainer = make_trainer(
            model_folder, tmp_path, tokenizer, logging_steps=1, **copy.deepcopy({**RUNS, **settings})
        )
        before = weights(trainer).clone()
        trainer.train(resume_from_checkpoint=resume)
        ended.append(weights(trainer))
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        assert not torch.equal(ended[-1], before)
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert torch.equal(*ended)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(model_folder, tokenizer, tmp_path, kind):
    assert_goes_on(model_folder, tokenizer, tmp_path, peft_config=ADAPTERS[kind])


@pytest.mark.parametrize("base", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_quantised_bases(model_folder, tokenizer, lora, tmp_path, base):
    assert_goes_on(model_folder, tokenizer, tmp_path, peft_config=lora, quantization_config=BASES[base])


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["fp8", "mxfp4"])
def test_bases_that_are_dequantised(model_folder, tokenizer, lora, tmp_path, stored):
    base = tmp_path / "base"
    in_fp8(model_folder, base) if stored == "fp8" else in_mxfp4(base, tokenizer)
    assert_goes_on(str(base), tokenizer, tmp_path, peft_config=lora, model_init_kwargs={"dtype": "float32"})


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_experts_and_their_load_balancing_loss(tokenizer, tmp_path, coefficient):
    base = with_experts(tmp_path / "base", tokenizer, num_local_experts=4, router_aux_loss_coef=coefficient)
    adapter = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    assert_goes_on(str(base), tokenizer, tmp_path, peft_config=adapter)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{"lora_bias": True}, {"bias": "all"}], ids=str)
def test_biases(tokenizer, tmp_path, adapter):
    base = with_biases(tmp_path / "base", tokenizer)
    assert_goes_on(str(base), tokenizer, tmp_path, peft_config=LoraConfig(**LINEAR, **adapter))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(model_folder, tokenizer, lora, tmp_path, name):
    if "8bit" in name:
        pytest.importorskip("bitsandbytes", "0.50", reason="8-bit optimizers run on a CPU from bitsandbytes 0.50")
    assert_goes_on(model_folder, tokenizer, tmp_path, peft_config=lora, **SETTINGS[name])


@pytest.mark.slow
def test_a_stream(model_folder, tokenizer, lora, tmp_path):
    rows = IterableDataset.from_generator(lambda: iter(copy.deepcopy(EXAMPLES * 2)))
    assert_goes_on(model_folder, tokenizer, tmp_path, peft_config=lora, rows=rows)
