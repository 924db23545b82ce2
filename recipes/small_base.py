"""Small base models for recipes that have no pretrained one at hand: tokenizer, Llama, pretraining, folder.

A recipe's own `make_base.py` chooses the texts: of prompts' form, never with an answer. `make_base` does the rest. One
thread on one machine repeats a run; other threads or CPUs sum in another order, and the weights differ a little.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from warmup_peft.inference.quantization import keep_4bit_weights_in_place

PAD_TOKEN, END_TOKEN = "<|pad|>", "<|end|>"
BLOCK_SIZE = 64  # of 4-bit quantisation: sizes are multiples of it
HEAD_SIZE = 32
IGNORED = -100


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `make_base`, for a recipe's script."""
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of model and tokenizer")
    parser.add_argument("--echo", action="store_true", help="let every text stand twice, in two lines")
    parser.add_argument("--vocab_size", type=int, default=4096, help="tokens, a multiple of 64")
    parser.add_argument("--context", type=int, default=256, help="tokens; longer texts are cut")
    parser.add_argument("--hidden_size", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the saved weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def make_base(texts: list[str], options: argparse.Namespace) -> LlamaForCausalLM:
    """Trains tokenizer and model on the texts and saves both into `options.output_dir`.

    With `options.echo` every text stands twice, so that the model learns to look back at the line above, as whatever
    answers a prompt has to; so small a model hardly learns it otherwise.
    """
    if options.echo:
        texts = [f"{text}\n{text}" for text in texts]
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = make_tokenizer(texts, options.vocab_size, options.context)
    model = LlamaForCausalLM(make_config(tokenizer, options.hidden_size, options.num_layers))
    rows = encode(tokenizer, texts)
    print(f"{model.num_parameters():,} parameters, {len(rows):,} texts, {sum(map(len, rows)):,} tokens")
    loss = pretrain(model, rows, options.batch_size, options.epochs, options.learning_rate, options.seed)
    save(model, tokenizer, options.output_dir, getattr(torch, options.dtype))
    print(f"{options.output_dir}: loss {loss:.3f} nats a token at the end")
    return model


def make_tokenizer(texts: list[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text encodes.

    Raises:
        ValueError: the vocabulary's size is no multiple of 64, or the texts are too few to fill it.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if vocab_size % BLOCK_SIZE or bpe.get_vocab_size() != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} cannot work: these texts give {bpe.get_vocab_size()} tokens. Choose a multiple "
            f"of {BLOCK_SIZE} that is not above it."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD_TOKEN, eos_token=END_TOKEN, model_max_length=context
    )


def make_config(tokenizer: PreTrainedTokenizerBase, hidden_size: int, num_layers: int) -> LlamaConfig:
    """A Llama of this width and depth, with tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // HEAD_SIZE,
        num_key_value_heads=hidden_size // HEAD_SIZE,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        initializer_range=0.05,  # the usual 0.02 is for wider models
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text with the end token, cut to the model's context."""
    longest = tokenizer.model_max_length - 1
    rows = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] for ids in rows]


def unlearned(ids: list[int]) -> list[int]:
    """Token ids that `pretrain` lets the model read and not learn to write, such as a prompt's."""
    return [-2 - token for token in ids]


def batches(rows: list[list[int]], batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless epochs of rows padded on the right with -1; those of a batch are of like length."""
    generator = torch.Generator().manual_seed(seed)
    by_length = sorted(rows, key=len)
    groups = [by_length[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    while True:
        for index in torch.randperm(len(groups), generator=generator).tolist():
            width = max(map(len, groups[index]))
            yield torch.tensor([row + [-1] * (width - len(row)) for row in groups[index]])


def pretrain(
    model: LlamaForCausalLM, rows: list[list[int]], batch_size: int, epochs: int, lr: float, seed: int
) -> float:
    """Every token of every row that is not `unlearned`, one cycle of the learning rate. Returns the mean loss of the
    last epoch."""
    steps_an_epoch = -(-len(rows) // batch_size)
    steps = epochs * steps_an_epoch
    # padding is on the right and attention causal, so no real token sees it
    read_and_labels = (
        (torch.where(ids < -1, -2 - ids, ids.clamp(min=0)), ids.masked_fill(ids < 0, IGNORED))
        for ids in itertools.islice(batches(rows, batch_size, seed), steps)
    )
    losses = fit(model, read_and_labels, steps, lr, "pretraining", loss_of=loss_of_all)
    return sum(losses[-steps_an_epoch:]) / steps_an_epoch


def loss_of_all(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, labels=labels, use_cache=False).loss


def continuation_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the labelled positions only: elsewhere no logits are computed.

    Padding is on the right and attention causal, so no labelled position can see it and no mask is needed.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[labelled]), targets[labelled])


def fit(
    model: LlamaForCausalLM,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    lr: float,
    name: str,
    loss_of: Callable[[LlamaForCausalLM, torch.Tensor, torch.Tensor], torch.Tensor] = continuation_loss,
) -> list[float]:
    """Train on batches of token ids and labels, with one cycle of the learning rate. Returns each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    progress = tqdm(batches, total=steps, desc=name, unit="step", mininterval=10)
    for step, (ids, labels) in enumerate(progress):
        loss = loss_of(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{losses[-1]:.4f}")
    model.eval()
    return losses


def pad_right(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def continuations(
    prompts: list[list[int]], texts: list[list[int]], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, padded on the right. Only what follows the prompts has labels."""
    ids = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    labels = [[IGNORED] * len(prompt) + text for prompt, text in zip(prompts, texts, strict=True)]
    return pad_right(ids, pad_token_id), pad_right(labels, IGNORED)


def load_base(folder: Path, four_bit: bool) -> PreTrainedModel:
    """The saved model in float32, or in nested NF4 with bfloat16 arithmetic."""
    if not four_bit:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.bfloat16, device_map="cpu"
    )
    keep_4bit_weights_in_place(model)
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Model and tokenizer, the weights in `dtype`."""
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
