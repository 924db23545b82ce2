"""Answers to score: written ones, and choices among options."""

from __future__ import annotations

import numpy as np

from warmup_peft.evaluation.metric import Answers

HYPOTHESES = ["a cat sits on the mat", "the dog barked at me", "rain", "two men walk home"]
REFERENCES = ["a cat sat on the mat", "the dog barked at us", "it rains", "two men walk home"]
WRITTEN = Answers(HYPOTHESES, REFERENCES, ["German: x\nEnglish:"] * 4)


def choices(answers: list[int], predictions: list[int], num_options: int = 4) -> Answers:
    texts = [""] * len(answers)
    return Answers(texts, texts, texts, np.array(list(zip(predictions, answers))), num_options)
