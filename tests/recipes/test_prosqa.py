"""The ProsQA recipe: what its generator promises of every question, its files, and official rows as they are."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import sys

import pytest
import torch
from transformers import AutoTokenizer
from worlds import LARGEST_BASE, ROOT, SPLITS, check_base, read_splits, run_script

from warmup_peft.evaluation.tasks import find_task
from warmup_peft.training.config import parse_training

RECIPE = ROOT / "recipes" / "prosqa"
TASK = find_task(str(RECIPE / "task.py"))
LARGEST_DATA = 3_000_000


def load_scripts(*names: str):
    """Scripts of the recipe as modules. They import each other by bare names, which other recipes have too."""
    sys.path.insert(0, str(RECIPE))
    before = {name: sys.modules.pop(name) for name in SCRIPTS if name in sys.modules}
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(RECIPE))
        for name in SCRIPTS:
            sys.modules.pop(name, None)
        sys.modules.update(before)


SCRIPTS = ("make_data", "task", "make_tokenizer", "make_base")
DATA, TOKENIZER, BASE = load_scripts("make_data", "make_tokenizer", "make_base")
PUZZLES = list(itertools.islice(DATA.puzzle_stream(11), 200))


def facts_of(question: str) -> list[tuple[str, str]]:
    """Subjects and objects of the facts, read from the text alone."""
    facts, _ = question.rsplit(" Is ", 1)
    pairs = [fact.removeprefix("Every ").split(" is a ") for fact in facts.rstrip(".").split(". ")]
    return [(subject, thing) for subject, thing in pairs]


def reached(facts: list[tuple[str, str]], start: str) -> dict[str, int]:
    """Facts on the shortest way to everything that `start` is, by applying all facts again and again."""
    found = {start: 0}
    for step in itertools.count(1):
        new = {thing for subject, thing in facts if subject in found} - set(found)
        if not new:
            return found
        found |= dict.fromkeys(new, step)


def test_the_right_option_follows_from_the_facts_and_the_wrong_one_does_not():
    for puzzle in PUZZLES:
        graph, symbols = puzzle.graph, puzzle.symbols
        steps = reached(facts_of(puzzle.question), symbols[graph.root])
        assert puzzle.answer == f"{symbols[graph.root]} is a {symbols[graph.target]}."
        assert steps[symbols[graph.target]] >= 3
        assert symbols[graph.neg_target] not in steps
        assert symbols[graph.neg_target] in reached(facts_of(puzzle.question), symbols[1 - graph.root])
        assert DATA.depths(graph.children, graph.root)[graph.target] == steps[symbols[graph.target]]


def test_a_question_says_every_edge_once_and_asks_for_both_options():
    for puzzle in PUZZLES:
        graph, symbols = puzzle.graph, puzzle.symbols
        edges = {(symbols[parent], symbols[child]) for parent, child in graph.edges}
        facts = facts_of(puzzle.question)
        assert set(facts) == edges
        assert len(facts) == len(graph.edges)
        asked = puzzle.question.rsplit(" Is ", 1)[1]
        options = [symbols[graph.target], symbols[graph.neg_target]]
        assert asked in {f"{symbols[graph.root]} a {x} or {y}?" for x, y in itertools.permutations(options)}


def test_graphs_have_no_cycles_and_only_people_have_no_parents():
    for puzzle in PUZZLES:
        graph = puzzle.graph
        assert all(parent < child for parent, child in graph.edges)
        assert {node for edge in graph.edges for node in edge} == set(range(graph.num_nodes))
        assert not graph.children[graph.target]
        assert not graph.children[graph.neg_target]
        for node, symbol in enumerate(puzzle.symbols):
            assert (symbol in DATA.NAMES) == (not graph.parents[node])
        assert len(set(puzzle.symbols)) == graph.num_nodes


def test_the_place_of_an_option_does_not_tell_the_answer():
    """Within three standard errors of a half, over 200 questions."""
    first = sum(f"a {puzzle.symbols[puzzle.graph.target]} or" in puzzle.question for puzzle in PUZZLES)
    assert 79 <= first <= 121


def test_the_poisson_sampler_has_the_mean_and_variance_of_one():
    rng = random.Random(0)
    counts = [DATA.poisson(1.5, rng) for _ in range(20_000)]
    mean = sum(counts) / len(counts)
    assert mean == pytest.approx(1.5, abs=0.04)
    assert sum((count - mean) ** 2 for count in counts) / len(counts) == pytest.approx(1.5, abs=0.06)


def test_deeper_nodes_are_chosen_more_often():
    rng = random.Random(0)
    chosen = [DATA.weighted_sample([0, 1], [1.0, 4.0], 1, rng)[0] for _ in range(4_000)]
    assert sum(chosen) / len(chosen) == pytest.approx(0.8, abs=0.03)
    assert sorted(DATA.weighted_sample([3, 5], [1.0, 4.0], 9, rng)) == [3, 5]


@pytest.mark.slow
def test_the_questions_are_what_their_script_makes(tmp_path):
    run_script(RECIPE / "make_data.py", "--folder", str(tmp_path))
    for name in SPLITS:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (RECIPE / "data" / f"{name}.jsonl").read_bytes(), name
    assert sum((RECIPE / "data" / f"{name}.jsonl").stat().st_size for name in SPLITS) < LARGEST_DATA


def test_no_question_is_in_two_splits():
    splits = read_splits(RECIPE / "data")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2000, "validation": 128, "test": 500}
    questions = [row["question"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions)


def official_row(puzzle) -> dict:
    graph = puzzle.graph
    return {
        **puzzle.row(),
        "steps": ["not read"],
        "edges": [list(edge) for edge in graph.edges],
        "idx_to_symbol": list(puzzle.symbols),
        "root": graph.root,
        "target": graph.target,
        "neg_target": graph.neg_target,
    }


@pytest.mark.parametrize("as_list", [True, False])
def test_a_file_is_compared_with_itself(tmp_path, as_list):
    rows = [official_row(puzzle) for puzzle in PUZZLES]
    path = tmp_path / "official.json"
    path.write_text(json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    table = DATA.comparison(
        [DATA.Sample(puzzle.graph, puzzle.question) for puzzle in PUZZLES], DATA.read_official(path)
    )
    for line in table.splitlines()[2:]:
        _, _, made, official, _ = line.split("|")
        assert made == official


def test_statistics_of_a_graph_solved_by_hand():
    """Tom (0) is a 2, every 2 is a 3 and a 4, every 3 is a 5; Sam (1) is a 4 and a 6."""
    graph = DATA.Graph(7, ((0, 2), (2, 3), (2, 4), (1, 4), (3, 5), (1, 6)), 0, 5, 6)
    sample = DATA.Sample(graph, "One two. Is three a four or five?")
    assert {name: measure([sample]) for name, measure in DATA.MEASURES.items()} == {
        "nodes": "7.00 ± 0.00",
        "edges, which are the facts": "6.00 ± 0.00",
        "people": "2.00 ± 0.00",
        "nodes without children": "3.00 ± 0.00",
        "parents: percent of words with 0, 1, ... 5 or more": "0 80 20 0 0 0",
        "children: percent of nodes with 0, 1, ... 5 or more": "43 29 29 0 0 0",
        "descendants of the asked person": "4.00 ± 0.00",
        "deepest of them, in facts": "3.00 ± 0.00",
        "facts to the right option": "3.00 ± 0.00",
        "percent with 0, 1, ... 6 or more": "0 0 0 100 0 0 0",
        "facts to the wrong option, from the other person": "1.00 ± 0.00",
        "percent with 0, 1, ... 4 or more": "0 100 0 0 0",
        "parents of the right option": "1.00 ± 0.00",
        "parents of the wrong option": "1.00 ± 0.00",
        "words of a question": "8.00 ± 0.00",
    }


def test_a_file_without_graphs_is_refused(tmp_path):
    path = tmp_path / "official.json"
    path.write_text('{"question": "?"}', encoding="utf-8")
    with pytest.raises(ValueError, match="no file of ProsQA with its graphs"):
        DATA.read_official(path)


def test_official_rows_become_questions():
    row = {
        "question": "Every ab is a ba. Tom is a ab. Is Tom a ba or ca?",
        "answer": "Tom is a ba.",
        "steps": ["Tom is a ab.", "Every ab is a ba."],
        "root": 0,
    }
    (question,) = TASK.read([row])
    assert question.prompt == "Facts: Every ab is a ba. Tom is a ab.\nQuestion: Is Tom a ba or ca?\nAnswer:"
    assert question.options == (" Tom is a ba.", " Tom is a ca.")
    assert question.completion == " Tom is a ba."
    (question,) = TASK.read([{**row, "answer": "Tom is a ca."}])
    assert question.completion == " Tom is a ca."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "Tom is a da."}, "Row 2: the column `answer` says 'Tom is a da.'"),
        ({"question": "Every ab is a ba. Who is Tom?"}, "Row 2: the column `question` does not end in"),
        ({"answer": " "}, "Row 2 has no text in the column `answer`"),
    ],
)
def test_a_bad_row_is_named(change, message):
    good = PUZZLES[0].row()
    with pytest.raises(ValueError, match=message):
        TASK.read([good, {**good, **change}])


def test_the_profile_goes_through_the_real_parser():
    script, options, args, model = parse_training(["--config", str(RECIPE / "prosqa.yaml"), "--bf16", "false"])
    assert options.task == "recipes/prosqa/task.py"
    assert script.dataset_test_split == "test"
    assert (args.num_warmups, args.max_warmup_length) == (4, 16)
    assert model.load_in_4bit
    assert model.use_bnb_nested_quant
    assert model.lora_dropout == 0.0


def test_every_row_fits_the_profile():
    tokenizer = AutoTokenizer.from_pretrained(RECIPE / "base")
    *_, args, _ = parse_training(["--config", str(RECIPE / "prosqa.yaml"), "--bf16", "false"])
    rows = [row for split in read_splits(RECIPE / "data").values() for row in split]
    texts = [question.prompt + question.completion for question in TASK.read(rows)]
    assert max(map(len, tokenizer(texts)["input_ids"])) + 1 < args.max_length


def pair(puzzle, walks) -> str:
    return "".join(BASE.concluded(puzzle, walk) for walk in walks)


def walks_of(puzzle, rng) -> list[list[int]]:
    """From the right option, then from the wrong one."""
    return [BASE.walk_back(puzzle.graph, option, rng) for option in (puzzle.graph.target, puzzle.graph.neg_target)]


def test_nearly_every_pair_of_walks_fits_a_warmup():
    """A word is one token, what a walk shows two, and W is 16."""
    tokenizer, rng = TOKENIZER.make_tokenizer(), random.Random(0)
    pairs = [(puzzle, walks_of(puzzle, rng)) for puzzle in PUZZLES for _ in range(5)]
    lengths = [len(tokenizer.encode(pair(puzzle, walks))) for puzzle, walks in pairs]
    assert lengths == [sum(len(walk) + 1 for walk in walks) for _, walks in pairs]
    assert sum(length > 16 for length in lengths) / len(lengths) < 0.03


def test_a_right_warmup_leads_from_the_right_option_to_the_asked_person():
    rng = random.Random(0)
    for puzzle in PUZZLES:
        graph = puzzle.graph
        (question,) = TASK.read([puzzle.row()])
        good, bad = walks_of(puzzle, rng)
        right = good[-1] == graph.root
        for walks in ([good], [bad, good], [good, bad]):
            assert TASK.warmup_is_right(question, pair(puzzle, walks).strip()) is right
        assert not TASK.warmup_is_right(question, pair(puzzle, [bad]))
        assert not TASK.warmup_is_right(question, pair(puzzle, [[good[0], *good]]))
        assert not TASK.warmup_is_right(question, BASE.written(puzzle, good))
        assert not TASK.warmup_is_right(question, f" {puzzle.answer}")
        assert not TASK.warmup_is_right(question, "")


@pytest.mark.slow
def test_the_tokenizer_is_what_its_script_makes(tmp_path):
    run_script(RECIPE / "make_tokenizer.py", "--folder", str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (RECIPE / "base" / name).read_bytes(), name


def test_sizes():
    check_base(RECIPE / "base")
    assert LARGEST_BASE <= 3 * 2**20


def test_walks_lead_from_an_option_up_to_a_person():
    rng = random.Random(0)
    for puzzle in PUZZLES:
        walks = walks_of(puzzle, rng)
        for walk in walks:
            assert puzzle.symbols[walk[-1]] in DATA.NAMES
            assert set(itertools.pairwise(walk[::-1])) <= set(puzzle.graph.edges)
        ends = [(walk[0], walk[-1]) for walk in walks]
        assert BASE.followed(puzzle, pair(puzzle, walks)) == ends
        assert BASE.followed(puzzle, pair(puzzle, walks[::-1])) == ends[::-1]
        assert BASE.followed(puzzle, pair(puzzle, [walks[0], [walks[1][0], *walks[1]]])) is None
        assert BASE.followed(puzzle, "") == []


def test_pretraining_recalls_only_what_is_no_option():
    """The options' walks stand in the first text, both of them; no later text names what they show."""
    rng = random.Random(0)
    for puzzle in PUZZLES[:50]:
        options = {puzzle.graph.target, puzzle.graph.neg_target}
        first, *others = BASE.pair_texts(puzzle, rng)
        assert {start for start, _ in BASE.followed(puzzle, first)} == options
        shown = {text.split()[-1].rstrip(".") for text in others}
        assert not shown & {puzzle.symbols[option] for option in options}


