"""4-bit layers, kept exact."""

from __future__ import annotations

from torch import nn


def keep_4bit_weights_in_place(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It repacks them in place at the first forward without gradient (so at any `generate`), for speed; every later
    gradient, and every later merge, is then computed from wrongly read weights while the loss looks right. Call this
    before anything runs through the model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
