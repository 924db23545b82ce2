"""Makes the puzzles of the tiny world: orderings of three or four people, as rows of the LogiQA 2.0 schema.

A puzzle states the comparisons of neighbours in an order, shuffled and each in either direction, and asks for one end:

    Ann is taller than Bob. Cid is shorter than Bob.    Who is the shortest?    Ann / Dan / Cid / Bob

The derivation (`Ann > Bob > Cid .`, greatest first) is known to the program and never written to a file: nobody
annotates warmups. Only the pretraining of the base model (`make_base.py`) uses it.

    python recipes/logiqa/tiny/make_data.py          # train.jsonl, validation.jsonl, test.jsonl beside this file

The same seed gives the same bytes.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# One token each in the tokenizer.
NAMES = "Ann Bob Cid Dan Eve Fay Gus Hal Ida Jim Kay Lee Max Ned Oli Pam Rex Sam Tim Una Val Wes Yan Zoe".split()
NUM_OPTIONS = 4


@dataclass(frozen=True)
class Scale:
    """A quantity that orders people: its two comparatives and its two superlatives."""

    greater: str
    less: str
    greatest: str
    least: str


SCALES = (
    Scale("taller", "shorter", "tallest", "shortest"),
    Scale("older", "younger", "oldest", "youngest"),
    Scale("faster", "slower", "fastest", "slowest"),
    Scale("heavier", "lighter", "heaviest", "lightest"),
)

# Out of every eight questions three ask for the greatest. Derivations start with the greatest, so a base model that
# can do nothing but derive already names that person first; at one half it would seem to answer half of the puzzles.
ASKS_GREATEST = (True, False, True, False, True, False, False, False)
SIZES = (3, 4)  # people in a puzzle

SPLIT_SIZES = {"validation": 256, "test": 512, "train": 12_800}
SPLIT_SEED = 20_240_101

Key = tuple[str, ...]


@dataclass(frozen=True)
class Puzzle:
    """A puzzle with what its row does not tell: the scale, and the people from greatest to least."""

    scale: Scale
    chain: tuple[str, ...]
    text: str
    question: str
    options: tuple[str, ...]
    answer: int

    @property
    def key(self) -> Key:
        """What the puzzle means. Two puzzles with one key differ in wording at most."""
        return (self.scale.greater, *self.chain)

    def row(self, row_id: int) -> dict:
        """The puzzle as LogiQA 2.0 writes it."""
        return {
            "id": row_id,
            "text": self.text,
            "question": self.question,
            "options": list(self.options),
            "answer": self.answer,
        }


def derivation(puzzle: Puzzle) -> str:
    """The order spelled out, with the leading space of a continuation: ` Ann > Bob > Cid .`"""
    return " " + " > ".join(puzzle.chain) + " ."


def _facts(scale: Scale, chain: tuple[str, ...], rng: random.Random) -> str:
    """The comparisons of neighbours, in random order and each in a random direction."""
    facts = [
        f"{high} is {scale.greater} than {low}." if rng.random() < 0.5 else f"{low} is {scale.less} than {high}."
        for high, low in itertools.pairwise(chain)
    ]
    rng.shuffle(facts)
    return " ".join(facts)


def _make_puzzle(num_people: int, position: int, asks_greatest: bool, rng: random.Random) -> Puzzle:
    """Draws a puzzle whose answer stands at `position`; people who are not in the text fill the options up to four."""
    scale = rng.choice(SCALES)
    drawn = rng.sample(NAMES, max(num_people, NUM_OPTIONS))
    chain = tuple(drawn[:num_people])
    answer = chain[0] if asks_greatest else chain[-1]
    options = rng.sample([name for name in drawn if name != answer], NUM_OPTIONS - 1)
    options.insert(position, answer)
    superlative = scale.greatest if asks_greatest else scale.least
    return Puzzle(scale, chain, _facts(scale, chain, rng), f"Who is the {superlative}?", tuple(options), position)


def _cycle(sizes: Sequence[int]) -> Iterator[tuple[int, bool, int]]:
    """Answer position, question and number of people: every combination once a round (64 puzzles for two sizes).

    The number of people turns fastest, so a batch of a few consecutive puzzles holds every size.
    """
    return itertools.cycle(itertools.product(range(NUM_OPTIONS), ASKS_GREATEST, sizes))


def puzzle_stream(seed: int, exclude: Container[Key] = frozenset(), sizes: Sequence[int] = SIZES) -> Iterator[Puzzle]:
    """Puzzles without end, none of whose keys is in `exclude`. Repetitions are possible."""
    rng = random.Random(seed)
    for position, asks_greatest, num_people in _cycle(sizes):
        puzzle = _make_puzzle(num_people, position, asks_greatest, rng)
        while puzzle.key in exclude:
            puzzle = _make_puzzle(num_people, position, asks_greatest, rng)
        yield puzzle


def generate_puzzles(n: int, seed: int, exclude: Container[Key] = frozenset()) -> list[Puzzle]:
    """`n` puzzles in random order, no two with one key and none with a key in `exclude`.

    There are about 48,000 keys with three people; half of the puzzles have three.
    """
    rng = random.Random(seed)
    puzzles: dict[Key, Puzzle] = {}
    for position, asks_greatest, num_people in itertools.islice(_cycle(SIZES), n):
        puzzle = _make_puzzle(num_people, position, asks_greatest, rng)
        while puzzle.key in exclude or puzzle.key in puzzles:
            puzzle = _make_puzzle(num_people, position, asks_greatest, rng)
        puzzles[puzzle.key] = puzzle
    shuffled = list(puzzles.values())
    rng.shuffle(shuffled)
    return shuffled


def generate_splits(seed: int = SPLIT_SEED) -> dict[str, list[Puzzle]]:
    """Every split's puzzles. No order of people on a scale occurs twice, within a split or across them."""
    splits: dict[str, list[Puzzle]] = {}
    seen: set[Key] = set()
    for offset, (name, size) in enumerate(SPLIT_SIZES.items()):
        splits[name] = generate_puzzles(size, seed + offset, exclude=seen)
        seen.update(puzzle.key for puzzle in splits[name])
    return splits


if __name__ == "__main__":
    sys.path.append(str(HERE.parent))
    from puzzle_files import main

    main(generate_splits, HERE, SPLIT_SEED)