def test_no_walk_from_the_wrong_option_ends_with_the_asked_person():
    rng = random.Random(0)
    ends = [(p.graph, BASE.walk_back(p.graph, p.graph.neg_target, rng)[-1]) for p in PUZZLES for _ in range(5)]
    assert all(end != graph.root for graph, end in ends)
    right = [BASE.walk_back(p.graph, p.graph.target, rng)[-1] == p.graph.root for p in PUZZLES for _ in range(5)]
    assert sum(right) / len(right) > 0.85


def test_the_look_up_is_there_before_any_training():
    """The first layer looks one token back; the second, from a word of a walk, at the facts that end in this word."""
    torch.manual_seed(0)
    tokenizer = TOKENIZER.make_tokenizer()
    model = BASE.make_model(tokenizer)
    model.config._attn_implementation = "eager"
    found = []
    for puzzle in PUZZLES[:20]:
        (question,) = TASK.read([puzzle.row()])
        word = f" {puzzle.symbols[puzzle.graph.target]}."
        ids = torch.tensor([tokenizer.encode(question.prompt + word)])
        first, second, _ = model(ids, output_attentions=True).attentions
        assert first[0, 0].diagonal(-1)[10:].mean() > 0.8
        there = ids[0, :-1] == ids[0, -1]
        assert there.any()
        found.append(second[0, :2, -1, :-1][:, there].sum(-1))
    assert torch.stack(found).mean() > 0.4


@pytest.mark.slow
def test_the_base_walks_in_4_bit_and_cannot_answer():
    """Asserts in the script, in float32 and NF4."""
    run_script(RECIPE / "make_base.py", "--check")
