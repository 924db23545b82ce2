"""The report, read as a browser and as GitHub would read it."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from pages import EVIL, Page, cells, table_lines

from warmup_peft.comparison.report import comparison as report
from warmup_peft.comparison.results import ArmSummary, Comparison, Difference, Estimate, Point
from warmup_peft.comparison.wording import p_text
from warmup_peft.evaluation.metrics import points_text, score_text
from warmup_peft.evaluation.tasks import Row


def difference(estimate: float = 0.1234, is_shown: bool = True, **changes) -> Difference:
    defaults = dict(
        reference="sft",
        estimate=estimate,
        low=estimate - 0.05,
        high=estimate + 0.05,
        p=0.0002,
        p_adjusted=0.0004,
        mcnemar_p=0.015,
        mcnemar_p_adjusted=0.03,
        seeds_p=0.24,
        visible=0.031,
        is_shown=is_shown,
    )
    return Difference(**(defaults | changes))


def rows(*scores: float, warmup: str = "") -> list[Row]:
    return [Row(f"Question {i}?", " Ann", warmup, f" answer {i}", score, 0.5, 2) for i, score in enumerate(scores)]


def curve(*scores: float) -> list[Point]:
    return [
        Point(100 * i, 1600 * i, 9.5 * i, score, 0.4, gain_over_none=0.3 * i, gain_over_others=0.01, overlap=0.3)
        for i, score in enumerate(scores, 1)
    ]


SFT = ArmSummary(
    "sft",
    "Plain fine-tuning.",
    seeds=[0, 1],
    metrics={"accuracy": Estimate(0.7541, 0.1092), "perplexity": Estimate(2.5, 0.25)},
    train_seconds=Estimate(75.25, 1.5),
    examples_per_second=Estimate(170.7, 3.0),
    peak_memory=Estimate(1.5 * 2**30),
    seconds_per_answer=Estimate(0.01234, 0.001),
    examples_to_reach=[12800, None],
    curve=curve(0.5, 0.75),
    rows=rows(1, 0, 0, 1),
    steps=800,
)
ANCHORED = replace(
    SFT,
    name="anchored",
    description="Warmups with an anchor.",
    metrics={
        "accuracy": Estimate(0.8775, 0.001),
        "macro_f1": Estimate(0.866, 0.002),
        "perplexity": Estimate(math.inf),
    },
    warmups={"gain_over_none": Estimate(1.961, 0.02), "overlap": Estimate(0.29, 0.01)},
    versus_sft=difference(),
    examples_to_reach=[3200, 4800],
    rows=rows(1, 1, 0, 0, warmup=" Gus > Cid"),
)
FAILED = ArmSummary(
    "paper", "As published.", failures={0: "out of | memory", 1: "out of | memory", 2: "<b>killed</b>"}
)


def comparison(*arms: ArmSummary, **changes) -> Comparison:
    defaults = dict(
        verdict="Use warmups: anchored is better.",
        notes=["Two seeds are few."],
        metric="accuracy",
        goal=0.75,
        arms=list(arms),
        num_test_rows=4,
        num_curve_rows=3,
        runs_done=6,
        runs_planned=6,
        left_out={"bertscore": "its model is not here"},
        settings={"max_steps": 800, "load_in_4bit": True, "dataset_name": None},
        versions={"torch": "2.13.0"},
        command="warmup-peft compare --seeds 0 1",
    )
    return Comparison(**(defaults | changes))


USUAL = comparison(SFT, ANCHORED, FAILED)


def main_row(markdown: str, arm: str) -> list[str]:
    return next(cells(line) for line in table_lines(markdown) if line.startswith(f"| {arm}"))


# ---- What it says ----


def test_numbers_are_written_as_people_read_them():
    """In the page and in Markdown alike, worked out by hand from the comparison above."""
    expected = {
        "sft": [
            *("0.754 ± 0.109", "–", "–", "–", "2.50 ± 0.25", "75.2 ± 1.5", "171", "1.50 GiB", "0.0123"),
            "12,800 (1 of 2 seeds)",
        ],
        "anchored": [
            *("0.877 ± 0.001", "+12.3 [+7.3, +17.3]; shown: better"),
            "p < 0.001; McNemar p = 0.03; over seeds p = 0.24",
            *("0.866 ± 0.002", "infinite", "75.2 ± 1.5", "171", "1.50 GiB", "0.0123", "3,200 to 4,800"),
        ],
    }
    markdown, text = report.to_markdown(USUAL), Page(report.to_html(USUAL)).text
    for arm, values in expected.items():
        assert main_row(markdown, arm)[1:] == values
        for value in "; ".join(values).split("; "):
            assert value in text
    header = cells(table_lines(markdown)[0])
    assert header[:6] == ["arm", "accuracy", "difference to sft, points", "adjusted p", "Macro F1", "perplexity"]
    assert header[-1] == "examples to reach 0.750"


def test_everything_else_is_there_too():
    text = Page(report.to_html(USUAL)).text
    markdown = report.to_markdown(USUAL)
    for said in (text, markdown):
        for part in (USUAL.verdict, *USUAL.notes, SFT.description, ANCHORED.description, "its model is not here"):
            assert part in said
        for part in ("BERTScore", "+1.96 ± 0.02", "max_steps", "true", "null", "2.13.0", USUAL.command, "4 test rows"):
            assert part in said
    assert "p < 0.001" in text
    assert text.index(USUAL.verdict) < text.index(USUAL.notes[0]) < text.index("Scores and costs")


def test_metrics_keep_the_scale_they_are_published_in():
    assert score_text("accuracy", 0.9812) == "0.981"
    assert score_text("bleu", 0.3421) == "34.2"
    assert score_text("rougeL", 0.5) == "50.0"
    assert score_text("comet", 0.8123) == "0.812"
    assert score_text("perplexity", 12345.678) == "12,346"
    assert score_text("perplexity", math.nan) == "undefined"
    arm = replace(SFT, metrics={"bleu": Estimate(0.3421, 0.01), "chrf++": Estimate(0.6, 0.01)})
    markdown = report.to_markdown(comparison(arm, metric="bleu", goal=0.4))
    assert cells(table_lines(markdown)[0])[1:3] == ["BLEU", "chrF++"]
    assert main_row(markdown, "sft")[1:3] == ["34.2 ± 1.0", "60.0 ± 1.0"]
    assert "examples to reach 40.0" in markdown


def test_p_values():
    assert [re.sub(r"\s", " ", p_text(p)) for p in (0.0009, 0.001, 0.03, 0.048, 0.239, 1.0)] == [
        "p < 0.001",
        "p = 0.001",
        "p = 0.03",
        "p = 0.048",
        "p = 0.24",
        "p = 1.00",
    ]


def test_signs_of_differences():
    assert points_text(0.02) == "+2.0"
    assert points_text(-0.0123) == "−1.2"
    assert points_text(-0.0001) == "+0.0"


def test_shown_is_said_in_words():
    for estimate, is_shown, words in (
        (0.1, True, "shown: better"),
        (-0.1, True, "shown: worse"),
        (0.1, False, "not shown"),
    ):
        arm = replace(ANCHORED, versus_sft=difference(estimate, is_shown))
        shown = comparison(SFT, arm)
        assert words in Page(report.to_html(shown)).text
        assert words in main_row(report.to_markdown(shown), "anchored")[2]


def test_one_seed_has_no_standard_error():
    arm = replace(SFT, seeds=[0], metrics={"accuracy": Estimate(0.75)}, train_seconds=Estimate(75.0), warmups={})
    alone = comparison(arm)
    assert "±" not in " ".join(main_row(report.to_markdown(alone), "sft"))
    page = Page(report.to_html(alone)).text
    assert "0.750" in page
    assert "0.750 ±" not in page


def test_failed_arm_is_shown_with_its_reasons():
    text = Page(report.to_html(USUAL)).text
    assert "seeds 0 and 1 failed: out of | memory; seed 2 failed: <b>killed</b>" in text
    row = main_row(report.to_markdown(USUAL), "paper")
    assert row[1] == r"seeds 0 and 1 failed: out of \| memory; seed 2 failed: \<b>killed\</b>"


def test_a_seed_that_failed_stands_beside_those_that_did_not():
    arm = replace(SFT, failures={2: "The loss is not finite."})
    text = Page(report.to_html(comparison(arm))).text
    assert "2 seeds seed 2 failed: The loss is not finite." in text
    assert "0.754 ± 0.109" in text


def test_unfinished_comparison_says_so_first():
    going = comparison(SFT, ArmSummary("paper", "As published."), runs_done=5, runs_planned=27)
    sentence = "This comparison is still going: 5 of 27 runs are done"
    for text in (Page(report.to_html(going)).text, report.to_markdown(going)):
        assert text.count(sentence) == 1
        assert text.index(sentence) < text.index("Scores" if "Scores" in text else "### Results")
        assert "not run yet" in text
    assert "still going" not in report.to_html(USUAL) + report.to_markdown(USUAL)


def test_without_sft_there_are_no_differences():
    alone = comparison(replace(ANCHORED, versus_sft=None))
    assert "difference to" not in report.to_html(alone) + report.to_markdown(alone)
    assert not {"beats", "loses"} & {option.get("value") for option in Page(report.to_html(alone)).all("option")}


EMPTY = [
    comparison(),
    comparison(FAILED, num_test_rows=0),
    comparison(
        ArmSummary("sft", "", seeds=[0]), goal=None, notes=[], settings={}, versions={}, command="", left_out={}
    ),
    comparison(replace(SFT, curve=[Point(1, 1, 1.0, math.nan, math.nan)], rows=rows(math.nan))),
    comparison(
        replace(ANCHORED, versus_sft=difference(low=math.nan), metrics={"accuracy": Estimate(math.nan, math.nan)})
    ),
]


@pytest.mark.parametrize("bare", EMPTY)
def test_missing_values_leave_a_whole_page(bare):
    assert Page(report.to_html(bare)).open == []
    assert bare.verdict in report.to_markdown(bare)


# ---- Test rows ----


def test_rows_on_which_arms_disagree_come_first():
    """Of (1 1), (0 1), (0 0), (1 0) the second and the fourth."""
    sample = report.sample_rows(USUAL, most=2)
    assert [row.number for row in sample] == [2, 4]
    assert [row.summary for row in sample] == ["1 of 2 right", "1 of 2 right"]
    assert [(row.beats, row.loses) for row in sample] == [((1,), ()), ((), (1,))]
    assert [(answer.mark, answer.warmup) for answer in sample[0].answers] == [("wrong", ""), ("right", "Gus > Cid")]


def test_graded_scores_are_numbers_even_where_all_are_0_or_1():
    bleu = comparison(replace(SFT, metrics={}), metric="bleu", goal=None)
    assert [row.answers[0].mark for row in report.sample_rows(bleu, 4)] == ["100.0", "0.0", "0.0", "100.0"]
    accuracy = comparison(replace(SFT, rows=rows(0.25)))
    assert report.sample_rows(accuracy, 1)[0].answers[0].mark == "0.250"


def test_rows_are_capped_and_counted():
    many = comparison(replace(SFT, rows=rows(*[1] * 1200)), num_test_rows=1200)
    page = Page(report.to_html(many))
    assert sum(tag.get("class") == "row" for tag in page.all("details")) == report.MOST_ROWS
    assert f"{report.MOST_ROWS} of 1,200 rows" in page.text


def test_long_prompts_keep_their_end_and_long_answers_their_start():
    row = Row("a" * 5000 + "END", "ref", "w", "START" + "b" * 5000, 1.0, 1.0, 1)
    shown = report.sample_rows(comparison(replace(SFT, rows=[row])), 1)[0]
    assert shown.prompt.endswith("END")
    assert len(shown.prompt) < 610
    assert shown.answers[0].answer.startswith("START")
    assert len(shown.answers[0].answer) < 1210


# ---- HTML ----


def test_page_is_well_formed_and_its_ids_are_unique():
    html = report.to_html(USUAL)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert {name for name, count in ids.items() if count > 1} == set()
    targets = {attributes["href"][1:] for tag in ("a", "use") for attributes in page.all(tag)}
    assert targets | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("title")


def test_page_loads_nothing():
    html = report.to_html(USUAL)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base"}
    loads = [attributes.get(name) for _, attributes in page.tags for name in ("src", "href", "xlink:href", "srcset")]
    assert all(value.startswith("#") for value in loads if value is not None)
    assert re.findall(r"url\((?!#)|@import|https?://", html) == []


def test_tables_and_charts_can_be_read_aloud():
    page = Page(report.to_html(USUAL))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    drawings = [attributes for attributes in page.all("svg") if attributes.get("aria-hidden") != "true"]
    assert len(drawings) == 6  # differences to SFT, two learning curves, two gains, overlap
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert any("anchored 0.750" in attributes["aria-label"] for attributes in drawings)


def test_charts_take_the_colours_and_the_font_of_the_page():
    drawings = re.findall(r"<svg.*?</svg>", report.to_html(USUAL), flags=re.DOTALL)
    used = " ".join(drawings)
    assert (
        re.findall(r"(?:fill|stroke): (?!none|currentColor|var\(--)[^;\"]*", re.sub(r"stroke-[a-z]+: ", "", used))
        == []
    )
    assert "font-family" not in used


def test_texts_cannot_become_html():
    names = dict(name=f"arm {EVIL}", description=EVIL, failures={3: EVIL})
    row = Row(EVIL, EVIL, EVIL, EVIL, 1.0, 1.0, 1)
    evil = comparison(
        *(SFT, replace(ANCHORED, rows=[row], **names)),
        **dict(verdict=EVIL, notes=[EVIL], command=EVIL, left_out={EVIL: EVIL}, settings={EVIL: EVIL}),
    )
    page = Page(report.to_html(evil))
    assert page.open == []
    assert len(page.all("script")) == 1
    assert page.text.count("<script>alert(1)</script>") > 10


# ---- Markdown ----


def test_markdown_tables_keep_their_columns_whatever_texts_hold():
    row = Row(EVIL, EVIL, EVIL, EVIL, 1.0, 1.0, 1)
    evil = comparison(replace(SFT, name=f"arm {EVIL}", rows=[row]), settings={EVIL: EVIL}, notes=[EVIL])
    markdown = report.to_markdown(evil)
    outside_code = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert re.findall(r"(?<!\\)<[a-z/!]|(?<!\\)`|(?<!\\)\]\(", outside_code) == []
    widths = []
    for line in markdown.splitlines():
        widths.append(len(cells(line)) if line.startswith("|") else None)
    assert all(before == after for before, after in itertools.pairwise(widths) if before and after)
    assert r"\<script>alert(1)\</script> \| \`x\` \*\*y\*\* [z\](u) # \&amp;" in markdown


def test_markdown_stays_readable():
    markdown = report.to_markdown(comparison(replace(SFT, name="more_sft"), ANCHORED))
    assert "| more_sft; 2 seeds |" in markdown
    assert "[+7.3, +17.3]" in markdown
    assert "| Gus > Cid |" in markdown


# ---- Files ----


def test_reports_are_written(tmp_path):
    paths = report.write_report(USUAL, tmp_path / "new")
    assert paths == (tmp_path / "new" / "report.html", tmp_path / "new" / "report.md")
    assert paths[0].read_text(encoding="utf-8") == report.to_html(USUAL)
    assert paths[1].read_text(encoding="utf-8") == report.to_markdown(USUAL)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.md"]


@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, step):
    report.write_report(USUAL, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def half_then_full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        return full()

    if step == "write":
        monkeypatch.setattr(Path, "write_bytes", half_then_full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        report.write_report(replace(USUAL, verdict="Another."), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_lone_surrogates_do_not_stop_the_writing(tmp_path):
    html, _ = report.write_report(replace(USUAL, verdict="half \ud83d"), tmp_path)
    assert "half ?" in html.read_text(encoding="utf-8")


def test_output_is_the_same_every_time():
    assert report.to_html(USUAL) == report.to_html(USUAL)
    assert report.to_markdown(USUAL) == report.to_markdown(USUAL)


def test_a_sweep_of_twenty_arms_gets_twenty_looks():
    arms = [replace(ANCHORED, name=f"anchored num_warmups={k}") for k in range(20)]
    html = report.to_html(comparison(SFT, *arms))
    symbols = re.findall(r"<symbol.*?</symbol>", html, flags=re.DOTALL)
    assert len({re.sub(r'"[^"]*[0-9a-f]{10}\)?"|swatch-\d+', "", symbol) for symbol in symbols}) == 21
