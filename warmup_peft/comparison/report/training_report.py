"""The page of a training: its curves and warmups over steps, in one HTML file that needs nothing else.

Knows no model and no trainer. `TrainingPage` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from warmup_peft.comparison.formatting import plain
from warmup_peft.comparison.report.charts import Line, line_chart, panels
from warmup_peft.comparison.report.glossary import GAINS, WORDS
from warmup_peft.comparison.report.rendering import render
from warmup_peft.comparison.report.tables import Table
from warmup_peft.evaluation.metrics import METRICS
from warmup_peft.evaluation.score_texts import metric_name, number_text

Log = Mapping[str, Any]
EVALUATION = "eval_"
CURVES = {  # title -> names of metrics, in words
    "Loss": {"loss": "loss"},
    "Gain of the target, nats": {
        "warmups/gain_over_none": "gain over no warmup",
        "warmups/gain_over_others": "gain over a shuffled warmup",
    },
    "Length of the warmups, tokens": {"warmups/mean_length": "mean length"},
    "Overlap with the target": {"warmups/overlap": "overlap"},
    "KL to the base, nats per warmup": {"warmups/kl": "KL"},
}
MEANINGS = {
    "gain over no warmup, gain over a shuffled warmup": WORDS["gain over no warmup, gain over a shuffled warmup"],
    "overlap": WORDS["overlap with the reference"].replace("the reference", "the target"),
    "KL": "How far the distribution of the warmups is from the base model’s. It stays small where warmup_anchor is "
    "large enough.",
    "R": "Log-probability of the target after this warmup, in nats.",
    "w, A": "The weight that this warmup had in the loss, and the advantage that its own tokens were trained with.",
}
MOST_LOGS = 100  # in the table of numbers
ON_VALIDATION = ", on validation rows"


@dataclass(frozen=True)
class TrainingRun:
    """A training as far as it is.

    Attributes:
        name: of its folder.
        step, max_steps: optimizer steps done, and planned.
        history: what the trainer logged.
        samples: (step, warmups of a batch's first prompts); each warmup has prompt, warmup, R, w, A and target.
        settings: name -> value.
    """

    name: str
    step: int
    max_steps: int
    history: Sequence[Log]
    samples: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]
    settings: Mapping[str, Any]

    @property
    def is_over(self) -> bool:
        return self.step >= self.max_steps


def to_html(run: TrainingRun) -> str:
    """A whole page; it loads nothing, from the network or elsewhere."""
    shown = curves(run.history)
    return render(
        "training.html.jinja",
        run=run,
        progress=progress(run),
        last=last_values(run.history),
        curves=[chart(title, lines) for title, lines in shown.items()],
        gains=GAINS,
        samples=samples(run),
        numbers=numbers_table(run.history),
        words=MEANINGS,
        settings={name: plain(value) for name, value in run.settings.items()},
    )


def to_png(run: TrainingRun) -> bytes | None:
    """The same curves as a picture, for a model card; None where nothing was logged."""
    shown = curves(run.history)
    return panels(shown, "steps") if shown else None


def progress(run: TrainingRun) -> str:
    if run.is_over:
        return f"{run.step:,} steps, all done."
    return f"{run.step:,} of {run.max_steps:,} steps. Load this page again to see how it goes on."


# ---- Curves ----


def curves(history: Sequence[Log]) -> dict[str, list[Line]]:
    """Title -> lines over steps, of what was logged: in training, in evaluations, and scores of written answers."""
    logged = {key for log in history for key in log}
    scores = [name for name in METRICS if EVALUATION + name in logged]
    wanted = {**CURVES, **{metric_name(name): {name: metric_name(name)} for name in scores}}
    found = {}
    for title, names in wanted.items():
        keys = {**names, **{EVALUATION + name: words + ON_VALIDATION for name, words in names.items()}}
        lines = [line_of(history, key, label, style) for style, (key, label) in enumerate(keys.items())]
        if lines := [line for line in lines if line.x]:
            found[title] = lines
    return found


def line_of(history: Sequence[Log], key: str, label: str, style: int) -> Line:
    points = [(log["step"], log[key]) for log in history if is_number(log.get(key)) and "step" in log]
    return Line(label, style, [step for step, _ in points], [value for _, value in points])


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def chart(title: str, lines: Sequence[Line]) -> Markup:
    return line_chart(title, "steps", lines, f"{title}. {'; '.join(map(ends_of, lines))}.")


def ends_of(line: Line) -> str:
    return f"{line.label}: {line.y[0]:.3g} at step {line.x[0]}, {line.y[-1]:.3g} at step {line.x[-1]}"


def last_values(history: Sequence[Log]) -> list[str]:
    """The last value of every curve, as text, with its step where later ones have been logged."""
    lines = [line for lines in curves(history).values() for line in lines]
    last = max((line.x[-1] for line in lines), default=0)
    steps = ["" if line.x[-1] == last else f" at step {line.x[-1]}" for line in lines]
    return [f"{line.label} {line.y[-1]:.3g}{step}" for line, step in zip(lines, steps)]


# ---- Tables ----


def samples(run: TrainingRun) -> list[tuple[int, list[tuple[str, str, Table]]]]:
    """The last step first: step -> (end of the prompt, target, its warmups) of each prompt."""
    found = []
    for step, rows in reversed(run.samples):
        of_prompt: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in rows:
            of_prompt.setdefault((row["prompt"], row["target"]), []).append(row)
        found.append((step, [(*texts, warmups_table(of, step)) for texts, of in of_prompt.items()]))
    return found


def warmups_table(rows: Sequence[Mapping[str, Any]], step: int) -> Table:
    """A line for each distinct warmup, the one first after which the target is likeliest."""
    lines: dict[tuple[str, ...], int] = {}
    for row in sorted(rows, key=lambda row: -row["R"] if is_number(row["R"]) else math.inf):
        numbers = (number_text(row[name], form) for name, form in (("R", ".2f"), ("w", ".2f"), ("A", "+.2f")))
        line = (row["warmup"].strip() or "(empty)", *numbers)
        lines[line] = lines.get(line, 0) + 1
    cells = [[text, str(times), *numbers] for (text, *numbers), times in lines.items()]
    return Table(f"Warmups at step {step}", ["warmup", "times", "R", "w", "A"], cells)


def numbers_table(history: Sequence[Log]) -> Table:
    """What the curves show, in numbers; of a long training every so many logs."""
    shown = {line.label: line for lines in curves(history).values() for line in lines}
    steps = sorted({step for line in shown.values() for step in line.x})
    every = max(1, math.ceil(len(steps) / MOST_LOGS))
    steps = [step for place, step in enumerate(reversed(steps)) if place % every == 0][::-1]
    values = [dict(zip(line.x, line.y)) for line in shown.values()]
    rows = [[f"{step:,}", *(number_text(of[step], ".4g") if step in of else "" for of in values)] for step in steps]
    return Table("The curves in numbers", ["step", *shown], rows)
