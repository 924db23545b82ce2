"""Makes the recipe's base: a Llama of three layers, 0.56M parameters, which walks a question's graph backwards.

After the prompt it writes a walk from one of the two options, word by word up to a person, and what the walk shows,
then the same from the other option: ` lempus. brimpus. Tom is a lempus. yumpus. Sam is a yumpus.` Which option comes
first, and which of several parents, it leaves to chance. A walk from the right option nearly always ends with the
person who is asked about, one from the wrong option never.

Pretraining has six stages. First rows of walks. Then walks from words that are no options are followed by what they
show. Then pairs of walks stand in one text, and what those from other words showed is recalled after it. Last, lists
of facts are said twice, so that recalling is learned. Nothing in it depends on which option is right.

A model this small takes long to find out that a token can be looked up. So the look-up is planted, not learned: the
first layer starts with a head that looks one token back, the second with two heads that look where the same token
stood before and take what was noted there. Pretraining makes it precise and teaches all the rest.

    python recipes/prosqa/make_base.py          # model and tokenizer, into recipes/prosqa/base/
    python recipes/prosqa/make_base.py --check  # measures what is there, without training

The seed fixes the initial weights and the batches, but other CPUs sum in another order. What has to hold everywhere is
what `--check` asserts, and every pretraining ends with it.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from make_data import HERE, NAMES, WORDS, Graph, Puzzle, generate_splits, puzzle_stream
from make_tokenizer import PERSON_FORMS, WORD_FORMS, in_alphabet, make_tokenizer
from task import WALK, read, warmup_is_right
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

sys.path.append(str(HERE.parent))
from small_base import continuations, fit, load_base

HIDDEN_SIZE, HEAD_SIZE = 128, 32
ROPE_THETA = 1e6  # so that most of a head's dimensions hardly turn over a prompt, and can compare words
NUM_OPTIONS = 2
MAX_WRITTEN = 20
NUM_LISTED = 10  # facts of a list
NUM_CHECKED = 4  # samples of each validation question
MIN_VALID, MIN_RIGHT, MAX_DIRECT_ACCURACY = 0.4, 0.6, 0.6

# How the initial embedding's dimensions are divided
CODE, FORM, BEFORE, CONSTANT = slice(0, 64), slice(64, 80), slice(80, 112), slice(112, 128)
SCALE = 0.06


@dataclass(frozen=True)
class Stage:
    """Of pretraining, with its own cycle of the learning rate: `texts` makes the texts of a row."""

    steps: int
    lr: float
    texts: Callable[[Puzzle, random.Random], list[str]]
    num_puzzles: int = 20  # rows of a batch that are such texts
    num_lists: int = 0  # rows that are lists of facts, said twice


# ---- Walks ----


def walk_back(graph: Graph, start: int, rng: random.Random) -> list[int]:
    """From a node to one of its parents, and so on up to a person."""
    walk = [start]
    while graph.parents[walk[-1]]:
        walk.append(rng.choice(graph.parents[walk[-1]]))
    return walk


def written(puzzle: Puzzle, walk: Sequence[int]) -> str:
    """` lempus. brimpus. terpus. Tom`, with the leading space of a continuation."""
    *words, person = (puzzle.symbols[node] for node in walk)
    return "".join(f" {word}." for word in words) + f" {person}"


def shown(puzzle: Puzzle, walk: Sequence[int]) -> str:
    """`Tom is a lempus.`"""
    return puzzle.fact((walk[-1], walk[0]))


def concluded(puzzle: Puzzle, walk: Sequence[int]) -> str:
    """` lempus. brimpus. terpus. Tom is a lempus.`, a walk whose last word begins what it shows."""
    return "".join(f" {puzzle.symbols[node]}." for node in walk[:-1]) + f" {shown(puzzle, walk)}"


def starts(graph: Graph, num_walks: int, rng: random.Random) -> list[int]:
    """Both options in random order, then other words."""
    options = [graph.target, graph.neg_target]
    others = [node for node, parents in enumerate(graph.parents) if parents and node not in options]
    return rng.sample(options, NUM_OPTIONS) + rng.sample(others, min(num_walks - NUM_OPTIONS, len(others)))


def followed(puzzle: Puzzle, text: str) -> list[tuple[int, int]] | None:
    """Where the walks of a text start and end, or None if one is no walk from an option, or shows something else."""
    graph, number = puzzle.graph, {symbol: node for node, symbol in enumerate(puzzle.symbols)}
    ends = []
    for words, person, shown in WALK.findall(text):
        walk = [number.get(symbol) for symbol in (*words.replace(".", " ").split(), person)]
        if None in walk or walk[0] not in (graph.target, graph.neg_target) or puzzle.symbols[walk[0]] != shown:
            return None
        if not all(parent in graph.parents[child] for child, parent in itertools.pairwise(walk)):
            return None
        ends.append((walk[0], walk[-1]))
    return ends


# ---- The model ----


def make_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Sizes are multiples of 64, the block size of 4-bit quantisation."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=3,
        num_attention_heads=HIDDEN_SIZE // HEAD_SIZE,
        num_key_value_heads=HIDDEN_SIZE // HEAD_SIZE,
        max_position_embeddings=tokenizer.model_max_length,
        rope_parameters={"rope_theta": ROPE_THETA, "rope_type": "default"},
        tie_word_embeddings=True,
        initializer_range=SCALE,  # the usual 0.02 is for wider models
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    plant_embeddings(model.model.embed_tokens.weight, tokenizer)
    plant_heads(model)
    return model


@torch.no_grad()
def plant_embeddings(weight: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every form of a word has the word's code and the form's; words' codes are orthogonal."""
    ids = tokenizer.get_vocab()
    weight.normal_(0, SCALE)
    codes = torch.linalg.qr(torch.randn(len(WORDS), len(WORDS)))[0] * len(WORDS) ** 0.5 * SCALE
    weight[[ids[in_alphabet(f" {word}")] for word in WORDS], CODE] = codes
    for symbols, forms in ((NAMES, PERSON_FORMS), (WORDS, WORD_FORMS)):
        for form in forms:
            form_code = torch.randn(FORM.stop - FORM.start) * SCALE
            for symbol in symbols:
                row = weight[ids[in_alphabet(form.format(symbol))]]
                row[CODE], row[FORM] = weight[ids[in_alphabet(f" {symbol}")], CODE], form_code
    weight[:, BEFORE] *= 0.1
    weight[:, CONSTANT] = SCALE


