"""What a model's warmups are worth where they are sampled, and how many of them are right.

An adapter answers after its greedy warmup, but training works on samples: an objective that finds the useful warmup
moves the samples first. All numbers are means over the test rows:

    sampled_score       the task's first metric after a sampled warmup, mean over the samples
    right               share of the greedy warmups that are right, by the task's `warmup_is_right`
    right_of_samples    the same of the samples
    right_before        the same of samples before training: the base model's

Samples are independent, with the recipe's `temperature`, `top_k`, `top_p` and `min_p`, and from the run's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warmup_peft.evaluation.answering import Ids
from warmup_peft.evaluation.prediction import Prediction, score_predictions
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.tasks import Question, Task, is_multiple_choice, share_of_right_warmups
from warmup_peft.method.model import random_numbers_from
from warmup_peft.training.config import WarmupSFTConfig

SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class SampledWarmups:
    """Measures on sampled warmups.

    Attributes:
        predictor: the model in its current state; where its warmups are replaced, the samples are too.
        task: whose first metric and check of warmups count.
        rows: the test rows.
        count: number of samples for each row; 0 means none.
        args: settings of the training, for the distribution and the seed.
    """

    predictor: Predictor
    task: Task
    rows: Sequence[Question]
    count: int
    args: WarmupSFTConfig

    def before_training(self) -> dict[str, float]:
        if not (self.count and self._are_checked):
            return {}
        return {"right_before": self._share_of_right(self._sample())}

    def after_training(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Args: predictions: those of the rows, after greedy warmups."""
        found = {}
        if self._are_checked:
            found["right"] = self._share_of_right([[list(prediction.warmup_ids) for prediction in predictions]])
        if self.count and self.predictor.has_warmups:
            samples = self._sample()
            found["sampled_score"] = self._score(samples)
            if self._are_checked:
                found["right_of_samples"] = self._share_of_right(samples)
        return found

    @property
    def _are_checked(self) -> bool:
        """Whether the task knows right warmups, and the model's own ones precede its answers."""
        is_own = self.predictor.has_warmups and self.predictor.instead is None
        return is_own and self.task.warmup_is_right is not None

    def _sample(self) -> list[list[Ids]]:
        sampling = {name: getattr(self.args, name) for name in SAMPLING}
        with random_numbers_from(self.args.seed, self.predictor.model.device):
            return self.predictor.sampled_warmups(self.rows, self.count, **sampling)

    def _share_of_right(self, samples: Sequence[list[Ids]]) -> float:
        decode = self.predictor.tokenizer.decode
        return float(np.mean([share_of_right_warmups(self.task, self.rows, list(map(decode, of))) for of in samples]))

    def _score(self, samples: Sequence[list[Ids]]) -> float:
        """Multiple-choice questions need no written answer."""
        limit = 0 if is_multiple_choice(self.rows) else self.task.max_new_tokens
        metric, instead = self.task.metric_names[0], self.predictor.instead
        scores = []
        for warmup_ids in samples:
            predictions = self.predictor.answer(self.rows, limit, instead(warmup_ids) if instead else warmup_ids)
            scores.append(score_predictions([metric], self.rows, predictions).totals[metric])
        return float(np.mean(scores))
