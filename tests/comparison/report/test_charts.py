"""Charts: both drawings are there, arms can be told apart, and nothing depends on the moment."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import pytest
from pages import EVIL, Page
from summaries import difference

from warmup_peft.comparison.report.charts import DARK, LIGHT, LIGHT_PAGE, Line, difference_chart, line_chart, look

LINES = [
    Line("sft", 0, [0, 1], [0.5, float("nan")]),
    Line(EVIL, 1, [0, 1], [0.5, 0.75]),
    Line("one point", 2, [0], [float("nan")]),
]


def drawings(picture: str) -> list[str]:
    """The light one, then the dark one, as SVG that can be parsed."""
    page = Page(picture)
    urls = [page.all("img")[0]["src"], page.all("source")[0]["srcset"]]
    texts = [base64.b64decode(url.removeprefix("data:image/svg+xml;base64,")).decode() for url in urls]
    assert all(ElementTree.fromstring(text).tag.endswith("svg") for text in texts)
    return texts


@pytest.mark.parametrize(
    "draw",
    [
        lambda: line_chart("accuracy", "steps", LINES, EVIL, 0.8),
        lambda: difference_chart("Difference to sft", [("a", difference()), (EVIL, difference(-0.1, False))], EVIL),
    ],
    ids=["lines", "differences"],
)
def test_a_picture_holds_a_drawing_for_light_and_one_for_dark_pages(draw):
    picture = draw()
    light, dark = drawings(picture)
    assert LIGHT[0] in light
    assert LIGHT[0] not in dark
    assert DARK[0] in dark
    assert LIGHT_PAGE not in dark
    assert Page(picture).all("img")[0]["alt"] == EVIL
    for text in (light, dark):
        assert "&lt;script&gt;alert(1)" in text
        assert "<script" not in text


def test_a_dark_drawing_has_every_line_in_a_colour_of_its_own():
    light, dark = drawings(line_chart("", "steps", [Line(str(i), i, [0, 1], [0, i]) for i in range(len(LIGHT))], ""))
    assert all(color in light and color not in dark for color in LIGHT)
    assert [dark.count(color) for color in DARK] == [light.count(color) for color in LIGHT]


def test_drawings_have_the_texts_and_every_line():
    light, _ = drawings(line_chart("accuracy", "steps", LINES[:1] * 3, "", goal=0.8))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", light)
    assert texts.count("sft") == 3
    assert {"accuracy", "steps", "goal"} <= {text.strip() for text in texts}


def test_a_significant_difference_has_a_filled_dot():
    def fills(is_significant: bool) -> int:
        light, _ = drawings(difference_chart("", [("a", difference(0.1, is_significant))], ""))
        return len(re.findall(rf"fill: {LIGHT[0]}; stroke", light))

    assert fills(True) == fills(False) + 1


def test_long_names_are_clipped():
    light, _ = drawings(line_chart("", "", [Line("a" * 100, 0, [0], [0])], ""))
    assert "a" * 44 + " …" in light
    assert "a" * 45 not in light


def test_output_is_the_same_every_time():
    assert line_chart("accuracy", "steps", LINES, "") == line_chart("accuracy", "steps", LINES, "")


def test_a_sweep_of_twenty_arms_gets_twenty_looks():
    assert len({str(look(style)) for style in range(21)}) == 21
