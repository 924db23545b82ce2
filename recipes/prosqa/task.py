"""ProsQA: is somebody an X or a Y? The rows are those of facebookresearch/coconut: `question`, `answer`, ..."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from warmup_peft import Question, Task
from warmup_peft.evaluation.tasks import text_column

# "Every shumpus is a rempus. [...] Is Tom a lempus or scrompus?"
QUESTION = re.compile(
    r"(?P<facts>.*\.)\s+(?P<asked>Is (?P<person>\w+) a (?P<first>\w+) or (?P<second>\w+)\?)", re.DOTALL
)

FACT = re.compile(r"(\w+) is a (\w+)\.")

# "lempus. brimpus. terpus. Tom is a lempus."
WALK = re.compile(r"((?:\w+\.\s+)*)(\w+) is a (\w+)\.")


def read(rows: Iterable[dict], question: str = "question", answer: str = "answer") -> list[Question]:
    """Columns `question` and `answer`, as the official files have them; the others are not looked at.

    Raises:
        ValueError: naming the first row (counted from 1) that is no such question, or whose answer is neither option.
    """
    questions = []
    for number, row in enumerate(rows, 1):
        text, right = (text_column(row, column, number) for column in (question, answer))
        match = QUESTION.fullmatch(text)
        if match is None:
            raise ValueError(f"Row {number}: the column `{question}` does not end in `. Is A a X or Y?`. Fix the row.")
        options = [f"{match['person']} is a {match[name]}." for name in ("first", "second")]
        if right not in options:
            raise ValueError(
                f"Row {number}: the column `{answer}` says {right!r}, and the question leaves {options[0]!r} and "
                f"{options[1]!r}. Fix the row."
            )
        questions.append(
            Question(
                prompt_of(match["facts"], match["asked"]),
                tuple(f" {option}" for option in options),
                options.index(right),
            )
        )
    return questions


def prompt_of(facts: str, asked: str) -> str:
    return f"Facts: {facts}\nQuestion: {asked}\nAnswer:"


def warmup_is_right(question: Question, warmup: str) -> bool:
    """Whether one of its walks leads from the right option to the asked person, each step by a fact of the prompt.

    ` lempus. brimpus. Tom is a lempus.`: every brimpus is a lempus, and Tom is a brimpus.
    """
    person, right = FACT.fullmatch(question.completion.strip()).groups()
    facts = {(thing, subject) for subject, thing in FACT.findall(question.prompt)}
    walks = [([*words.replace(".", " ").split(), end], shown) for words, end, shown in WALK.findall(warmup)]
    return any(
        (walk[0], walk[-1], shown) == (right, person, right) and set(itertools.pairwise(walk)) <= facts
        for walk, shown in walks
    )


TASK = Task(read=read, metrics=("accuracy", "macro_f1"), max_new_tokens=8, warmup_is_right=warmup_is_right)
