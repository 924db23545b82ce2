"""Numbers of a comparison as people read them. Knows no model, no trainer and no layout."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from warmup_peft.evaluation.results import Difference, Estimate

NOTHING = "–"
GLUE = "\N{NO-BREAK SPACE}"  # where a line of a narrow cell must not end

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


def count(number: int, thing: str) -> str:
    """1 seed, 1,200 seeds."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Of at least one: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


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


def significant_text(value: float) -> str:
    """Three digits or more: 0.0123, 4.56, 1,235."""
    return number_text(value, ",.0f" if abs(value) >= 100 else ".3g")


def estimate_text(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    """Mean ± standard error, the latter where there is one; a line may end before the sign."""
    if estimate is None:
        return NOTHING
    has_error = estimate.error is not None and math.isfinite(estimate.error)
    return text(estimate.mean) + (f" ±{GLUE}{text(estimate.error).removeprefix('+')}" if has_error else "")


def points_text(value: float) -> str:
    """A difference of scores in hundredths, with its sign."""
    return number_text(100 * value, "+.1f")


def p_text(p: float) -> str:
    """p < 0.001, p = 0.03, p = 0.24."""
    if math.isnan(p):
        return "p undefined"
    if p < 0.001:
        return GLUE.join(("p", "<", "0.001"))
    return GLUE.join(("p", "=", f"{p:.2f}" if p >= 0.1 else f"{p:.3f}".rstrip("0")))


def difference_text(difference: Difference) -> str:
    """Points, with the interval's ends."""
    low, high = points_text(difference.low), points_text(difference.high)
    return f"{points_text(difference.estimate)} [{low},{GLUE}{high}]"


def shown_text(difference: Difference) -> str:
    if not difference.is_shown:
        return "not shown"
    return "shown: better" if difference.estimate > 0 else "shown: worse"


def memory_text(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def time_unit(longest: float) -> tuple[str, int]:
    """Name and seconds of the unit that keeps this many seconds readable."""
    if longest < 600:
        return "s", 1
    return ("min", 60) if longest < 3 * 3600 else ("h", 3600)


def reached_text(examples: Sequence[int | None]) -> str:
    """From the fewest to the most examples over seeds, and how many seeds got there."""
    reached = sorted(number for number in examples if number is not None)
    if not reached:
        return "never" if examples else NOTHING
    text = f"{reached[0]:,}" if reached[0] == reached[-1] else f"{reached[0]:,} to {reached[-1]:,}"
    return text if len(reached) == len(examples) else f"{text} ({len(reached)} of {count(len(examples), 'seed')})"


def plain(value: Any) -> str:
    """A setting's value as text, as YAML would have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
