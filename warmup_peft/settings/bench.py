"""The arms of `bench`, which are explained in `warmup_peft.training.benchmark`, and its random models."""

from __future__ import annotations

from typing import Any

from warmup_peft.settings.traits import OBJECTIVE_TRAITS

ARMS: dict[str, dict[str, Any] | None] = {
    "sft": None,
    "sft_rows": None,
    "naive": None,
    "plain": {"prefix_sharing": "never"},
    "shared": {},
    "anchored": {"warmup_anchor": 0.3},
    "learned": {"warmup_anchor": 0.3, "learn_separator": True},
    "base": {"warmup_anchor": 0.3, "warmup_source": "base"},
    **{name: {"objective": name} for name in OBJECTIVE_TRAITS if name != "warmup"},
}
OURS = tuple(name for name, changes in ARMS.items() if changes is not None)
SHAPES: dict[str, dict[str, Any]] = {
    "small": dict(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=8192,
    ),
    "small-llama-3-vocabulary": dict(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=128256, tie_word_embeddings=True,
    ),
    "llama-3.2-1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, tie_word_embeddings=True,
    ),
    "llama-3.1-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256,
    ),
}  # fmt: skip
