"""Pretrains the relay world's base model: two layers, 0.46M parameters. It follows a chain in a part of its samples.

Stage 1, following: after a puzzle's prompt the text goes on with the asked chain, ` Bob Cid Dan Eve .`, and then with
all other chains, so that a row teaches a dozen look-ups. First on easier puzzles (fewer chains and links), then on the
world's own.

Stage 2, recalling: the same texts go on with lists of random names, and with who stood where in each: ` Pam Tim Rex .
first Pam .` So the base can look back at what it wrote itself, as any pretrained language model can.

Stage 3, habit: a few hundred short steps on what the base shall write: the asked chain in a part of the rows
(`--chain_share`), else one of two phrases that say nothing, and the end-of-sequence token.

It never sees an answer. So the base *can* write the warmup that helps, does so in a part of its samples, and knows
nothing of its use. Fine-tuning has to find out.

    python recipes/logiqa/relay/make_tokenizer.py     # first: the tokenizer is read from relay/base/
    python recipes/logiqa/relay/make_base.py          # about 35 minutes on one core
    python recipes/logiqa/relay/make_base.py --reader base-reader --chain_share 0.1   # another habit, in two minutes
    python recipes/logiqa/relay/make_base.py --reader base-reader --repeats 40   # long texts, of some 180 tokens
    python recipes/logiqa/relay/make_base.py --check  # measures what is there, without training

The seed fixes the initial weights and the batches; one machine with one thread (the default) repeats a run. What has
to hold everywhere is what `--check` asserts, and every pretraining ends with it.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from make_data import HERE, NAMES, Puzzle, chain_text, continuation, generate_splits, puzzle_stream
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from warmup_peft.evaluation.logiqa import format_logiqa_prompt

sys.path.append(str(HERE.parents[1]))
from small_base import continuations, fit, load_base, pad_right

PHRASES = (" Let us see .", " It is not hard .")
PHRASE_WEIGHTS = (2, 1)  # so that the likeliest warmup is the first phrase
NUM_LISTS = 3  # of a row in stage 2
PLACES = {"first": 0, "second": 1, "last": -1}
MAX_WRITTEN = 8
NUM_CHECKED = 8  # samples of each validation puzzle
CHAIN_SHARE = 0.3
SHARE_TOLERANCE = 0.06  # of the right chains among samples, around what the habit has
MAX_DIRECT_ACCURACY = 0.35
EASY_SHARE = 0.6  # of the steps of stage 1
EASY_SIZES = tuple(itertools.product((1, 2, 3), (1, 2, 3, 4)))  # chains, links


def all_chains(puzzle: Puzzle, rng: random.Random) -> str:
    """The asked chain from its second person on, then the others whole, in random order."""
    others = list(puzzle.chains[1:])
    rng.shuffle(others)
    return chain_text(puzzle) + "".join(continuation(chain) for chain in others)


def habit(puzzle: Puzzle, rng: random.Random, chain_share: float, repeats: int = 1) -> str:
    """What the base shall write after this puzzle: the asked chain, or one of the phrases.

    With `repeats` above 1 it writes it again and again, at most so many times, so that warmups are long.
    """
    times = 1 if repeats == 1 else rng.randint(repeats * 3 // 4, repeats)
    if rng.random() < chain_share:
        return chain_text(puzzle) * times
    return rng.choices(PHRASES, PHRASE_WEIGHTS)[0] * times


def lists(rng: random.Random) -> str:
    """Lists of random names, each with who stands first, second or last in it."""
    text = ""
    for _ in range(NUM_LISTS):
        names = rng.sample(NAMES, rng.randint(3, 5))
        place = rng.choice(list(PLACES))
        text += f"{continuation(names)} {place} {names[PLACES[place]]} ."
    return text


def written_chains() -> set[tuple[str, ...]]:
    """Asked chains of the rows in the files, which the pretraining leaves out."""
    return {puzzle.asked for puzzles in generate_splits().values() for puzzle in puzzles}


def following_batches(size: int, steps: int, seed: int) -> Iterator[list[Puzzle]]:
    """Fresh puzzles, a batch of one size each: first the easy ones in turn, then the world's own."""
    written = written_chains()
    easy = [puzzle_stream(seed + 100 * i, written, *sizes) for i, sizes in enumerate(EASY_SIZES, start=1)]
    own = puzzle_stream(seed + 1, written)
    for step in range(steps):
        stream = easy[step % len(easy)] if step < EASY_SHARE * steps else own
        yield list(itertools.islice(stream, size))


def own_batches(size: int, steps: int, seed: int) -> Iterator[list[Puzzle]]:
    """Fresh puzzles of the world's own size."""
    stream = puzzle_stream(seed, written_chains())
    return (list(itertools.islice(stream, size)) for _ in range(steps))


def make_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Sizes are multiples of 64, the block size of 4-bit quantisation."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        initializer_range=0.06,  # the usual 0.02 is for wider models: here attention would start flat and learn slowly
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def prompt_of(puzzle: Puzzle) -> str:
    return format_logiqa_prompt(puzzle.row(0))


