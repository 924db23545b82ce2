"""The report of an inspection, read as a browser and as GitHub would read it."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
from pages import EVIL, Page, cells, table_lines

from warmup_peft.comparison.phrases import CLASSES, CommonWarmup, Inspection
from warmup_peft.comparison.report import inspection as report
from warmup_peft.comparison.results import Difference
from warmup_peft.evaluation.tasks import Row

FIGURES = dict(gain_over_none=2.408, gain_over_others=1.9, overlap=0.29, distinct=0.975, mean_length=6.96)


def row(score: float, warmup: str = "", answer: str = "Ann", prompt: str = "Who?") -> Row:
    return Row(prompt, "Bob", warmup, answer, score, 0.5, 2)


def pairs(number: int, after: float = 1.0, without: float = 0.0) -> list[tuple[Row, Row]]:
    return [
        (row(after, f"Gus > {i}", "Bob", f"Question {i}?"), row(without, "", "Cid", f"Question {i}?"))
        for i in range(number)
    ]


def difference(estimate: float = 0.381, is_shown: bool = True, **changes) -> Difference:
    defaults = dict(
        reference="without",
        estimate=estimate,
        low=estimate - 0.08,
        high=estimate + 0.08,
        p=0.0002,
        p_adjusted=0.0002,
        mcnemar_p=0.015,
        mcnemar_p_adjusted=0.015,
        seeds_p=None,
        visible=0.114,
        is_shown=is_shown,
    )
    return Difference(**(defaults | changes))


def inspection(**changes) -> Inspection:
    defaults = dict(
        folder="runs/mine",
        metric="accuracy",
        source="recipes/logiqa/tiny/data, split test",
        metrics={"accuracy": (1.0, 0.619), "perplexity": (1.02, 2.5)},
        difference=difference(),
        figures=FIGURES,
        classes={"direct": 0.625, "similar": 0.0, "neither": 0.3125, "empty": 0.0625},
        examples={
            "direct": [row(1, "Gus > Bob .")],
            "similar": [],
            "neither": [row(0, "Tim > Val .")],
            "empty": [row(0)],
        },
        common=[CommonWarmup("Gus > Cid .", 8, 0.75), CommonWarmup("", 4, 0.5)],
        better=pairs(7),
        worse=pairs(1, 0.0, 1.0),
        num_better=41,
        num_worse=1,
        num_rows=1600,
    )
    return Inspection(**(defaults | changes))


USUAL = inspection()


def plain(text: str) -> str:
    return re.sub(r"\s", " ", text)


def both(shown: Inspection) -> tuple[str, str]:
    """What a reader sees, of the page and of the Markdown."""
    return Page(report.to_html(shown)).text, plain(report.to_markdown(shown).replace("\\", ""))


# ---- What the numbers say ----


@pytest.mark.parametrize(
    ("estimate", "is_shown", "verdict"),
    [
        (0.381, True, "This model needs its warmup: "),
        (-0.381, True, "This model answers better without its warmup: "),
        (0.381, False, "No difference can be seen: "),
        (-0.381, False, "No difference can be seen: "),
        (math.nan, False, "No difference can be seen: "),
    ],
)
def test_the_first_sentence_says_what_the_warmups_are_worth(estimate, is_shown, verdict):
    shown = inspection(difference=difference(estimate, is_shown))
    assert report.worth(shown).startswith(verdict)
    for text in both(shown):
        assert text.count(verdict) == text.count(plain(report.worth(shown)))  # in the page also as its title
        assert text.index(verdict) < text.index("perplexity")


def test_the_first_sentence_has_its_numbers():
    assert plain(report.worth(USUAL)) == (
        "This model needs its warmup: accuracy 1.000 with its warmup, 0.619 without (+38.1 points, "
        "95% interval +30.1 to +46.1, p < 0.001)."
    )
    bleu = inspection(metric="bleu", metrics={"bleu": (0.3421, 0.33)}, difference=difference(0.0121, p_adjusted=0.03))
    assert "BLEU 34.2 with its warmup, 33.0 without (+1.2 points" in plain(report.worth(bleu))
    assert plain(report.worth(bleu)).endswith("p = 0.03).")


@pytest.mark.parametrize(
    ("over_none", "over_others", "words"),
    [
        (2.4, 1.9, "What is written matters"),
        (0.05, 0.05, "What is written matters"),  # the threshold itself is a gain
        (2.4, 0.049, "a pause to compute in"),
        (2.4, -0.3, "a pause to compute in"),
        (0.049, 0.049, "is not used"),
        (-0.049, -1.0, "is not used"),
        (0.01, 0.5, "is read, but is worth no more than none"),
        (-0.5, 0.5, "less likely than none would"),
        (-0.5, 0.0, "less likely than none would"),
        (math.nan, 1.0, "not measured"),
        (1.0, math.nan, "not measured"),
    ],
)
def test_the_second_sentence_reads_the_gains(over_none, over_others, words):
    gains = dict(gain_over_none=over_none, gain_over_others=over_others)
    assert words in report.reading(inspection(figures=FIGURES | gains))


def test_the_two_sentences_stand_first():
    for text in both(USUAL):
        places = [text.index(plain(part)) for part in (report.worth(USUAL), report.reading(USUAL), report.CAVEAT)]
        assert places == sorted(places)
        assert places[-1] < text.index("perplexity")


# ---- Tables and rows ----


def test_numbers_are_written_as_people_read_them():
    lines = [cells(line) for line in table_lines(report.to_markdown(USUAL))]
    for line in (
        ["accuracy", "1.000", "0.619"],
        ["perplexity", "1.02", "2.50"],
        ["gain over none, nats", "+2.41", report.FIGURES["gain_over_none"]],
        ["length, tokens", "7.0", report.FIGURES["mean_length"]],
        ["direct", "62.5%", CLASSES["direct"]],
        ["similar", "0%", CLASSES["similar"]],
        ["neither", "Tim > Val .", "Bob"],
        ["empty", "(empty)", "Bob"],
        ["Gus > Cid .", "8", "0.5%", "0.750"],
        ["(empty)", "4", "0.2%", "0.500"],
        ["with its warmup", "right", "Gus > 0", "Bob"],
        ["without", "wrong", "(empty)", "Cid"],
    ):
        assert line in lines
    for text in both(USUAL):
        for part in ("+38.1 [+30.1, +46.1]", "McNemar p = 0.015", "11.4 points", "runs/mine", USUAL.source):
            assert part in text
        assert "2 texts in 12 of 1,600 rows, 0.8%." in text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1e-5, "below 0.1%"), (0.125, "12.5%"), (0.5, "50%"), (0.9999, "above 99.9%"), (1, "100%")],
)
def test_shares_never_round_to_none_or_all(share, text):
    assert report.share_text(share) == text


def test_every_class_has_a_bar_that_can_be_read_aloud():
    html = report.to_html(USUAL)
    page = Page(html)
    names = [f"{name}: {report.share_text(USUAL.classes[name])} of the warmups" for name in CLASSES]
    assert [attributes["aria-label"] for attributes in page.all("svg")] == names
    assert all(attributes["role"] == "img" for attributes in page.all("svg"))
    assert [float(attributes["width"]) for attributes in page.all("rect")] == [62.5, 0, 31.25, 6.25]


def test_changed_rows_are_counted_where_they_are_capped():
    page, markdown = both(USUAL)
    assert Counter(tag.get("class") for tag in Page(report.to_html(USUAL)).all("details")) == {"row": 8}
    for text, number in ((page, 7), (markdown, report.MOST_ROWS_IN_MARKDOWN)):
        assert "Of 1,600 rows the warmup changed 41 for the better and 1 for the worse; 1,558 score the same." in text
        assert f"{number} of 41 rows shown." in text
        assert "1 of 1 row shown." in text


def test_graded_changes_are_numbers_even_where_all_are_0_or_1():
    bleu = inspection(metric="bleu", metrics={"bleu": (0.3, 0.2)})
    assert [answer.mark for answer in report.changes(bleu)[0].rows[0].answers] == ["100.0", "0.0"]
    degrees = inspection(better=pairs(1, 0.75, 0.25), worse=[])
    better, worse = report.changes(degrees)
    assert better.rows[0].summary == "0.250 → 0.750"
    assert "those first that changed most" in better.shown
    assert (worse.rows, worse.title) == ((), "For the worse")


def test_long_texts_are_clipped():
    long = Row("a" * 5000 + "END", "r" * 5000, "w" * 5000, "START" + "b" * 5000, 1.0, 1.0, 1)
    shown = inspection(
        better=[(long, replace(long, score=0.0))],
        examples={"direct": [long]},
        common=[CommonWarmup("w" * 5000, 1, 1.0)],
    )
    changed = report.changes(shown)[0].rows[0]
    assert changed.prompt.endswith("END")
    assert changed.answers[0].answer.startswith("START")
    assert len(report.to_html(shown)) < len(report.to_html(USUAL)) + 10_000


EMPTY = [
    inspection(better=[], worse=[], num_better=0, num_worse=0, common=[], figures={}, examples={}, classes={}),
    inspection(difference=difference(math.nan, False, p_adjusted=math.nan, visible=math.nan, mcnemar_p_adjusted=None)),
    inspection(metrics={"accuracy": (math.nan, math.inf)}, figures=dict.fromkeys(FIGURES, math.nan)),
]


@pytest.mark.parametrize("bare", EMPTY)
def test_missing_values_leave_a_whole_page(bare):
    assert Page(report.to_html(bare)).open == []
    for text in both(bare):
        assert plain(report.worth(bare)) in text
        assert not re.search(r"\bnan\b|\binf\b|\bNone\b(?!\.)", text)


# ---- HTML ----


def test_page_is_well_formed_and_loads_nothing():
    html = report.to_html(USUAL)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.open == []
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) == {1}
    assert {attributes["href"][1:] for attributes in page.all("a")} <= set(ids)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "script"}
    assert re.findall(r"url\(|@import|https?://", html) == []
    policy = next(tag["content"] for tag in page.all("meta") if "http-equiv" in tag)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))


# ---- Texts that look like markup ----


def evil() -> Inspection:
    row = Row(EVIL, EVIL, EVIL, EVIL, 1.0, 1.0, 1)
    return inspection(
        folder=EVIL,
        source=EVIL,
        examples={name: [row] for name in CLASSES},
        common=[CommonWarmup(EVIL, 1, 1.0)],
        better=[(row, replace(row, score=0.0))],
        worse=[(replace(row, score=0.0), row)],
    )


def test_texts_cannot_become_html():
    page = Page(report.to_html(evil()))
    assert page.open == []
    assert page.all("script") == []
    assert page.text.count("<script>alert(1)</script>") > 20


def test_texts_cannot_become_markdown():
    markdown = report.to_markdown(evil())
    assert re.findall(r"(?<!\\)<[a-z/!]|(?<!\\)`|(?<!\\)\]\(", markdown) == []
    assert [line for line in markdown.splitlines() if line.startswith("# ")] == []
    widths = [len(cells(line)) if line.startswith("|") else None for line in markdown.splitlines()]
    assert all(before == after for before, after in itertools.pairwise(widths) if before and after)
    assert r"\<script>alert(1)\</script> \| \`x\` \*\*y\*\* [z\](u) # \&amp;" in markdown


# ---- Files ----


def test_reports_are_written(tmp_path):
    paths = report.write_inspection(USUAL, tmp_path / "new")
    assert paths == (tmp_path / "new" / "inspect.html", tmp_path / "new" / "inspect.md")
    assert paths[0].read_text(encoding="utf-8") == report.to_html(USUAL)
    assert paths[1].read_text(encoding="utf-8") == report.to_markdown(USUAL)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["inspect.html", "inspect.md"]


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    report.write_inspection(USUAL, tmp_path)
    report.write_inspection(replace(USUAL, folder="half \ud83d"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "inspect.html", "inspect.md"]
    assert "half ?" in (tmp_path / "inspect.md").read_text(encoding="utf-8")