def at_distance(model: LlamaForCausalLM, distance: int, strength: float, num_pairs: int) -> tuple[Tensor, Tensor]:
    """A query and a key whose product, with rotary positions, is largest where the key is `distance` back."""
    frequencies, half = model.model.rotary_emb.inv_freq, HEAD_SIZE // 2
    key = torch.zeros(HEAD_SIZE)
    key[:num_pairs] = strength / num_pairs**0.5
    turned = torch.cat(
        [key[:half] * torch.cos(distance * frequencies), -key[:half] * torch.sin(distance * frequencies)]
    )
    return turned, key


@torch.no_grad()
def plant_heads(model: LlamaForCausalLM) -> None:
    """The look-up: what stood before the places where this token stood."""
    for layer in model.model.layers:  # quiet at first, so that they do not drown what is planted
        layer.self_attn.o_proj.weight *= 0.1
        layer.mlp.down_proj.weight *= 0.1
    constant = torch.zeros(HIDDEN_SIZE)
    constant[CONSTANT] = 1 / (CONSTANT.stop - CONSTANT.start)
    code_size, before_size = CODE.stop - CODE.start, BEFORE.stop - BEFORE.start
    noted = torch.randn(before_size, code_size) / code_size**0.5
    first, second = (layer.self_attn for layer in model.model.layers[:2])

    rows = slice(0, HEAD_SIZE)  # one token back: note its code in BEFORE
    query, key = at_distance(model, 1, 12.0, 3)
    first.q_proj.weight[rows], first.k_proj.weight[rows] = torch.outer(query, constant), torch.outer(key, constant)
    first.v_proj.weight[rows] = 0
    first.v_proj.weight[rows, CODE] = noted
    first.o_proj.weight[:, rows] = 0
    first.o_proj.weight[BEFORE, rows] = 0.05 * torch.eye(before_size)

    half, still = HEAD_SIZE // 2, 6  # the dimensions of a head that hardly turn
    dimensions = [*range(still, half), *range(half + still, HEAD_SIZE)]
    for head in range(2):  # the same token, but not this very one: write what was noted there
        rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        query, key = at_distance(model, 0, 6.0, 4)
        token = torch.zeros(HEAD_SIZE, HIDDEN_SIZE)
        token[dimensions, : FORM.stop] = torch.randn(len(dimensions), FORM.stop) * 0.3
        second.q_proj.weight[rows] = token - torch.outer(query, constant)
        second.k_proj.weight[rows] = token + torch.outer(key, constant)
        second.v_proj.weight[rows] = 0
        second.v_proj.weight[rows, BEFORE] = torch.eye(before_size)
        second.o_proj.weight[:, rows] = 0
        second.o_proj.weight[CODE, rows] = 0.15 * noted.T


