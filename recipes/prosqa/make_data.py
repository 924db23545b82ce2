"""Makes questions of ProsQA's distribution (Hao et al., arXiv 2412.06769): is somebody an X or a Y?

    Every shumpus is a rempus. Tom is a terpus. ... Is Tom a lempus or scrompus?      Tom is a lempus.

A graph is grown node by node, as the paper's appendix describes: two people first, of whom one is asked about; every
further node gets Poisson(1.5) parents among the descendants of the one person, of the other, or among all nodes,
deeper ones more likely. A node without parents is another person, a node with parents a made-up word, and a node
without edges is dropped. The right option is a deepest one of the asked person's own descendants that have no
children, at least three sentences away; the wrong one is any such descendant of the other person. What the appendix
leaves open was fitted to the 300 validation questions of facebookresearch/coconut; `--compare` shows how well.

    python recipes/prosqa/make_data.py                              # three files into recipes/prosqa/data/
    python recipes/prosqa/make_data.py --compare prosqa_valid.json  # statistics beside those of an official file

The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPLIT_SIZES = {"validation": 128, "test": 500, "train": 2_000}
SPLIT_SEED = 20_241_209

NAMES = (
    "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren "
    "Anna Ben Clara Emil Hugo Iris Nora"
).split()
# Made-up words: a beginning, a rhyme, and "pus". 64 of them; the official files have 38.
BEGINNINGS = {
    "um": "d g h l n sh t v w y z".split(),
    "om": "b d f gl gw j l n r scr".split(),
    "oom": ["b"],
    "or": "b ch g k l m r st w zh".split(),
    "er": "d g k m st t v y".split(),
    "im": ["", *"br d fl gr l qu t y".split()],
    "em": "f k l r s t".split(),
    "el": "b f j t".split(),
    "il": "d h j m n".split(),
}
WORDS = [f"{beginning}{rhyme}pus" for rhyme, beginnings in BEGINNINGS.items() for beginning in beginnings]

# Of the graph
NUM_NODES = 28  # before those without edges are dropped
MEAN_PARENTS = 1.5
FIRST_SHARE, SECOND_SHARE = 0.35, 0.45  # nodes whose parents descend from the first or the second person alone
DEPTH_WEIGHT = 1.5
MIN_STEPS = 3
NEITHER, FIRST, SECOND = 0, 1, 2  # of whom a node descends, as bits

Edge = tuple[int, int]


@dataclass(frozen=True)
class Graph:
    """Nodes are numbered in the order they were grown, so an edge leads from a smaller to a larger number.

    Nodes 0 and 1 are the two people it starts with; `root` is the one who is asked about.
    """

    num_nodes: int
    edges: tuple[Edge, ...]
    root: int
    target: int
    neg_target: int

    @cached_property
    def parents(self) -> list[list[int]]:
        return grouped(self.num_nodes, ((child, parent) for parent, child in self.edges))

    @cached_property
    def children(self) -> list[list[int]]:
        return grouped(self.num_nodes, self.edges)


@dataclass(frozen=True)
class Puzzle:
    """A graph whose nodes have names, and its question as ProsQA writes it."""

    graph: Graph
    symbols: tuple[str, ...]
    question: str

    @property
    def answer(self) -> str:
        return self.fact((self.graph.root, self.graph.target))

    def fact(self, edge: Edge) -> str:
        parent, child = edge
        subject = self.symbols[parent] if not self.graph.parents[parent] else f"Every {self.symbols[parent]}"
        return f"{subject} is a {self.symbols[child]}."

    def row(self) -> dict:
        return {"question": self.question, "answer": self.answer}


def grouped(num_nodes: int, pairs: Iterable[Edge]) -> list[list[int]]:
    """For each node, the second nodes of its pairs."""
    groups: list[list[int]] = [[] for _ in range(num_nodes)]
    for key, value in pairs:
        groups[key].append(value)
    return groups


def depths(children: Sequence[Sequence[int]], start: int) -> dict[int, int]:
    """Edges on the shortest way from `start` to each of its descendants."""
    found = {start: 0}
    queue = [start]
    for node in queue:
        for child in children[node]:
            if child not in found:
                found[child] = found[node] + 1
                queue.append(child)
    return found


# ---- Growing a graph ----


def poisson(mean: float, rng: random.Random) -> int:
    count, product = 0, rng.random()
    while product > math.exp(-mean):
        count, product = count + 1, product * rng.random()
    return count


def weighted_sample(items: Sequence[int], weights: Sequence[float], n: int, rng: random.Random) -> list[int]:
    """`n` different items, one after the other (Efraimidis and Spirakis)."""
    keys = {item: rng.random() ** (1 / weight) for item, weight in zip(items, weights, strict=True)}
    return sorted(keys, key=keys.__getitem__, reverse=True)[:n]


def candidates(origins: Sequence[int], rng: random.Random) -> list[int]:
    """The nodes from which a new node's parents are chosen."""
    chance = rng.random()
    if chance < FIRST_SHARE:
        return [node for node, origin in enumerate(origins) if origin == FIRST]
    if chance < FIRST_SHARE + SECOND_SHARE:
        return [node for node, origin in enumerate(origins) if origin == SECOND]
    return list(range(len(origins)))


