"""`Prediction`, a model's answer to one question, and what a list of them scores. Knows no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from warmup_peft.evaluation.metric import Array, RowStatistics
from warmup_peft.evaluation.metrics import score_rows, totals
from warmup_peft.evaluation.tasks import Question, Row, as_answers, is_multiple_choice


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one question.

    Attributes:
        choice: the option with the highest log-likelihood.
        option_logps: log-likelihood of each option in nats, summed over its tokens. A task without options has one
            entry, for the reference.
        target_tokens: number of tokens of the right option.
        warmup, warmup_ids: text and token ids of the warmup; empty if there is none.
        generation: the freely generated answer; None if none was asked for.
    """

    choice: int
    option_logps: tuple[float, ...]
    target_tokens: int
    warmup: str
    warmup_ids: tuple[int, ...]
    generation: str | None


@dataclass(frozen=True)
class Scores:
    """The scores of a list of predictions.

    Attributes:
        totals: score of each metric, and the perplexity.
        statistics: row statistics of each metric.
        left_out: the reason for each metric that was left out.
    """

    totals: dict[str, float]
    statistics: dict[str, RowStatistics]
    left_out: dict[str, str]


def score_predictions(
    metrics: Sequence[str], questions: Sequence[Question], predictions: Sequence[Prediction]
) -> Scores:
    texts = [answer_text(question, prediction) for question, prediction in zip(questions, predictions)]
    answers = as_answers(questions, texts, [prediction.choice for prediction in predictions])
    statistics, left_out = score_rows(metrics, answers)
    return Scores({**totals(statistics), "perplexity": perplexity(questions, predictions)}, statistics, left_out)


def answer_text(question: Question, prediction: Prediction) -> str:
    """The chosen option, or the generated answer if the question has no options."""
    is_choice = len(question.options) > 1
    return (question.options[prediction.choice] if is_choice else prediction.generation or "").strip()


def as_target(question: Question) -> Question:
    """The question with the right option alone."""
    return dataclasses.replace(question, options=(question.completion,), answer=0)


def target_logps(questions: Sequence[Question], predictions: Sequence[Prediction]) -> Array:
    """(n,) log-likelihood of each right option, in nats. Of one option only, that is the right one."""
    logps = [prediction.option_logps for prediction in predictions]
    return np.array([each[q.answer if len(each) > 1 else 0] for q, each in zip(questions, logps)])


def gains(
    questions: Sequence[Question],
    predictions: Sequence[Prediction],
    replaced: Mapping[str, Sequence[Prediction]],
) -> dict[str, Array]:
    """Each row's gain in the log-likelihood of the right option, in nats, over what `after_replaced` returned.

    So `gain_over_none` is over no warmup, and `gain_over_others` over a shuffled one.
    """
    own = target_logps(questions, predictions)
    return {f"gain_over_{name}": own - target_logps(questions, others) for name, others in replaced.items()}


def perplexity(questions: Sequence[Question], predictions: Sequence[Prediction]) -> float:
    """exp of the mean over tokens of -log P(target | prompt, warmup, separator)."""
    nll = -sum(prediction.option_logps[q.answer] for q, prediction in zip(questions, predictions))
    return float(np.exp(nll / sum(prediction.target_tokens for prediction in predictions)))


def is_an_option(generation: str, question: Question) -> bool:
    """Whether a generated answer equals one of the options, ignoring white space at its ends."""
    return generation.strip() in {option.strip() for option in question.options}


def share_of_options(questions: Sequence[Question], predictions: Sequence[Prediction]) -> float | None:
    """Share of the generated answers that equal one of the options; None if there are no options or no answers."""
    if not is_multiple_choice(questions) or predictions[0].generation is None:
        return None
    return sum(is_an_option(p.generation, q) for q, p in zip(questions, predictions)) / len(questions)


def as_rows(
    questions: Sequence[Question], predictions: Sequence[Prediction], row_scores: Iterable[float]
) -> list[Row]:
    return [
        Row(
            prompt=question.text,
            reference=question.completion.strip(),
            warmup=prediction.warmup.strip(),
            answer=answer_text(question, prediction),
            score=float(score),
            target_nll=-prediction.option_logps[question.answer],
            target_tokens=prediction.target_tokens,
        )
        for question, prediction, score in zip(questions, predictions, row_scores)
    ]
