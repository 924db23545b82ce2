"""The report, read as a browser and as GitHub would read it."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
from pages import EVIL, Page, cells, table_lines
from summaries import ANCHORED, FAILED, SFT, USUAL, comparison, difference, rows

from warmup_peft.comparison.report import comparison_report as report
from warmup_peft.comparison.report.rendering import markdown
from warmup_peft.comparison.report.tables import differences_table, results_table, warmups_table
from warmup_peft.comparison.results import ArmSummary, Estimate, Point
from warmup_peft.evaluation.tasks import Row

pytestmark = pytest.mark.usefixtures("quick_pictures")


@pytest.fixture(scope="module")
def html() -> str:
    """With real pictures, since it is made before those of a test are replaced."""
    html = report.to_html(USUAL)
    assert len(html) > 100_000
    return html


# ---- What it says ----


def test_every_cell_of_every_table_is_in_the_page_and_in_the_markdown(html):
    text, lines = Page(html).text, [cells(line) for line in table_lines(report.to_markdown(USUAL))]
    for table in (results_table(USUAL), differences_table(USUAL), warmups_table(USUAL)):
        for row in (table.header, *table.rows):
            assert [markdown(cell.replace("\n", "; ")) for cell in row] in lines
            assert all(" ".join(cell.split()) in text for cell in row)


def test_everything_else_is_there_too(html):
    text = Page(html).text
    for said in (text, report.to_markdown(USUAL)):
        for part in (USUAL.verdict, USUAL.use, *USUAL.notes, SFT.description, ANCHORED.description):
            assert part in said
        assert "its model is not here" in said
        for part in ("BERTScore", "+1.96 ± 0.02", "max_steps", "true", "null", "2.13.0", USUAL.command, "4 test rows"):
            assert part in said
    assert "chrF++ nrefs:1|nc:6" in text
    assert r"| chrF++ | nrefs:1\|nc:6 |" in report.to_markdown(USUAL)
    assert "p < 0.001" in text
    first = [text.index(part) for part in (USUAL.verdict, USUAL.use, USUAL.notes[0], "Scores and costs")]
    assert first == sorted(first)


def test_unfinished_comparison_says_so_first(html):
    going = comparison(SFT, ArmSummary("paper", "As published."), runs_done=5, runs_planned=27)
    sentence = "This comparison is still running: 5 of 27 runs are done"
    for text in (Page(report.to_html(going)).text, report.to_markdown(going)):
        assert text.count(sentence) == 1
        assert text.index(sentence) < text.index("Scores" if "Scores" in text else "### Results")
        assert "not run yet" in text
    assert "still running" not in html + report.to_markdown(USUAL)


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


def test_rows_on_which_arms_disagree_come_first(html):
    """Of (1 1), (0 1), (0 0), (1 0) the second and the fourth."""
    sample = report.sample_rows(USUAL, most=2)
    assert [number for number, _ in sample] == [2, 4]
    assert [[row.score for row in answers.values()] for _, answers in sample] == [[0, 1], [1, 0]]
    assert list(sample[0][1]) == ["sft", "anchored"]
    for text in (Page(html).text, report.to_markdown(USUAL).replace("*", "")):
        assert "1 of 2 right" in text[text.index("Row 2") :]
        assert text.index("Row 2") < text.index("Row 4") < text.index("Row 1")


def test_the_page_can_filter_rows_by_their_scores(html):
    page = Page(html)
    rows = [tag["data-scores"] for tag in page.all("details") if tag.get("class") == "row"]
    assert rows == ["0 1", "1 0", "1 1", "0 0"]
    assert next(tag["data-sft"] for tag in page.all("div") if tag.get("id") == "controls") == "0"
    assert [tag["value"] for tag in page.all("option")] == ["all", "differs", "beats", "loses", "", "1"]


def test_rows_are_capped_and_counted():
    many = comparison(replace(SFT, rows=rows(*[1] * 1200)), num_test_rows=1200)
    page = Page(report.to_html(many))
    assert sum(tag.get("class") == "row" for tag in page.all("details")) == report.MOST_ROWS
    assert f"{report.MOST_ROWS} of 1,200 rows" in page.text


# ---- HTML ----


def test_page_is_well_formed_and_its_ids_are_unique(html):
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert {name for name, count in ids.items() if count > 1} == set()
    assert {attributes["href"][1:] for attributes in page.all("a")} <= set(ids)
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("title")


def test_page_loads_nothing(html):
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    loads = [attributes.get(name) for _, attributes in page.tags for name in ("src", "href", "srcset")]
    assert all(value.startswith(("#", "data:image/svg+xml;base64,")) for value in loads if value is not None)
    assert re.findall(r"url\(|@import|https?://", html) == []


def test_tables_and_charts_can_be_read_aloud(html):
    page = Page(html)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    texts = [attributes["alt"] for attributes in page.all("img")]
    assert len(texts) == 6  # differences to SFT, two learning curves, two gains, overlap
    assert all(texts)
    assert any("anchored 0.750" in text for text in texts)


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
    text = report.to_markdown(evil)
    outside_code = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert re.findall(r"(?<!\\)<[a-z/!]|(?<!\\)`|(?<!\\)\]\(", outside_code) == []
    widths = []
    for line in text.splitlines():
        widths.append(len(cells(line)) if line.startswith("|") else None)
    assert all(before == after for before, after in itertools.pairwise(widths) if before and after)
    assert text.count(markdown(EVIL)) > 5


# ---- Files ----


def test_reports_are_written(tmp_path):
    paths = report.write_report(USUAL, tmp_path / "new")
    assert paths == (tmp_path / "new" / "report.html", tmp_path / "new" / "report.md")
    assert paths[0].read_text(encoding="utf-8") == report.to_html(USUAL)
    assert paths[1].read_text(encoding="utf-8") == report.to_markdown(USUAL)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.html", "report.md"]


def test_lone_surrogates_do_not_stop_the_writing(tmp_path):
    html, _ = report.write_report(replace(USUAL, verdict="half \ud83d"), tmp_path)
    assert "half ?" in html.read_text(encoding="utf-8")
