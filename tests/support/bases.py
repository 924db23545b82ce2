"""Tiny base models that are not a plain Llama: stored quantised, with experts, with biases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from conftest import TINY_SIZES, tiny_config
from safetensors.torch import load_file, save_file
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_biases(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    set_seed(0)
    return saved(folder, LlamaForCausalLM(tiny_config(attention_bias=True, mlp_bias=True)), tokenizer)


def with_experts(folder: Path, tokenizer: PreTrainedTokenizerBase, **changes) -> Path:
    """A mixture of experts; `router_aux_loss_coef` is the weight of its load-balancing loss."""
    set_seed(0)
    return saved(folder, MixtralForCausalLM(MixtralConfig(**{**TINY_SIZES, **changes})), tokenizer)


def stored_as(model_folder: str | Path, folder: Path, quantization: dict | None) -> Path:
    """A copy of the model whose `config.json` says that its weights are quantised."""
    shutil.copytree(model_folder, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization}))
    return folder


def in_fp8(model_folder: str, folder: Path) -> Path:
    """The tiny model with its linear layers in 8 bit, as such models lie on the Hub."""
    stored_as(model_folder, folder, FP8)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        rows, columns = (size // 64 for size in weights[name].shape)
        blocks = weights[name].view(rows, 64, columns, 64)
        scales = blocks.abs().amax((1, 3)) / 448
        weights[name.replace("weight", "weight_scale_inv")] = scales
        weights[name] = (blocks / scales[:, None, :, None]).view(weights[name].shape).to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_mxfp4(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny gpt-oss with its experts in 4 bit, as they lie on the Hub: 16 bytes and an exponent for 32 weights."""
    set_seed(0)
    config = GptOssConfig(**TINY_SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    plain = saved(folder.with_name("plain"), GptOssForCausalLM(config), tokenizer)
    stored_as(plain, folder, MXFP4)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = weights.pop(name).shape
        weights[f"{name}_blocks"] = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.randint(120, 124, (experts, rows, columns // 32), dtype=torch.uint8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
