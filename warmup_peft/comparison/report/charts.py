"""Charts, by matplotlib: for a light page and, in other colours, for a dark one, but for the picture beside a card."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from warmup_peft.comparison.formatting import significance_text
from warmup_peft.comparison.results import Difference

WIDTH = 360 / 72  # inches; about a phone's width, so that its text is as large as the page's
FONT_SIZE = 12
MOST_LABEL = 44  # characters of an arm's name
MOST_MARKERS = 8  # on a line
PANELS_IN_A_ROW = 3
PANEL_DPI = 110

# Okabe and Ito's colours, some of them darker for a white page. Colours, line styles and markers are repeated after
# different numbers of arms, so that arms with the same colour still look different.
LIGHT = ("#1b1c20", "#0072b2", "#c08000", "#009e73", "#d55e00", "#b85c93", "#2f95d0")
DARK = ("#e8e9ec", "#3d9bdb", "#e69f00", "#1fbf92", "#f0803c", "#e09cc3", "#8fd0f7")
LIGHT_PAGE, DARK_PAGE = "#ffffff", "#15171b"
DASHES = ("-", "--", "-.", (0, (1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "warmup_peft",  # the same ids every time
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.16,
    "text.parse_math": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.handlelength": 3,
}


@dataclass(frozen=True)
class Line:
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


def line_chart(title: str, x_label: str, lines: Sequence[Line], alternative: str, goal: float | None = None) -> Markup:
    """Lines with a legend below.

    Args:
        alternative: what the chart shows, in words.
        goal: height of a horizontal line with this name.
    """

    def draw() -> Figure:
        columns = 2 if max(len(clipped(line.label)) for line in lines) < 16 else 1
        figure, axes = new_figure(height=3.4 + 0.22 * math.ceil(len(lines) / columns))
        plot(axes, lines)
        if goal is not None:
            axes.axhline(goal, color="C0", linewidth=0.9, linestyle=(0, (2, 3)))
            axes.annotate(" goal", (1, goal), xycoords=("axes fraction", "data"), va="center", fontsize=11)
        axes.set(title=title, xlabel=x_label)
        figure.legend(loc="outside lower left", ncols=columns)
        return figure

    return picture(draw, alternative)


def plot(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        every = max(1, math.ceil(len(line.x) / MOST_MARKERS))
        axes.plot(line.x, line.y, label=clipped(line.label), markevery=every, **look(line.style))


def panels(charts: Mapping[str, Sequence[Line]], x_label: str) -> bytes:
    """A PNG on white that has every chart (its title -> its lines) in a panel of its own."""
    columns = min(len(charts), PANELS_IN_A_ROW)
    rows = math.ceil(len(charts) / columns)

    def draw() -> Figure:
        figure = Figure(figsize=(0.8 * WIDTH * columns, 2.9 * rows), layout="constrained")
        for number, (title, lines) in enumerate(charts.items(), 1):
            axes = figure.add_subplot(rows, columns, number)
            plot(axes, lines)
            axes.set(title=title, xlabel=x_label)
            if len(lines) > 1:
                axes.legend()
        return figure

    return drawn(draw, format="png", dpi=PANEL_DPI, facecolor=LIGHT_PAGE, metadata={"Software": None})


def difference_chart(title: str, differences: Sequence[tuple[str, Difference]], alternative: str) -> Markup:
    """Arms' differences in points with their intervals, one below the other, around a line at 0."""

    def draw() -> Figure:
        figure, axes = new_figure(height=0.42 * len(differences) + 0.9)
        axes.grid(False)
        axes.axvline(0, color="C0", linewidth=0.9, alpha=0.45)
        for place, (name, difference) in enumerate(differences):
            mean, low, high = (100 * value for value in (difference.estimate, difference.low, difference.high))
            axes.plot([low, high], [place, place], color="C0", linewidth=2.2)
            fill = "C0" if difference.is_significant else LIGHT_PAGE
            axes.plot([mean], [place], "o", color="C0", markersize=7, markerfacecolor=fill)
            for text, x, side in ((clipped(name), 0, "left"), (significance_text(difference), 1, "right")):
                behind = {"facecolor": LIGHT_PAGE, "edgecolor": "none", "pad": 1}  # hides the line at 0
                above = {"xycoords": ("axes fraction", "data"), "va": "bottom", "fontsize": 11, "bbox": behind}
                axes.annotate(text, (x, place - 0.28), ha=side, **above)
        axes.set(title=title, xlabel="points", yticks=[], ylim=(len(differences) - 0.6, -0.75))
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        return figure

    return picture(draw, alternative)


def look(style: int) -> dict:
    return {
        "color": f"C{style % len(LIGHT)}",
        "linestyle": DASHES[style % len(DASHES)],
        "marker": MARKERS[style % len(MARKERS)],
    }


def clipped(name: str) -> str:
    return name if len(name) <= MOST_LABEL else f"{name[:MOST_LABEL]} …"


def new_figure(height: float) -> tuple:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def picture(draw: Callable[[], Figure], alternative: str) -> Markup:
    """A `<picture>` that holds the drawing for a light page, and the same in the colours for a dark one."""
    light = drawn(draw, format="svg", transparent=True, metadata={"Date": None}).decode()
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="{}"><img src="{}" alt="{}"></picture>'
    ).format(data_url(darkened(light)), data_url(light), alternative)


def darkened(svg: str) -> str:
    """An SVG with the dark page's colours in place of the light one's."""
    for light, dark in zip((LIGHT_PAGE, *LIGHT), (DARK_PAGE, *DARK)):
        svg = svg.replace(light, dark)
    return svg


def data_url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def drawn(draw: Callable[[], Figure], **options: Any) -> bytes:
    """The picture's file, for a light page; `options` go to matplotlib's `savefig`."""
    text = {f"{name}color": LIGHT[0] for name in ("text.", "axes.edge", "axes.label", "xtick.", "ytick.", "grid.")}
    cycle = {"axes.prop_cycle": cycler(color=LIGHT), "axes.facecolor": LIGHT_PAGE}
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE | text | cycle):
        draw().savefig(file, **options)
    return file.getvalue()
