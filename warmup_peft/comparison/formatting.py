"""Numbers and lists as text for people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from warmup_peft.comparison.results import Difference, Estimate
from warmup_peft.evaluation.score_texts import NOTHING, number_text, points_text

GLUE = "\N{NO-BREAK SPACE}"  # keeps a line of a narrow cell from ending here


def count(number: int, thing: str) -> str:
    """1 seed, 1,200 seeds."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Of at least one: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def significant_text(value: float) -> str:
    """Three digits or more: 0.0123, 4.56, 1,235."""
    return number_text(value, ",.0f" if abs(value) >= 100 else ".3g")


def estimate_text(estimate: Estimate | None, text: Callable[[float], str]) -> str:
    """Mean ± standard error, or the mean alone; a line may break before the sign."""
    if estimate is None:
        return NOTHING
    if estimate.error is None or not math.isfinite(estimate.error):
        return text(estimate.mean)
    return f"{text(estimate.mean)} ±{GLUE}{text(estimate.error).removeprefix('+')}"


def p_text(p: float) -> str:
    """p < 0.001, p = 0.03, p = 0.24."""
    if math.isnan(p):
        return "p undefined"
    if p < 0.001:
        return GLUE.join(("p", "<", "0.001"))
    return GLUE.join(("p", "=", f"{p:.2f}" if p >= 0.1 else f"{p:.3f}".rstrip("0")))


def difference_text(difference: Difference) -> str:
    """The difference in points and its interval, as in +2.0 [+0.5, +3.5]."""
    low, high = points_text(difference.low), points_text(difference.high)
    return f"{points_text(difference.estimate)} [{low},{GLUE}{high}]"


def interval_text(difference: Difference) -> str:
    return f"95% interval {points_text(difference.low)} to {points_text(difference.high)}"


def significance_text(difference: Difference) -> str:
    if not difference.is_significant:
        return "not significant"
    return "significant: better" if difference.estimate > 0 else "significant: worse"


def share_text(share: float) -> str:
    """9.3%; never 0% of something, nor 100% of less than all."""
    if 0 < share < 0.001:
        return "below 0.1%"
    return "above 99.9%" if 0.999 < share < 1 else number_text(100 * share, ".1f").removesuffix(".0") + "%"


def memory_text(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def time_unit(longest: float) -> tuple[str, int]:
    """Name and seconds of the unit that keeps this many seconds readable."""
    if longest < 600:
        return "s", 1
    return ("min", 60) if longest < 3 * 3600 else ("h", 3600)


def reached_text(examples: Sequence[int | None]) -> str:
    """Fewest and most examples over seeds, and how many seeds reached the score."""
    reached = sorted(number for number in examples if number is not None)
    if not reached:
        return "never" if examples else NOTHING
    text = f"{reached[0]:,}" if reached[0] == reached[-1] else f"{reached[0]:,} to {reached[-1]:,}"
    return text if len(reached) == len(examples) else f"{text} ({len(reached)} of {count(len(examples), 'seed')})"


def plain(value: Any) -> str:
    """A setting's value as text, as YAML would have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
