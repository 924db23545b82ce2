"""Scores of multiple-choice predictions, from scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.metrics import accuracy_score, f1_score


def multiple_choice_metrics(answers: Sequence[int], predictions: Sequence[int], num_options: int) -> dict[str, float]:
    """Accuracy and Macro F1 (over all options, those never predicted counting as 0), between 0 and 1, and n."""
    return {
        "accuracy": float(accuracy_score(answers, predictions)),
        "macro_f1": float(
            f1_score(answers, predictions, labels=range(num_options), average="macro", zero_division=0.0)
        ),
        "n": len(answers),
    }