# ---- Pretraining ----


def walk_texts(puzzle: Puzzle, rng: random.Random) -> list[str]:
    """Six walks, of which one is from each option."""
    return [written(puzzle, walk_back(puzzle.graph, start, rng)) for start in starts(puzzle.graph, 6, rng)]


def walk_and_fact_texts(puzzle: Puzzle, rng: random.Random) -> list[str]:
    """Five walks, and after each from a word that is no option what it shows."""
    texts = []
    for number, start in enumerate(starts(puzzle.graph, 5, rng)):
        walk = walk_back(puzzle.graph, start, rng)
        texts += [written(puzzle, walk)] + [f" {shown(puzzle, walk)}"] * (number >= NUM_OPTIONS)
    return texts


def pair_texts(puzzle: Puzzle, rng: random.Random) -> list[str]:
    """Walks from both options in one text, then two other such pairs, and after each of these what it showed."""
    chosen = starts(puzzle.graph, 6, rng)
    texts = []
    for first in range(0, len(chosen), 2):
        walks = [walk_back(puzzle.graph, start, rng) for start in chosen[first : first + 2]]
        texts.append("".join(concluded(puzzle, walk) for walk in walks))
        people = {walk[-1] for walk in walks}
        if first >= NUM_OPTIONS and len(people) == len(walks):
            texts += [f" {shown(puzzle, walk)}" for walk in rng.sample(walks, len(walks))]
    return texts


STAGES = (
    Stage(450, 1.5e-3, walk_texts),
    Stage(340, 1.2e-3, walk_and_fact_texts),
    Stage(600, 1.5e-3, walk_and_fact_texts),
    Stage(280, 1.5e-3, pair_texts),
    Stage(300, 1.5e-3, pair_texts),
    Stage(180, 1.5e-3, pair_texts, num_puzzles=10, num_lists=32),
)


def fact_list(rng: random.Random) -> tuple[str, str]:
    """Facts about people, and the same in another order. Without any prompt, so that they are short."""
    people = rng.sample(NAMES, NUM_LISTED)
    facts = [f" {person} is a {word}." for person, word in zip(people, rng.choices(WORDS, k=NUM_LISTED), strict=True)]
    return "".join(facts), "".join(rng.sample(facts, NUM_LISTED))