def make_batch(
    puzzles: list[Puzzle], texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, padded on the right. Only what follows the prompt, and the end, have labels."""
    prompts = tokenizer([prompt_of(puzzle) for puzzle in puzzles])["input_ids"]
    targets = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    return continuations(prompts, targets, tokenizer.pad_token_id)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[tuple[list[Puzzle], list[str]]],
    steps: int,
    lr: float,
    name: str,
) -> None:
    """Learn to continue prompts, with one cycle of the learning rate. A batch is puzzles and what follows each."""
    fit(model, (make_batch(*batch, tokenizer) for batch in batches), steps, lr, name)


def learn_to_follow(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    batches = following_batches(args.batch_size, args.steps, args.seed)
    rows = ((puzzles, [all_chains(puzzle, rng) for puzzle in puzzles]) for puzzles in batches)
    train(model, tokenizer, rows, args.steps, args.lr, "following")


def learn_to_recall(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed + 1)
    batches = own_batches(args.batch_size, args.recall_steps, args.seed + 3)
    rows = ((puzzles, [all_chains(puzzle, rng) + lists(rng) for puzzle in puzzles]) for puzzles in batches)
    train(model, tokenizer, rows, args.recall_steps, args.recall_lr, "recalling")


def make_reader(tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> LlamaForCausalLM:
    """The model after stages 1 and 2."""
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(make_config(tokenizer))
    learn_to_follow(model, tokenizer, args)
    learn_to_recall(model, tokenizer, args)
    return model


def take_on_the_habit(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    batches = own_batches(args.batch_size, args.habit_steps, args.seed + 2)
    rows = (
        (puzzles, [habit(puzzle, rng, args.chain_share, args.repeats) for puzzle in puzzles]) for puzzles in batches
    )
    train(model, tokenizer, rows, args.habit_steps, args.habit_lr, "habit")


@torch.no_grad()
def option_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, puzzles: list[Puzzle]) -> float:
    """Share of puzzles whose right option is the likeliest continuation of the prompt.

    Every option is one name, which is one token, so a single position's logits decide.
    """
    rows = tokenizer([prompt_of(puzzle) for puzzle in puzzles])["input_ids"]
    last = torch.tensor([len(row) - 1 for row in rows])
    logits = model(input_ids=pad_right(rows, tokenizer.pad_token_id)).logits[torch.arange(len(rows)), last]
    options = torch.tensor([[tokenizer.encode(f" {name}")[0] for name in puzzle.options] for puzzle in puzzles])
    chosen = logits.gather(1, options).argmax(dim=1)
    return (chosen == torch.tensor([puzzle.answer for puzzle in puzzles])).float().mean().item()


@torch.no_grad()
def chain_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    puzzles: list[Puzzle],
    num_samples: int = 0,
    repeats: int = 1,
) -> float:
    """Share of texts that are exactly the asked chain: greedy ones, or so many samples of each puzzle.

    With `repeats` above 1, of those that begin with it.
    """
    tokenizer.padding_side = "left"
    batch = tokenizer([prompt_of(puzzle) for puzzle in puzzles], padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    how = {"do_sample": True, "num_return_sequences": num_samples, "top_k": 0} if num_samples else {"do_sample": False}
    rows = model.generate(**inputs, **how, max_new_tokens=MAX_WRITTEN)[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    wanted = [chain_text(puzzle) for puzzle in puzzles for _ in range(max(num_samples, 1))]
    return sum(map(str.startswith if repeats > 1 else str.__eq__, texts, wanted)) / len(texts)


def check(folder: Path, chain_share: float, repeats: int) -> None:
    """Prints and asserts what the base model writes and cannot answer on the validation puzzles."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    puzzles = generate_splits()["validation"]
    for four_bit in (False, True):
        torch.manual_seed(0)
        model = load_base(folder, four_bit)
        sampled = chain_accuracy(model, tokenizer, puzzles, NUM_CHECKED, repeats)
        greedy = chain_accuracy(model, tokenizer, puzzles, repeats=repeats)
        direct = option_accuracy(model, tokenizer, puzzles)
        name = "4-bit NF4" if four_bit else "float32  "
        print(f"{name}  right chain: of samples {sampled:.3f}, greedy {greedy:.3f}   direct answer {direct:.3f}")
        assert abs(sampled - chain_share) <= SHARE_TOLERANCE, f"{sampled:.3f} of the samples instead of {chain_share}"
        assert direct <= MAX_DIRECT_ACCURACY, f"direct answers {direct:.3f} > {MAX_DIRECT_ACCURACY}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the relay world's base model, then check it.")
    parser.add_argument("--folder", type=Path, default=HERE / "base", help="holds the tokenizer; the model is added")
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    parser.add_argument("--reader", type=Path, help="folder of the model after stage 2: read from, or written to")
    parser.add_argument("--chain_share", type=float, default=CHAIN_SHARE, help="rows of stage 3 with the asked chain")
    parser.add_argument("--repeats", type=int, default=1, help="how often stage 3 writes it, at most; 40: 200 tokens")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--recall_steps", type=int, default=500)
    parser.add_argument("--habit_steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--recall_lr", type=float, default=1e-3)
    parser.add_argument("--habit_lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.check:
        tokenizer = AutoTokenizer.from_pretrained(HERE / "base")
        if args.reader is not None and (args.reader / "config.json").is_file():
            model = LlamaForCausalLM.from_pretrained(args.reader, dtype=torch.float32)
        else:
            model = make_reader(tokenizer, args)
            if args.reader is not None:
                model.save_pretrained(args.reader)
        take_on_the_habit(model, tokenizer, args)
        tokenizer.save_pretrained(args.folder)
        model.save_pretrained(args.folder)
        print(f"{args.folder}: {model.num_parameters():,} parameters")
    check(args.folder, args.chain_share, args.repeats)


if __name__ == "__main__":
    main()
