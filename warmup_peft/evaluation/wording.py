"""Names and scores of metrics as people read them. Knows no model, no trainer and no layout."""

from __future__ import annotations

import math

NOTHING = "–"

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "Macro F1",
    "bleu": "BLEU",
    "chrf++": "chrF++",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bertscore": "BERTScore",
    "comet": "COMET",
    "generations_that_are_options": "writes an option",
}
HUNDREDTHS = {"bleu", "chrf++", "rouge1", "rouge2", "rougeL"}  # published on a scale of 0 to 100
GRADED = HUNDREDTHS | {"bertscore", "comet"}  # a row's score is a degree, even where all happen to be 0 or 1


def metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def score_text(metric: str, value: float) -> str:
    """In the units the metric is published in: 0.981 for accuracy, 34.2 for BLEU, 4.56 for perplexity."""
    if metric == "perplexity":
        return number_text(value, ",.2f" if value < 1000 else ",.0f")
    return number_text(100 * value, ".1f") if metric in HUNDREDTHS else number_text(value, ".3f")


def number_text(value: float, form: str) -> str:
    """The number with a true minus sign and without a negative zero; a word where it is not finite."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    text = format(value, form)
    if float(text.replace(",", "")) == 0:
        text = format(0.0, form)
    return text.replace("-", "−")


def points_text(value: float) -> str:
    """A difference of scores in hundredths, with its sign."""
    return number_text(100 * value, "+.1f")
