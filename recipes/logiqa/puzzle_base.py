"""What the scripts of both worlds' base models share: a small Llama, its training after prompts, and its measures.

A world's own `make_base.py` chooses the puzzles and the texts that follow their prompts, never an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from warmup_peft.evaluation.logiqa import format_logiqa_prompt

IGNORED = -100


class Puzzle(Protocol):
    """A puzzle of either world."""

    options: tuple[str, ...]
    answer: int

    def row(self, row_id: int) -> dict: ...


def make_config(tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> LlamaConfig:
    """Sizes are multiples of 64, the block size of 4-bit quantisation."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        initializer_range=0.06,  # the usual 0.02 is for wider models: here attention would start flat and learn slowly
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )


def prompt_of(puzzle: Puzzle) -> str:
    return format_logiqa_prompt(puzzle.row(0))


def pad_right(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def make_batch(
    puzzles: Sequence[Puzzle], texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, padded on the right. Only what follows the prompt, and the end, have labels."""
    prompts = tokenizer([prompt_of(puzzle) for puzzle in puzzles])["input_ids"]
    targets = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    ids = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    labels = [[IGNORED] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
    return pad_right(ids, tokenizer.pad_token_id), pad_right(labels, IGNORED)


def continuation_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the labelled positions only: elsewhere no logits are computed.

    Padding is on the right and attention causal, so no labelled position can see it and no mask is needed.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[labelled]), targets[labelled])


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[tuple[Sequence[Puzzle], list[str]]],
    steps: int,
    lr: float,
    name: str,
) -> None:
    """Learn to continue prompts, with one cycle of the learning rate. A batch is puzzles and what follows each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    progress = tqdm(batches, total=steps, desc=name, unit="step", mininterval=10)
    for step, (puzzles, texts) in enumerate(progress):
        loss = continuation_loss(model, *make_batch(puzzles, texts, tokenizer))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
    model.eval()


def load_base(folder: Path, four_bit: bool) -> PreTrainedModel:
    """The saved model in float32, or in nested NF4 with bfloat16 arithmetic.

    On CPUs with AVX512-BF16, bitsandbytes repacks a layer's 4-bit weights in place at its first forward in eval mode
    without gradient. Switching that off before any forward keeps one layout, which training can read, on every CPU.
    """
    if not four_bit:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    import bitsandbytes as bnb

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.bfloat16, device_map="cpu"
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


@torch.no_grad()
def option_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    puzzles: Sequence[Puzzle],
    middles: list[list[int]] | None = None,
) -> float:
    """Share of puzzles whose right option is the likeliest continuation.

    `middles` are token ids between prompt and option; without them the option follows the prompt directly. Every
    option is one name, which is one token, so a single position's logits decide.
    """
    prompts = tokenizer([prompt_of(puzzle) for puzzle in puzzles])["input_ids"]
    rows = [prompt + middle for prompt, middle in zip(prompts, middles or [[]] * len(puzzles), strict=True)]
    last = torch.tensor([len(row) - 1 for row in rows])
    logits = model(input_ids=pad_right(rows, tokenizer.pad_token_id)).logits[torch.arange(len(rows)), last]
    options = torch.tensor([[tokenizer.encode(f" {name}")[0] for name in puzzle.options] for puzzle in puzzles])
    chosen = logits.gather(1, options).argmax(dim=1)
    return (chosen == torch.tensor([puzzle.answer for puzzle in puzzles])).float().mean().item()
