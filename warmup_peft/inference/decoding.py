"""Answers with a warmup first: prompt -> warmup -> separator -> answer.

Needs torch and transformers only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.method.branches import Tokens, Warmups, pack
from warmup_peft.method.sampling import SamplingSettings, sample_warmups
from warmup_peft.method.scoring import PlainRows, evaluation_mode

WARMUP_CONFIG_NAME = "warmup_config.json"


@dataclass(frozen=True)
class WarmupConfig:
    """What decoding needs to know of an adapter's training; `warmup_config.json` in the adapter's folder.

    Attributes:
        warmup_separator: the separator's text, to be read by people.
        warmup_separator_ids: its token ids, which are what is inserted.
        max_warmup_length: W, in tokens.
    """

    warmup_separator: str
    warmup_separator_ids: list[int]
    max_warmup_length: int

    def save(self, folder: str | Path) -> None:
        Path(folder, WARMUP_CONFIG_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        return Path(folder, WARMUP_CONFIG_NAME).is_file()

    @classmethod
    def load(cls, folder: str | Path) -> WarmupConfig:
        """Read `warmup_config.json` of a local folder.

        Raises:
            ValueError: there is none, or it is not what `save` wrote.
        """
        if not cls.is_in(folder):
            raise ValueError(
                f"{folder} holds no {WARMUP_CONFIG_NAME}, so it is no warmup adapter (or its training was cut off). "
                "Name the folder that `warmup-peft train` or `WarmupSFTTrainer.save_model` wrote."
            )
        path = Path(folder, WARMUP_CONFIG_NAME)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Take it anew from the training's folder.") from error


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


def no_warmups(prompt: Tokens) -> Warmups:
    """Empty ones (B, 1, 0)."""
    lengths = torch.zeros(len(prompt.ids), 1, dtype=torch.long, device=prompt.ids.device)
    return Warmups(prompt.ids.new_zeros(len(prompt.ids), 1, 0), lengths, lengths)


def write_warmups(
    model: PreTrainedModel,
    prompt: Tokens,
    warmup_config: WarmupConfig,
    *,
    do_sample: bool = False,
    **sampling: Any,
) -> Warmups:
    """One warmup (B, 1, W) for each of the prompts (B, P), padded on the left; greedy unless told otherwise.

    With a `max_warmup_length` of 0 the warmups are empty: the separator stands right behind the prompt.
    """
    if warmup_config.max_warmup_length == 0:
        return no_warmups(prompt)
    end_ids = end_token_ids(model)
    settings = SamplingSettings(
        num_warmups=1,
        max_length=warmup_config.max_warmup_length,
        end_token_ids=end_ids,
        separator_ids=tuple(warmup_config.warmup_separator_ids),
        pad_token_id=pad_token_id(model),
        do_sample=do_sample,
        **sampling,
    )
    return sample_warmups(model, PlainRows(model, model, prompt), settings)


@torch.no_grad()
def warmup_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    warmup_config: WarmupConfig | str | Path,
    return_warmup: bool = False,
    **generate_kwargs: Any,
) -> Tensor:
    """`model.generate`, with a warmup first.

    Args:
        model: a causal language model, or a `PeftModel` of one.
        input_ids: (B, P) prompts, padded on the left.
        attention_mask: (B, P); all ones where it is not given.
        warmup_config: the adapter's, or the folder that holds it.
        return_warmup: keep warmup and separator in what is returned.
        generate_kwargs: passed to `model.generate` for the answer (`max_new_tokens` counts the answer only).
            `do_sample`, `temperature`, `top_k`, `top_p` and `min_p` hold for the warmup too.

    Returns:
        (B * num_return_sequences, ...) token ids: prompt and answer; with `return_warmup`, prompt, warmup, separator
        and answer, padded on the left.

    Raises:
        ValueError: an empty prompt, or a folder without `warmup_config.json`.
    """
    if not isinstance(warmup_config, WarmupConfig):
        warmup_config = WarmupConfig.load(warmup_config)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if not mask.any(-1).all():
        row = int((~mask.any(-1)).nonzero()[0])
        raise ValueError(f"Prompt {row} is empty. Give every prompt at least one token.")
    law = {key: generate_kwargs[key] for key in _SAMPLING_KEYS if generate_kwargs.get(key) is not None}
    with evaluation_mode(model):
        warmups = write_warmups(model, Tokens(input_ids, mask.bool()), warmup_config, **law)
        context = append_warmups(Tokens(input_ids, mask.bool()), warmups, warmup_config, pad_token_id(model))
        sequences = model.generate(input_ids=context.ids, attention_mask=context.mask.long(), **generate_kwargs)
    if return_warmup:
        return sequences
    answers = sequences[:, context.ids.size(1) :]
    return torch.cat([input_ids.repeat_interleave(len(answers) // len(input_ids), 0), answers], dim=1)


_SAMPLING_KEYS = ("do_sample", "temperature", "top_k", "top_p", "min_p")


def append_warmups(prompt: Tokens, warmups: Warmups, warmup_config: WarmupConfig, pad_id: int) -> Tokens:
    """(B, P) prompts and (B, 1, W) warmups -> rows [prompt | warmup | separator], padded on the left."""
    warmup = warmups.tokens()
    separator = torch.tensor(warmup_config.warmup_separator_ids, device=prompt.ids.device).expand(len(prompt.ids), -1)
    ids = torch.cat([prompt.ids, warmup.ids[:, 0], separator], dim=1)
    mask = torch.cat([prompt.mask, warmup.mask[:, 0], torch.ones_like(separator, dtype=torch.bool)], dim=1)
    mask, ids = pack(mask, ids, side="left")
    return Tokens(ids.masked_fill(~mask, pad_id), mask)
