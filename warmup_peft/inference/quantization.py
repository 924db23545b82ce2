"""Quantised base models: load them as in training, dequantise them for a merge, keep 4-bit weights readable."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig, HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin


def stored_quantization(config: PretrainedConfig) -> dict[str, Any] | None:
    """Quantisation that a model's weights are stored in (GPTQ, AWQ, FP8, MXFP4, ...), from its `config.json`."""
    text_config = config.get_text_config(decoder=True)
    return getattr(config, "quantization_config", None) or getattr(text_config, "quantization_config", None)


def dequantized_while_loading(stored: dict[str, Any]) -> QuantizationConfigMixin | None:
    """A configuration that makes transformers dequantise these weights while loading; None if it cannot."""
    config = AutoQuantizationConfig.from_dict(stored)
    if not hasattr(config, "dequantize"):
        return None
    config.dequantize = True
    return config


def has_dequantize(quantization: dict[str, Any]) -> bool:
    """Whether transformers can dequantise a loaded model with this quantisation."""
    method = quantization.get("quant_method")
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        method = "bitsandbytes_4bit" if quantization.get("load_in_4bit") else "bitsandbytes_8bit"
    quantizer = AUTO_QUANTIZER_MAPPING.get(method)
    return quantizer is not None and quantizer._dequantize is not HfQuantizer._dequantize


def is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def save_as_it_is(model: PreTrainedModel) -> None:
    """Make a model that was dequantised while loading be saved dequantised.

    When saving, transformers reverses the conversions it made when loading. It would write rescaled weights without
    their scales, and these would load again without any error.
    """
    conversions = getattr(model, "_weight_conversions", None) or ()
    operations = [operation for each in conversions for operation in getattr(each, "operations", ())]
    if not is_quantized(model) and any(hasattr(operation, "hf_quantizer") for operation in operations):
        model._weight_conversions = None


def to_load_with(
    stored: dict[str, Any] | None, recorded: dict[str, Any] | None, *, dequantize: bool = False
) -> QuantizationConfigMixin | None:
    """The `quantization_config` for `from_pretrained` that loads a base model as it was in training.

    Weights that are stored quantised bring their configuration. A quantisation that was chosen for training has to be
    chosen again.

    Args:
        stored: result of `stored_quantization`.
        recorded: quantisation of the base model in training.
        dequantize: dequantise stored quantised weights while loading, if transformers can.
    """
    if stored is not None:
        return dequantized_while_loading(stored) if dequantize else None
    return None if recorded is None else AutoQuantizationConfig.from_dict(recorded)


def keep_4bit_weights_in_place(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    For speed, it repacks them in place at the first forward pass without gradient, such as any `generate`. Every later
    gradient and every later merge then reads the weights wrongly, while the loss looks right. Call this before the
    first forward pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
