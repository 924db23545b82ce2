"""A tiny model that thinks: whatever it is asked in a chat, it writes `<think>hm, so</think>Yet<|im_end|>`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from conftest import tiny_config
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from warmup_peft.inference.folder import WarmupConfig

WRITTEN = OPENING, THOUGHT, SEPARATOR, ANSWER, END = "<think>", "hm, so", "</think>", "Yet", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def thinking_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The byte tokenizer with a chat template. As Qwen's, `<think>` and `</think>` are no special tokens."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token="<|pad|>",
        eos_token=END,
        model_max_length=512,
    )
    copy.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    copy.add_tokens([OPENING, SEPARATOR])
    copy.chat_template = TEMPLATE
    return copy


def save_thinker(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes) -> Path:
    """A merged folder. Each token of the model leads to one other, since its layers add nothing.

    Args:
        changes: fields of the WarmupConfig.
    """
    tokenizer = thinking_tokenizer(tokenizer)
    opening, *_, separator, _, _ = written = [tokenizer(text)["input_ids"] for text in WRITTEN]
    size = 320
    model = LlamaForCausalLM(tiny_config(hidden_size=size, vocab_size=size))
    for parameter in model.parameters():
        parameter.data.zero_() if parameter.dim() > 1 else None
    model.model.embed_tokens.weight.data.copy_(torch.eye(size))
    chain = [*tokenizer("\n")["input_ids"], *(token for part in written for token in part)]
    for token, following in pairwise(chain):
        model.lm_head.weight.data[following, token] = 1.0
    assert len(set(chain)) == len(chain)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = tokenizer.eos_token_id, 0
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    known = {
        "warmup_separator": SEPARATOR,
        "warmup_separator_ids": separator,
        "max_warmup_length": 8,
        "end_token_ids": [tokenizer.eos_token_id, separator[0]],
        "warmup_opening": OPENING,
        "warmup_opening_ids": opening,
        "writes_separator": True,
        "uses_chat_template": True,
    }
    WarmupConfig(**{**known, **changes}).save(folder)
    return folder
