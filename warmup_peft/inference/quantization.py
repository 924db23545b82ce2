"""Quantised bases: loaded as they were for training, dequantised for a merge, and 4-bit layers kept exact."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig, HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin


def stored_quantization(config: PretrainedConfig) -> dict[str, Any] | None:
    """How the weights of a model are stored quantised (GPTQ, AWQ, FP8, MXFP4, ...), as its `config.json` says."""
    text_config = config.get_text_config(decoder=True)
    return getattr(config, "quantization_config", None) or getattr(text_config, "quantization_config", None)


def dequantized_while_loading(stored: dict[str, Any]) -> QuantizationConfigMixin | None:
    """What makes transformers dequantise such weights while it loads them; None where it cannot."""
    config = AutoQuantizationConfig.from_dict(stored)
    if not hasattr(config, "dequantize"):
        return None
    config.dequantize = True
    return config


def has_dequantize(quantization: dict[str, Any]) -> bool:
    """Whether transformers can dequantise a loaded model that is quantised so."""
    method = quantization.get("quant_method")
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        method = "bitsandbytes_4bit" if quantization.get("load_in_4bit") else "bitsandbytes_8bit"
    quantizer = AUTO_QUANTIZER_MAPPING.get(method)
    return quantizer is not None and quantizer._dequantize is not HfQuantizer._dequantize


def is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def save_as_it_is(model: PreTrainedModel) -> None:
    """Let a model that was dequantised while it was loaded be saved so.

    transformers would undo on saving what it did on loading, and write weights of the quantised scale without their
    scales, which load again without a word.
    """
    conversions = getattr(model, "_weight_conversions", None) or ()
    operations = [operation for each in conversions for operation in getattr(each, "operations", ())]
    if not is_quantized(model) and any(hasattr(operation, "hf_quantizer") for operation in operations):
        model._weight_conversions = None


def to_load_with(
    stored: dict[str, Any] | None, recorded: dict[str, Any] | None, *, dequantize: bool = False
) -> QuantizationConfigMixin | None:
    """What `from_pretrained` has to be given so that a base becomes what it was in training.

    A base that is stored quantised brings its configuration along; a quantisation chosen when it was loaded has to be
    chosen again.

    Args:
        stored: as `stored_quantization`.
        recorded: the quantisation of the base in training.
        dequantize: dequantise a base that is stored quantised, where that is done while it is loaded.
    """
    if stored is not None:
        return dequantized_while_loading(stored) if dequantize else None
    return None if recorded is None else AutoQuantizationConfig.from_dict(recorded)


def keep_4bit_weights_in_place(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It repacks them in place at the first forward without gradient (so at any `generate`), for speed; every later
    gradient, and every later merge, is then computed from wrongly read weights while the loss looks right. Call this
    before anything runs through the model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
