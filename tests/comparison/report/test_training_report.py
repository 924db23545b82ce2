"""The page of a training, read as a browser would read it, and the picture of its curves."""

from __future__ import annotations

import io
import math

import pytest
from pages import EVIL, Page
from PIL import Image

from warmup_peft.comparison.report import training_report as report

HISTORY = [
    {"step": 10, "loss": 2.0, "warmups/gain_over_none": 0.5, "warmups/overlap": 0.2, "warmups/kl": math.nan},
    {"step": 20, "loss": 1.0, "warmups/gain_over_none": 1.5, "warmups/gain_over_others": 1.25, "warmups/kl": 0.25},
    {"step": 20, "eval_loss": 1.125, "eval_exact_match": 0.75, "eval_warmups/overlap": 0.3, "eval_runtime": 3.0},
    {"step": 30, "train_runtime": 7.0},
]


def row(warmup: str, R: float, prompt: str = "Who?") -> dict:
    return {"prompt": prompt, "warmup": warmup, "R": R, "w": 0.5, "A": -0.25, "target": "Bob"}


SAMPLES = [
    (10, [row("first", -3.0)]),
    (20, [row("worse", -2.0), row("Gus Bob .", -1.0), row("worse", -2.0), row(EVIL, math.nan, EVIL)]),
]


def training(**changes) -> report.TrainingRun:
    settings = {"objective": "jensen", "warmup_pool": None, "warmup_separator": EVIL}
    defaults = dict(name=EVIL, step=20, max_steps=30, history=HISTORY, samples=SAMPLES, settings=settings)
    return report.TrainingRun(**(defaults | changes))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report.to_html(training()))


def test_every_curve_has_what_was_logged_and_nothing_else():
    found = {
        title: [(line.label, line.x, line.y) for line in lines] for title, lines in report.curves(HISTORY).items()
    }
    assert found == {
        "Loss": [("loss", [10, 20], [2.0, 1.0]), ("loss, on validation rows", [20], [1.125])],
        "Gain of the target, nats": [
            ("gain over no warmup", [10, 20], [0.5, 1.5]),
            ("gain over a shuffled warmup", [20], [1.25]),
        ],
        "Overlap with the target": [("overlap", [10], [0.2]), ("overlap, on validation rows", [20], [0.3])],
        "KL to the base, nats per warmup": [("KL", [20], [0.25])],
        "exact match": [("exact match, on validation rows", [20], [0.75])],
    }


def test_the_page_says_everything_in_words_too(page):
    assert "20 of 30 steps. Load this page again" in page.text
    assert "loss 1 · loss, on validation rows 1.12 ·" in page.text
    assert "30 steps, all done." in Page(report.to_html(training(step=30, history=[]))).text
    pictures = [image["alt"] for image in page.all("img")]
    assert len(pictures) == 5
    assert "Loss. loss: 2 at step 10, 1 at step 20; loss, on validation rows: 1.12 at step 20, 1.12" in pictures[0]
    for part in ("objective jensen", "warmup_pool null", "The curves in numbers", "1.125"):
        assert part in page.text


def test_the_last_warmups_come_first_and_the_best_of_a_prompt(page):
    first, second = report.samples(training())
    assert (first[0], second[0]) == (20, 10)
    (prompt, target, warmups), other = first[1]
    assert (prompt, target, other[0]) == ("Who?", "Bob", EVIL)
    assert warmups.rows == [["Gus Bob .", "1", "−1.00", "0.50", "−0.25"], ["worse", "2", "−2.00", "0.50", "−0.25"]]
    assert other[2].rows[0][2] == "undefined"
    steps = [text for text in page.texts if text.startswith("Step ")]
    assert steps == ["Step 20", "Step 10"]
    assert [tag for tag in page.all("details") if "open" in tag] == [{"class": "row", "open": None}]


def test_nothing_is_loaded_and_no_text_becomes_markup(page):
    html = report.to_html(training())
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert all(url["srcset"].startswith("data:") for url in page.all("source"))
    assert " ".join(EVIL.split()) in page.text
    assert "prefers-color-scheme: dark" in html


def test_a_training_that_logged_nothing_yet():
    empty = training(history=[], samples=[], step=0)
    assert "Nothing was logged yet" in Page(report.to_html(empty)).text
    assert report.to_png(empty) is None


def test_the_table_of_a_long_training_is_thinned_and_ends_with_the_last_log():
    table = report.numbers_table([{"step": step, "loss": 1 / step} for step in range(1, 1001)])
    assert len(table.rows) == report.MOST_LOGS
    assert [table.rows[i][0] for i in (0, -1)] == ["10", "1,000"]


def test_the_picture_is_on_white_with_every_curve_in_it():
    image = Image.open(io.BytesIO(report.to_png(training())))
    assert image.format == "PNG"
    assert image.getpixel((0, 0))[:3] == (255, 255, 255)
    assert image.width > image.height  # five panels in two rows
    assert len(image.getcolors(1 << 20)) > 10
