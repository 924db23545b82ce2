"""Scores a model on a task's rows: answers, what the target gains by the warmups, and what they share with it.

Knows no trainer and no file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.evaluation.metrics import score_rows
from warmup_peft.evaluation.predictor import (
    Prediction,
    Progress,
    answer_text,
    answers_of,
    as_predictions,
    no_progress,
    perplexity,
    score_options,
    write_answers,
    write_for,
)
from warmup_peft.evaluation.tasks import Question, Row, Task
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.method.diagnostics import num_shared_words


@dataclass
class Scorer:
    """Answers and figures of a model as it is now.

    Attributes:
        config: how it warms up; None answers directly.
        batch_size: rows at a time.
        instead: what stands in the place of the warmups that the model writes; None leaves them.
        progress: shows how far each pass over the rows is.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: WarmupConfig | None
    task: Task
    batch_size: int = 32
    instead: Callable[[list[list[int]]], list[list[int]]] | None = None
    progress: Progress = no_progress

    def warmups(self, questions: Sequence[Question]) -> list[list[int]]:
        """What stands between prompt and separator when this arm answers, as token ids."""
        if self.instead is none_at_all:
            return none_at_all(questions)
        own = write_for(self.model, self.tokenizer, questions, self.config, self.batch_size, self.progress)
        return own if self.instead is None else self.instead(own)

    def answers(
        self, questions: Sequence[Question], max_new_tokens: int | None = None
    ) -> tuple[list[Prediction], float]:
        """Predictions, and the seconds that writing a warmup and an answer took, a row."""
        limit = self.task.max_new_tokens if max_new_tokens is None else max_new_tokens
        asked = (self.model, self.tokenizer, questions, self.config)
        start = time.perf_counter()
        warmup_ids = self.warmups(questions)
        texts = write_answers(*asked, warmup_ids, limit, self.batch_size, self.progress)
        seconds = time.perf_counter() - start
        scores = score_options(*asked, warmup_ids, self.batch_size, self.progress)
        return as_predictions(self.tokenizer, questions, warmup_ids, scores, texts), seconds / len(questions)

    def point(self, questions: Sequence[Question]) -> dict[str, float | None]:
        """Figures of a `Point`; a multiple choice is made without writing an answer."""
        predictions, _ = self.answers(questions, max_new_tokens=0 if len(questions[0].options) > 1 else None)
        metric = self.task.metrics[0]
        figures = self.figures(questions, predictions)
        return {
            "score": score_rows([metric], answers_of(questions, predictions))[0][metric].total(),
            "nll_per_token": float(np.log(perplexity(questions, predictions))),
            **{name: figures.get(name) for name in ("gain_over_none", "gain_over_others", "overlap")},
        }

    def figures(self, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, float]:
        """Of the warmups that were written; empty without any."""
        if self.config is None or self.instead is none_at_all:
            return {}
        targets = [dataclasses.replace(q, options=(q.completion,), answer=0) for q in questions]
        own = np.array([p.option_logps[q.answer] for q, p in zip(questions, predictions)])
        warmup_ids = [list(prediction.warmup_ids) for prediction in predictions]

        def gain_over(instead: list[list[int]]) -> float:
            scores = score_options(
                self.model, self.tokenizer, targets, self.config, instead, self.batch_size, self.progress
            )
            return float(np.mean(own - np.array(scores)[:, 0]))

        shared = [num_shared_words(p.warmup, q.completion) for q, p in zip(questions, predictions)]
        return {
            "gain_over_none": gain_over(none_at_all(questions)),
            "gain_over_others": gain_over(anothers(warmup_ids)),
            "overlap": sum(count for count, _ in shared) / max(1, sum(count for _, count in shared)),
            "distinct": len(set(map(tuple, warmup_ids))) / len(warmup_ids),
            "mean_length": float(np.mean([len(ids) for ids in warmup_ids])),
        }


def none_at_all(rows: Sequence) -> list[list[int]]:
    """The separator stands right behind the prompt."""
    return [[] for _ in rows]


def anothers(warmup_ids: list[list[int]]) -> list[list[int]]:
    """Each row gets the warmup of the row before it."""
    return [warmup_ids[-1], *warmup_ids[:-1]]


def as_row(question: Question, prediction: Prediction, score: float) -> Row:
    return Row(
        prompt=question.prompt,
        reference=question.completion.strip(),
        warmup=prediction.warmup.strip(),
        answer=answer_text(question, prediction),
        score=float(score),
        target_nll=-prediction.option_logps[question.answer],
        target_tokens=prediction.target_tokens,
    )
