"""Warmups for scoring and showing: written by `warmup_peft.inference.decoding`, as tensors of `warmup_peft.method`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.inference import decoding
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.method.branches import Tokens, Warmups, pack
from warmup_peft.method.model import evaluation_mode, without_peft_wrapper


def separator_token_ids(tokenizer: PreTrainedTokenizerBase, separator: str) -> list[int]:
    """Ids of the separator's text, without special tokens.

    Raises:
        ValueError: the tokenizer makes nothing, or an unknown token, of it.
    """
    ids = tokenizer(separator, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"warmup_separator={separator!r} cannot be written by this tokenizer (it gives the ids {ids}). "
            "Choose a separator of characters that it knows."
        )
    return ids


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """Tokens that end a warmup: the model's own end tokens, and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return tuple(sorted(set(ids)))


def pad_token_id(model: PreTrainedModel) -> int:
    """What stands where there is no token.

    Raises:
        ValueError: the model names neither a pad nor an end token.
    """
    pad_id = model.generation_config.pad_token_id
    ids = end_token_ids(model) if pad_id is None else (pad_id,)
    if not ids:
        raise ValueError(
            "The model names no end token, so neither warmup nor answer could end. Set "
            "model.generation_config.eos_token_id, to the tokenizer's for example."
        )
    return ids[0]


def write_warmups(model: PreTrainedModel, prompt: Tokens, warmup_config: WarmupConfig, **law: Any) -> Warmups:
    """One warmup (B, 1, W) for each of the prompts (B, P), padded on the left.

    Args:
        law: `do_sample`, `temperature`, `top_k`, `top_p`, `min_p` as for `generate`; greedy where they are left out.
    """
    model = without_peft_wrapper(model)
    law = GenerationConfig(eos_token_id=list(end_token_ids(model)), **law)
    with evaluation_mode(model):
        cache = decoding.new_cache(model, prompt.mask, warmup_config.max_warmup_length)
        ids, lengths = decoding.write_warmups(model, prompt.ids, prompt.mask, warmup_config, law, cache)
    return Warmups(ids.unsqueeze(1), lengths.unsqueeze(1), lengths.unsqueeze(1))


def append_warmups(prompt: Tokens, warmups: Warmups, warmup_config: WarmupConfig, pad_id: int) -> Tokens:
    """(B, P) prompts and (B, 1, W) warmups -> rows [prompt | warmup | separator], padded on the left."""
    warmup = warmups.tokens()
    separator = torch.tensor(warmup_config.warmup_separator_ids, device=prompt.ids.device).expand(len(prompt.ids), -1)
    ids = torch.cat([prompt.ids, warmup.ids[:, 0], separator], dim=1)
    mask = torch.cat([prompt.mask, warmup.mask[:, 0], torch.ones_like(separator, dtype=torch.bool)], dim=1)
    mask, ids = pack(mask, ids, side="left")
    return Tokens(ids.masked_fill(~mask, pad_id), mask)
