"""Makes the puzzles of the relay world: who passes news on to whom, as rows of the LogiQA 2.0 schema.

Four chains of five people each, one fact a link, shuffled. The question names where one chain begins and asks for its
end; the options are the ends of all four:

    Kay tells Lee. Ann tells Bob. Bob tells Cid. ...    Ann knows. Who hears it last?    Max / Eve / Ned / Zoe

So the answer takes four look-ups, each of which needs the result of the one before, and nothing but following the
chain tells the options apart. A model of two layers cannot do that in one pass. It can write ` Bob Cid Dan Eve .`, one
look-up a token, and read the answer there. These chains are known to the program and never written to a file: nobody
annotates warmups. Only the pretraining of the base model (`make_base.py`) uses them.

    python recipes/logiqa/relay/make_data.py          # train.jsonl, validation.jsonl, test.jsonl beside this file

The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# One token each in the tokenizer.
NAMES = "Ann Bob Cid Dan Eve Fay Gus Hal Ida Jim Kay Lee Max Ned Oli Pam Rex Sam Tim Una Val Wes Yan Zoe".split()
NUM_OPTIONS = 4
NUM_CHAINS, NUM_LINKS = 4, 4

SPLIT_SIZES = {"validation": 256, "test": 512, "train": 8_192}
SPLIT_SEED = 20_240_101

Chain = tuple[str, ...]


@dataclass(frozen=True)
class Puzzle:
    """A puzzle with what its row does not tell: the chains, the asked one first, each from its first person on."""

    chains: tuple[Chain, ...]
    text: str
    options: tuple[str, ...]
    answer: int

    @property
    def asked(self) -> Chain:
        return self.chains[0]

    @property
    def question(self) -> str:
        return f"{self.asked[0]} knows. Who hears it last?"

    def row(self, row_id: int) -> dict:
        """The puzzle as LogiQA 2.0 writes it."""
        return {
            "id": row_id,
            "text": self.text,
            "question": self.question,
            "options": list(self.options),
            "answer": self.answer,
        }


def chain_text(puzzle: Puzzle) -> str:
    """The asked chain from its second person on, with the leading space of a continuation: ` Bob Cid Dan Eve .`"""
    return continuation(puzzle.asked[1:])


def continuation(people: Chain) -> str:
    return " " + " ".join(people) + " ."


def make_puzzle(position: int, rng: random.Random, num_chains: int, num_links: int) -> Puzzle:
    """A random puzzle whose answer stands at `position`. Other names fill the options where there are few chains."""
    names = rng.sample(NAMES, len(NAMES))
    size = num_links + 1
    chains = tuple(tuple(names[i * size : (i + 1) * size]) for i in range(num_chains))
    facts = [f"{giver} tells {taker}." for chain in chains for giver, taker in itertools.pairwise(chain)]
    rng.shuffle(facts)
    others = [chain[-1] for chain in chains[1:]] + names[num_chains * size :]
    options = others[: NUM_OPTIONS - 1]
    rng.shuffle(options)
    options.insert(position, chains[0][-1])
    return Puzzle(chains, " ".join(facts), tuple(options), position)


def puzzle_stream(
    seed: int, exclude: Container[Chain] = frozenset(), num_chains: int = NUM_CHAINS, num_links: int = NUM_LINKS
) -> Iterator[Puzzle]:
    """Puzzles without end, none of whose asked chains is in `exclude` when it is made. Repetitions are possible."""
    rng = random.Random(seed)
    for position in itertools.cycle(range(NUM_OPTIONS)):
        puzzle = make_puzzle(position, rng, num_chains, num_links)
        while puzzle.asked in exclude:
            puzzle = make_puzzle(position, rng, num_chains, num_links)
        yield puzzle


def generate_puzzles(n: int, seed: int, exclude: Container[Chain] = frozenset()) -> list[Puzzle]:
    """`n` puzzles in random order, no two with one asked chain and none with one in `exclude`."""
    seen, puzzles = set(exclude), []
    for puzzle in itertools.islice(puzzle_stream(seed, seen), n):
        seen.add(puzzle.asked)  # which the stream looks at
        puzzles.append(puzzle)
    random.Random(seed).shuffle(puzzles)
    return puzzles


def generate_splits(seed: int = SPLIT_SEED) -> dict[str, list[Puzzle]]:
    """Every split's puzzles. No asked chain occurs twice, within a split or across them."""
    splits: dict[str, list[Puzzle]] = {}
    seen: set[Chain] = set()
    for offset, (name, size) in enumerate(SPLIT_SIZES.items()):
        splits[name] = generate_puzzles(size, seed + offset, exclude=seen)
        seen.update(puzzle.asked for puzzle in splits[name])
    return splits


def write_jsonl(puzzles: list[Puzzle], path: Path, first_id: int) -> None:
    """Writes one row a line, with ids counted from `first_id`."""
    rows = (puzzle.row(row_id) for row_id, puzzle in enumerate(puzzles, start=first_id))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the relay world's train, validation and test puzzles.")
    parser.add_argument("--folder", type=Path, default=HERE, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=SPLIT_SEED)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    next_id = 0
    for name, puzzles in generate_splits(args.seed).items():
        path = args.folder / f"{name}.jsonl"
        write_jsonl(puzzles, path, next_id)
        next_id += len(puzzles)
        print(f"{path}: {len(puzzles)} puzzles, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
