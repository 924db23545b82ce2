"""The relay world's check of warmups, against the chains that the program which makes the puzzles knows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from warmup_peft.evaluation.logiqa import logiqa
from warmup_peft.evaluation.tasks import find_task

RELAY = Path(__file__).resolve().parents[2] / "recipes" / "logiqa" / "relay"
TASK = find_task(str(RELAY / "task.py"))


@pytest.fixture(scope="module")
def puzzles():
    sys.path.insert(0, str(RELAY))
    try:
        import make_data
    finally:
        sys.path.remove(str(RELAY))
        sys.modules.pop("make_data", None)  # other worlds have one of this name
    sized = [make_data.make_puzzle(2, make_data.random.Random(i), 1 + i % 4, 1 + i % 4) for i in range(12)]
    return [(puzzle, logiqa([puzzle.row(0)])[0], make_data.chain_text(puzzle).strip()) for puzzle in sized]


def test_the_asked_chain_is_right(puzzles):
    for _, question, chain in puzzles:
        assert TASK.warmup_is_right(question, chain)
        assert TASK.warmup_is_right(question, chain.removesuffix(" ."))


def test_anything_else_is_wrong(puzzles):
    for puzzle, question, chain in puzzles:
        rest = chain.split()[1:]
        for other in ("", "Let us see .", chain + " Ann", " ".join(rest), f"{puzzle.asked[0]} {chain}", chain.lower()):
            assert not TASK.warmup_is_right(question, other)
        for other in puzzle.chains[1:]:
            assert not TASK.warmup_is_right(question, " ".join(other[1:]))


def test_the_task_is_logiqas_otherwise():
    logiqas = find_task("logiqa")
    assert (TASK.read, TASK.metrics, TASK.max_new_tokens) == (logiqas.read, logiqas.metrics, logiqas.max_new_tokens)
