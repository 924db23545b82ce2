"""Names and scores of metrics as text, for tables, reports and cards."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

from rich.console import Console

from warmup_peft.evaluation.metrics import METRICS, OTHER_SCORES

NOTHING = "–"  # shown where a score is missing


def metric_name(name: str) -> str:
    """The title of a metric or of another score in the tables."""
    return METRICS[name].title if name in METRICS else OTHER_SCORES.get(name, name)


def score_text(name: str, value: float) -> str:
    """The score in its usual units: 0.981 for accuracy, 34.2 for BLEU, 4.56 for perplexity."""
    if name == "perplexity":
        return number_text(value, ",.2f" if value < 1000 else ",.0f")
    scale = scale_of(name)
    return number_text(scale * value, ".1f" if scale == 100 else ".3f")


def scale_of(name: str) -> int:
    return METRICS[name].scale if name in METRICS else 1


def is_right_or_wrong(name: str) -> bool:
    """Whether a row scores either 1 or 0, so that McNemar's test applies."""
    return METRICS[name].kind == "right_or_wrong"


def printed(show: Callable[[Console], None], width: int) -> str:
    """What is shown on a console of so many columns, as a text. A notebook's console would display and colour it."""
    out = io.StringIO()
    show(Console(file=out, width=width, force_jupyter=False, force_terminal=False))
    return out.getvalue().rstrip()


def number_text(value: float, form: str) -> str:
    """The number with a typographic minus sign and no negative zero, or a word if it is not finite."""
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    text = format(value, form)
    if float(text.replace(",", "")) == 0:
        text = format(0.0, form)
    return text.replace("-", "−")


def points_text(value: float) -> str:
    """A difference of two scores in hundredths, with its sign."""
    return number_text(100 * value, "+.1f")