def grow(num_nodes: int, rng: random.Random) -> tuple[list[Edge], list[int]]:
    """Edges, and for each node whether it descends from the first person, the second, both or neither."""
    origins, depth, edges = [FIRST, SECOND], [0, 0], []
    for node in range(2, num_nodes):
        among = candidates(origins, rng)
        weights = [DEPTH_WEIGHT * depth[parent] + 1 for parent in among]
        parents = weighted_sample(among, weights, poisson(MEAN_PARENTS, rng), rng)
        edges += [(parent, node) for parent in parents]
        depth.append(min((depth[parent] + 1 for parent in parents), default=0))
        origin = NEITHER
        for parent in parents:
            origin |= origins[parent]
        origins.append(origin)
    return edges, origins


def drop_unconnected(edges: list[Edge], origins: list[int]) -> tuple[list[Edge], list[int]]:
    kept = sorted({0, 1, *itertools.chain.from_iterable(edges)})
    number = {node: index for index, node in enumerate(kept)}
    return [(number[parent], number[child]) for parent, child in edges], [origins[node] for node in kept]


def ask(edges: list[Edge], origins: list[int], min_steps: int, rng: random.Random) -> Graph | None:
    """Chooses the person asked about and both options; None where the graph has no such pair."""
    children = grouped(len(origins), edges)
    depth = [depths(children, person) for person in (0, 1)]
    ends = [
        [node for node in depth[person] if node > 1 and origins[node] == origin and not children[node]]
        for person, origin in enumerate((FIRST, SECOND))
    ]
    if not all(ends):
        return None
    deepest = [max(depth[person][node] for node in ends[person]) for person in (0, 1)]
    root = max((0, 1), key=lambda person: (deepest[person], rng.random()))
    if deepest[root] < min_steps:
        return None
    target = rng.choice([node for node in ends[root] if depth[root][node] == deepest[root]])
    return Graph(len(origins), tuple(edges), root, target, rng.choice(ends[1 - root]))


def make_graph(rng: random.Random, num_nodes: int = NUM_NODES, min_steps: int = MIN_STEPS) -> Graph:
    graph = None
    while graph is None:
        graph = ask(*drop_unconnected(*grow(num_nodes, rng)), min_steps, rng)
    return graph


# ---- Puzzles ----


def make_puzzle(rng: random.Random, num_nodes: int = NUM_NODES, min_steps: int = MIN_STEPS) -> Puzzle:
    """A graph with random names and words, its facts in random order, the options too."""
    graph = make_graph(rng, num_nodes, min_steps)
    names, words = iter(rng.sample(NAMES, len(NAMES))), iter(rng.sample(WORDS, len(WORDS)))
    symbols = tuple(next(words if parents else names) for parents in graph.parents)
    puzzle = Puzzle(graph, symbols, "")
    facts = [puzzle.fact(edge) for edge in rng.sample(graph.edges, len(graph.edges))]
    first, second = rng.sample([graph.target, graph.neg_target], 2)
    asked = f"Is {symbols[graph.root]} a {symbols[first]} or {symbols[second]}?"
    return Puzzle(graph, symbols, " ".join([*facts, asked]))


def puzzle_stream(seed: int, num_nodes: int = NUM_NODES, min_steps: int = MIN_STEPS) -> Iterator[Puzzle]:
    rng = random.Random(seed)
    while True:
        yield make_puzzle(rng, num_nodes, min_steps)


def generate_splits(seed: int = SPLIT_SEED, train_size: int = SPLIT_SIZES["train"]) -> dict[str, list[Puzzle]]:
    """Every split's puzzles, each from a stream of its own."""
    sizes = {**SPLIT_SIZES, "train": train_size}
    return {
        name: list(itertools.islice(puzzle_stream(seed + offset), size))
        for offset, (name, size) in enumerate(sizes.items())
    }


# ---- Files ----


def write_jsonl(puzzles: Iterable[Puzzle], path: Path) -> None:
    """One row a line."""
    text = "".join(json.dumps(puzzle.row()) + "\n" for puzzle in puzzles)
    path.write_text(text, encoding="utf-8", newline="\n")


