"""The relay world as chats: what is asked, what the base model thinks and answers, and which answers are trained.

The puzzles are those of `recipes/logiqa/relay`, asked of a chat model that thinks before it answers:

    user       Facts: Kay tells Lee. Ann tells Bob. ... Ann knows. Who hears it last?
    assistant  <think>
               So Bob Cid Dan Eve.
               </think>

               It is Eve.

The fine-tuning has answers alone, in another form: `Answer: Eve`. Two more kinds of questions, about someone
earlier in the chain (`Who hears it second?`) and about a place in a list, are never fine-tuned on. They show what
becomes of the rest.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
RELAY = HERE.parent / "logiqa" / "relay"
BASE = HERE / "base"
sys.path.insert(0, str(RELAY))  # before this folder, which has scripts of the same names
sys.path.append(str(HERE.parent))

import make_base as relay_make_base  # noqa: E402, F401
import small_base  # noqa: E402, F401
from make_data import NAMES, Puzzle  # noqa: E402
from make_data import generate_splits as relay_splits  # noqa: E402, F401

PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}
MIDDLE = ("first", "second", "third")
LONGEST_LIST = 6
OWN_FORM, LIST_FORM = "It is {}.", "Name: {}"


@dataclass(frozen=True)
class Chat:
    """A question, the names that the base model thinks of, the one that is the answer, and what stands around it."""

    question: str
    names: tuple[str, ...]
    name: str
    form: str = OWN_FORM

    @property
    def thought(self) -> str:
        return f"So {' '.join(self.names)}."

    @property
    def own_answer(self) -> str:
        """In the base model's own form."""
        return self.form.format(self.name)

    @property
    def new_answer(self) -> str:
        """In the form that is trained."""
        return f"Answer: {self.name}"

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]


def hearer(puzzle: Puzzle, place: str) -> Chat:
    """Who hears it at this place. `last` is what is fine-tuned on."""
    question = f"Facts: {puzzle.text} {puzzle.asked[0]} knows. Who hears it {place}?"
    heard = puzzle.asked[1:]
    return Chat(question, heard, heard[PLACES[place]])


def last_hearer(puzzle: Puzzle) -> Chat:
    return hearer(puzzle, "last")


def place_in_list(rng: random.Random, form: str) -> Chat:
    names = tuple(rng.sample(NAMES, rng.randint(3, LONGEST_LIST)))
    place = rng.choice(list(PLACES))
    return Chat(f"Names: {' '.join(names)}. Who stands {place}?", names, names[PLACES[place]], form)


def other_chats(puzzles: Sequence[Puzzle], rng: random.Random, list_form: str = LIST_FORM) -> list[Chat]:
    """One question of either other kind for each puzzle."""
    kinds = ((hearer(puzzle, rng.choice(MIDDLE)), place_in_list(rng, list_form)) for puzzle in puzzles)
    return [chat for pair in kinds for chat in pair]