def make_batch(
    puzzles: Sequence[Puzzle], stage: Stage, tokenizer: PreTrainedTokenizerBase, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Token ids and labels, padded on the right. Only what follows the prompt, or a list, has labels."""
    lists = [fact_list(rng) for _ in range(stage.num_lists)]
    prompts = [question.prompt for question in read(puzzle.row() for puzzle in puzzles)] + [
        first for first, _ in lists
    ]
    prompts = tokenizer(prompts)["input_ids"]
    texts = ["".join(text + tokenizer.eos_token for text in stage.texts(puzzle, rng)) for puzzle in puzzles]
    walks = tokenizer(texts + [second for _, second in lists])["input_ids"]
    return continuations(prompts, walks, tokenizer.pad_token_id)


def unwritten(stream: Iterator[Puzzle]) -> Iterator[Puzzle]:
    """Without the questions of validation and test."""
    splits = generate_splits(train_size=0)
    held_out = {puzzle.question for name in ("validation", "test") for puzzle in splits[name]}
    return (puzzle for puzzle in stream if puzzle.question not in held_out)


def pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, stage: Stage, seed: int) -> None:
    """Learn to continue prompts as a stage has it, with one cycle of the learning rate."""
    rng, stream = random.Random(seed), unwritten(puzzle_stream(seed + 1))
    batches = (
        make_batch(list(itertools.islice(stream, stage.num_puzzles)), stage, tokenizer, rng)
        for _ in range(stage.steps)
    )
    fit(model, batches, stage.steps, stage.lr, stage.texts.__name__)


# ---- What came of it ----


@torch.no_grad()
def sampled_walks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, puzzles: Sequence[Puzzle], num_samples: int
) -> list[list[str]]:
    """So many texts for each question."""
    tokenizer.padding_side = "left"
    prompts = [question.prompt for question in read(puzzle.row() for puzzle in puzzles)]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = model.generate(
        **inputs, do_sample=True, top_k=0, num_return_sequences=num_samples, max_new_tokens=MAX_WRITTEN
    )
    texts = tokenizer.batch_decode(rows[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[start : start + num_samples] for start in range(0, len(texts), num_samples)]


@torch.no_grad()
def direct_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, puzzles: Sequence[Puzzle]) -> float:
    """Share of questions whose right option is the likelier one directly after the prompt. An option is two tokens."""
    right = 0
    for question in read(puzzle.row() for puzzle in puzzles):
        prompt = tokenizer.encode(question.prompt)
        options = [tokenizer.encode(option) for option in question.options]
        logits = model(input_ids=torch.tensor([prompt + options[0][:-1]])).logits[0, -1]
        right += int(torch.stack([logits[option[-1]] for option in options]).argmax()) == question.answer
    return right / len(puzzles)


def check(folder: Path) -> None:
    """Prints and asserts what the base writes and cannot answer on the validation questions."""
    tokenizer, puzzles = AutoTokenizer.from_pretrained(folder), generate_splits(train_size=0)["validation"]
    for four_bit in (False, True):
        torch.manual_seed(0)
        model = load_base(folder, four_bit)
        texts = sampled_walks(model, tokenizer, puzzles, NUM_CHECKED)
        pairs = [(puzzle, text) for puzzle, samples in zip(puzzles, texts) for text in samples]
        both = [followed(puzzle, text) for puzzle, text in pairs]
        valid = sum(ends is not None and len({start for start, _ in ends}) == NUM_OPTIONS for ends in both) / len(
            pairs
        )
        questions = [question for question in read(puzzle.row() for puzzle in puzzles) for _ in range(NUM_CHECKED)]
        right = sum(warmup_is_right(question, text) for question, (_, text) in zip(questions, pairs)) / len(pairs)
        direct = direct_accuracy(model, tokenizer, puzzles)
        name = "4-bit NF4" if four_bit else "float32  "
        print(f"{name}  walks: both valid {valid:.3f}, from right option to asked person {right:.3f}")
        print(f"{name}  direct answer {direct:.3f}")
        assert valid >= MIN_VALID, f"only {valid:.3f} of the samples are two walks"
        assert right >= MIN_RIGHT, f"only {right:.3f} of the samples lead from the right option to the asked person"
        assert direct <= MAX_DIRECT_ACCURACY, f"direct answers {direct:.3f} > {MAX_DIRECT_ACCURACY}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the recipe's base model, then check it.")
    parser.add_argument("--folder", type=Path, default=HERE / "base", help="of the model, and of the tokenizer")
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.check:
        torch.manual_seed(args.seed)
        tokenizer = make_tokenizer()
        model = make_model(tokenizer)
        for number, stage in enumerate(STAGES):
            pretrain(model, tokenizer, stage, args.seed + number)
        tokenizer.save_pretrained(args.folder)
        model.to(torch.bfloat16).save_pretrained(args.folder)
        print(f"{args.folder}: {model.num_parameters():,} parameters")
    check(args.folder)


if __name__ == "__main__":
    main()