# ---- Statistics, beside an official file ----


@dataclass(frozen=True)
class Sample:
    """What is measured of a question, made here or read from an official file."""

    graph: Graph
    question: str

    @cached_property
    def depth(self) -> dict[int, int]:
        return depths(self.graph.children, self.graph.root)

    @property
    def steps(self) -> int:
        return self.depth[self.graph.target]

    @property
    def neg_steps(self) -> int:
        """From the other person whom the graph began with."""
        return depths(self.graph.children, 1 - self.graph.root)[self.graph.neg_target]


def read_official(path: Path) -> list[Sample]:
    """Rows of an official file: JSON lines, or one JSON list.

    Raises:
        ValueError: it is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        return [
            Sample(
                Graph(
                    len(row["idx_to_symbol"]),
                    tuple(map(tuple, row["edges"])),
                    row["root"],
                    row["target"],
                    row["neg_target"],
                ),
                row["question"],
            )
            for row in rows
        ]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of ProsQA with its graphs ({error}).") from error


def mean_of(value: Callable[[Sample], float]) -> Callable[[Sequence[Sample]], str]:
    def text(samples: Sequence[Sample]) -> str:
        values = [value(sample) for sample in samples]
        return f"{statistics.fmean(values):.2f} ± {statistics.pstdev(values):.2f}"

    return text


def shares_of(values: Callable[[Sample], Iterable[int]], last: int) -> Callable[[Sequence[Sample]], str]:
    """Percent of 0, 1, ... and of `last` and more."""

    def text(samples: Sequence[Sample]) -> str:
        counts = Counter(min(value, last) for sample in samples for value in values(sample))
        return " ".join(f"{100 * counts[value] / counts.total():.0f}" for value in range(last + 1))

    return text


MEASURES: dict[str, Callable[[Sequence[Sample]], str]] = {
    "nodes": mean_of(lambda sample: sample.graph.num_nodes),
    "edges, which are the facts": mean_of(lambda sample: len(sample.graph.edges)),
    "people": mean_of(lambda sample: sum(not parents for parents in sample.graph.parents)),
    "nodes without children": mean_of(lambda sample: sum(not children for children in sample.graph.children)),
    "parents: percent of words with 0, 1, ... 5 or more": shares_of(
        lambda sample: [len(parents) for parents in sample.graph.parents if parents], 5
    ),
    "children: percent of nodes with 0, 1, ... 5 or more": shares_of(
        lambda sample: map(len, sample.graph.children), 5
    ),
    "descendants of the asked person": mean_of(lambda sample: len(sample.depth) - 1),
    "deepest of them, in facts": mean_of(lambda sample: max(sample.depth.values())),
    "facts to the right option": mean_of(lambda sample: sample.steps),
    "percent with 0, 1, ... 6 or more": shares_of(lambda sample: [sample.steps], 6),
    "facts to the wrong option, from the other person": mean_of(lambda sample: sample.neg_steps),
    "percent with 0, 1, ... 4 or more": shares_of(lambda sample: [sample.neg_steps], 4),
    "parents of the right option": mean_of(lambda sample: len(sample.graph.parents[sample.graph.target])),
    "parents of the wrong option": mean_of(lambda sample: len(sample.graph.parents[sample.graph.neg_target])),
    "words of a question": mean_of(lambda sample: len(sample.question.split())),
}


def comparison(samples: Sequence[Sample], official: Sequence[Sample]) -> str:
    """A table in Markdown."""
    lines = [f"| | {len(samples):,} made here | {len(official):,} official |", "|---|---|---|"]
    lines += [f"| {name} | {measure(samples)} | {measure(official)} |" for name, measure in MEASURES.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write questions of ProsQA's distribution.")
    parser.add_argument("--folder", type=Path, default=HERE / "data", help="folder for the three files")
    parser.add_argument("--seed", type=int, default=SPLIT_SEED)
    parser.add_argument("--train_size", type=int, default=SPLIT_SIZES["train"], help="rows for training")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="write nothing; compare with an official file")
    args = parser.parse_args()
    if args.compare is not None:
        try:
            official = read_official(args.compare)
        except ValueError as error:
            parser.error(str(error))
        puzzles = itertools.islice(puzzle_stream(args.seed), 3_000)
        print(comparison([Sample(puzzle.graph, puzzle.question) for puzzle in puzzles], official))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, puzzles in generate_splits(args.seed, args.train_size).items():
        write_jsonl(puzzles, args.folder / f"{name}.jsonl")


if __name__ == "__main__":
    main()
