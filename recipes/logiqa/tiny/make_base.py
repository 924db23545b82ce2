"""Pretrains the tiny world's base model: a Llama of 0.95M parameters that derives and does not answer.

After a puzzle's prompt it continues with the derivation, ` Ann > Bob > Cid .`, and the end-of-sequence token; it never
sees an answer. Fine-tuning later teaches the answer. That is hard directly (the order must be worked out inside the
network) and easy after the derivation (read its first or last name), which is what the warmup method is for.

    python recipes/logiqa/make_tokenizer.py tiny     # first: the tokenizer is read from recipes/logiqa/tiny/base/
    python recipes/logiqa/tiny/make_base.py          # about ten minutes on one core
    python recipes/logiqa/tiny/make_base.py --check  # measures what is there, without training

The seed fixes the initial weights and the batches; one machine with one thread (the default) repeats a run. Another
number of threads, CPU or BLAS sums in another order, and the model then finds the middle of four people earlier or
later, or not in time: the model that is here had it after 2,000 steps on one thread, while a run on two threads was
still guessing after 3,000. What has to hold everywhere is what `--check` asserts, and every pretraining ends with it:
greedy derivations at least 0.97 exact in float32 and in 4 bits, direct answers at most 0.45. If it fails, pretrain
again with another `--seed` or more `--steps`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from make_data import HERE, Puzzle, derivation, generate_splits, puzzle_stream
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

sys.path.append(str(HERE.parent))
from puzzle_base import load_base, make_config, option_accuracy, prompt_of, train

SEPARATOR = " || "
MAX_DERIVATION = 9  # four names, three signs, a full stop, the end
MIN_DERIVATION_ACCURACY = 0.97
MAX_DIRECT_ACCURACY = 0.45
# With three and four people only, the model finds the two ends (each is named once) and guesses the two in the middle:
# 74% right after 160,000 puzzles. Five people make looking up the neighbour pay, two make the comparatives easy. The
# last steps are the world's own sizes.
EARLY_SIZES = (2, 3, 4, 5)
EARLY_SHARE = 0.8


def pretraining_batches(size: int, steps: int, seed: int) -> Iterator[list[Puzzle]]:
    """Fresh puzzles, first of many sizes in turn, then of the world's own mixed; none has the order of a written row.

    A batch of one size weighs the few tokens of a short derivation like the many of a long one. That learned faster in
    the runs tried.
    """
    written = {puzzle.key for puzzles in generate_splits().values() for puzzle in puzzles}
    early = [puzzle_stream(seed + 10 * people, written, sizes=(people,)) for people in EARLY_SIZES]
    late = puzzle_stream(seed + 1, written)
    for step in range(steps):
        stream = early[step % len(early)] if step < EARLY_SHARE * steps else late
        yield list(itertools.islice(stream, size))


def pretrain(
    tokenizer: PreTrainedTokenizerBase, steps: int, batch_size: int, lr: float, seed: int
) -> LlamaForCausalLM:
    """Trains a new model to continue prompts with derivations."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(make_config(tokenizer, intermediate_size=192, num_hidden_layers=4, head_dim=32))
    batches = pretraining_batches(batch_size, steps, seed)
    rows = ((puzzles, [derivation(puzzle) for puzzle in puzzles]) for puzzles in batches)
    train(model, tokenizer, rows, steps, lr, "pretraining")
    return model


@torch.no_grad()
def greedy_derivations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, puzzles: list[Puzzle]
) -> list[list[int]]:
    """What the model writes after each prompt, greedily, up to and without the end-of-sequence token."""
    tokenizer.padding_side = "left"
    batch = tokenizer([prompt_of(puzzle) for puzzle in puzzles], padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_DERIVATION)[:, batch["input_ids"].shape[1] :]
    return [list(itertools.takewhile(lambda token: token != tokenizer.eos_token_id, row)) for row in rows.tolist()]


def derivation_accuracy(written: list[list[int]], tokenizer: PreTrainedTokenizerBase, puzzles: list[Puzzle]) -> float:
    """Share of derivations that are exactly right."""
    pairs = zip(written, puzzles, strict=True)
    return sum(tokenizer.decode(ids) == derivation(puzzle) for ids, puzzle in pairs) / len(puzzles)


def check(folder: Path) -> None:
    """Prints and asserts what the base model can and cannot do on the validation puzzles."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    puzzles = generate_splits()["validation"]
    separator = tokenizer.encode(SEPARATOR)
    for four_bit in (False, True):
        model = load_base(folder, four_bit)
        written = greedy_derivations(model, tokenizer, puzzles)
        derived = derivation_accuracy(written, tokenizer, puzzles)
        direct = option_accuracy(model, tokenizer, puzzles)
        after = option_accuracy(model, tokenizer, puzzles, [ids + separator for ids in written])
        name = "4-bit NF4" if four_bit else "float32  "
        print(
            f"{name}  derivation {derived:.3f}   direct answer {direct:.3f}   answer after own derivation {after:.3f}"
        )
        assert derived >= MIN_DERIVATION_ACCURACY, f"derivations {derived:.3f} < {MIN_DERIVATION_ACCURACY}"
        assert direct <= MAX_DIRECT_ACCURACY, f"direct answers {direct:.3f} > {MAX_DIRECT_ACCURACY}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the tiny world's base model, then check it.")
    parser.add_argument("--folder", type=Path, default=HERE / "base", help="holds the tokenizer; the model is added")
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.check:
        tokenizer = AutoTokenizer.from_pretrained(args.folder)
        model = pretrain(tokenizer, args.steps, args.batch_size, args.lr, args.seed)
        model.save_pretrained(args.folder)
        print(f"{args.folder}: {model.num_parameters():,} parameters")
    check(args.folder)


if __name__ == "__main__":
    main()
