"""Tasks: how a row of a data set becomes a prompt, a completion and, for multiple choice, its options.

Knows no model and no trainer.
"""

from __future__ import annotations

LETTERS = "ABCD"


def format_logiqa_prompt(row: dict) -> str:
    """The prompt that lm-evaluation-harness uses for its task `logiqa2`, up to and including `Answer:`."""
    options = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, row["options"], strict=True))
    return f"Passage: {row['text']}\nQuestion: {row['question']}\n{options}Answer:"
