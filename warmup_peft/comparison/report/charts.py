"""Charts of a comparison as inline SVG that takes the page's font and colours: one drawing suits light and dark.

A page that shows them defines `--page`, its background, and `--series-1` to `--series-6`; series 0 and all that is
neutral take the text's colour.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 360  # SVG units of a chart; about a phone's width, so that its text is as large as the page's
LINE_HEIGHT = 30  # SVG units of an arm in a chart of differences
FONT_SIZE = 12

# matplotlib draws with these stand-ins, and the SVG gets what is on the right. Each line style, colour and marker
# cycles with a length of its own: arms that share a colour still differ.
NEUTRAL, BACKGROUND = "#010203", "#040506"
SERIES = (NEUTRAL, *(f"#0102{number:02x}" for number in range(0x11, 0x17)))
PAINT = {
    NEUTRAL: "currentColor",
    BACKGROUND: "var(--page)",
    **{color: f"var(--series-{number})" for number, color in enumerate(SERIES[1:], 1)},
}
DASHES = ("-", "--", "-.", (0, (1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
MOST_MARKERS = 8  # on a line

STYLE = {
    "svg.fonttype": "none",
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.16,
    "text.parse_math": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
} | {f"{name}color": NEUTRAL for name in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")}


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: the arm's name.
        style: number of its colour, dashes and marker; the same arm has the same in every chart.
        x, y: finite or NaN, of one length; a NaN leaves a gap.
    """

    label: str
    style: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """A line of a chart of differences: low <= mean <= high."""

    label: str
    remark: str
    mean: float
    low: float
    high: float
    is_filled: bool


def line_chart(
    name: str, title: str, x_label: str, series: Sequence[Series], alternative: str, level: tuple[str, float] | None
) -> str:
    """SVG of lines.

    Args:
        name: unique in the page.
        alternative: what the chart shows, in words.
        level: label and height of a horizontal line, or None.
    """
    with _style(name):
        figure, axes = _figure(height=WIDTH * 0.72)
        for line in series:
            every = max(1, math.ceil(len(line.x) / MOST_MARKERS))
            axes.plot(line.x, line.y, markevery=every, **_look(line.style))
        if level is not None:
            label, height = level
            axes.axhline(height, color=NEUTRAL, linewidth=0.9, linestyle=(0, (2, 3)))
            axes.annotate(f" {label}", (1, height), xycoords=("axes fraction", "data"), va="center", fontsize=11)
        axes.set_title(title, loc="left")
        axes.set_xlabel(x_label)
        return _svg(figure, alternative)


def interval_chart(name: str, title: str, x_label: str, intervals: Sequence[Interval], alternative: str) -> str:
    """SVG of differences with their intervals, one below the other, around a line at 0."""
    with _style(name):
        figure, axes = _figure(height=LINE_HEIGHT * len(intervals) + 64)
        axes.grid(False)
        axes.axvline(0, color=NEUTRAL, linewidth=0.9, alpha=0.45)
        for place, interval in enumerate(intervals):
            _draw_interval(axes, place, interval)
        axes.set_ylim(len(intervals) - 0.6, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        axes.set_title(title, loc="left")
        axes.set_xlabel(x_label)
        return _svg(figure, alternative)


def _draw_interval(axes: Axes, place: int, interval: Interval) -> None:
    axes.plot([interval.low, interval.high], [place, place], color=NEUTRAL, linewidth=2.2)
    fill = NEUTRAL if interval.is_filled else BACKGROUND
    axes.plot([interval.mean], [place], "o", color=NEUTRAL, markersize=7, markerfacecolor=fill)
    behind = {"facecolor": BACKGROUND, "edgecolor": "none", "pad": 1}  # so that the zero line stops at the words
    for text, x, side in ((interval.label, 0, "left"), (interval.remark, 1, "right")):
        place_of_text = {"xycoords": ("axes fraction", "data"), "ha": side, "va": "bottom"}
        axes.annotate(text, (x, place - 0.28), fontsize=11, bbox=behind, **place_of_text)


def swatch(style: int) -> str:
    """A `<symbol>` with a piece of the series' line, for legends: `<use href="#swatch-0"/>`."""
    with _style(f"swatch-{style}"):
        figure = Figure(figsize=(32 / 72, 12 / 72))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 2), ylim=(-1, 1))
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **_look(style))
        svg = _svg(figure, "")
    inside = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
    return f'<symbol id="swatch-{style}" viewBox="0 0 32 12">{inside}</symbol>'


def _look(style: int) -> dict:
    return {
        "color": SERIES[style % len(SERIES)],
        "linestyle": DASHES[style % len(DASHES)],
        "marker": MARKERS[style % len(MARKERS)],
    }


def _style(name: str) -> matplotlib.rc_context:
    """The salt makes ids repeatable, and different in every chart of a page."""
    return matplotlib.rc_context(STYLE | {"svg.hashsalt": name})


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, alternative: str) -> str:
    """An `<svg>` element to put into HTML: without matplotlib's header, group names, fonts and fixed size."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text).group()
    text = re.sub(r".*?<svg[^>]*>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text).replace("xlink:href", "href")
    text = re.sub(r" font-family: [^;]*;", "", text)
    for stand_in, paint in PAINT.items():
        text = text.replace(stand_in, paint)
    return f'<svg {view} role="img" aria-label="{escape(alternative)}">{text}'
