"""The report of an inspection, read as GitHub would read it."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import pytest
from pages import EVIL, cells, table_lines
from summaries import difference as any_difference

from warmup_peft.comparison.inspection import CLASSES, Inspection
from warmup_peft.comparison.report import inspection_report as report
from warmup_peft.comparison.report.rendering import markdown
from warmup_peft.comparison.results import Difference
from warmup_peft.evaluation.tasks import Row

WARMUPS = dict(gain_over_none=2.408, gain_over_others=1.9, overlap=0.29, distinct=0.975, mean_length=6.96)


def pair(warmup: str, reference: str, after: float, without: float) -> tuple[Row, Row]:
    return (
        Row("Who?", reference, warmup, "Bob", after, 0.5, 2),
        Row("Who?", reference, "", "Cid", without, 0.5, 2),
    )


def difference(estimate: float = 0.381, is_significant: bool = True, **changes) -> Difference:
    defaults = dict(seeds_p=None, minimum_detectable_effect=0.114, low=estimate - 0.08, high=estimate + 0.08)
    return any_difference(estimate, is_significant, **(defaults | changes))


ROWS = [
    *[pair("Gus Bob .", "Bob", 1.0, 0.0)] * 40,
    pair("Tim Val .", "Bob", 0.0, 1.0),
    *[pair("", "Bob", 1.0, 1.0)] * 23,
]  # 64


def inspection(**changes) -> Inspection:
    defaults = dict(
        folder="runs/mine",
        source="recipes/logiqa/relay, split test",
        metric="accuracy",
        scores={"accuracy": (1.0, 0.619), "perplexity": (1.02, 2.5)},
        difference=difference(),
        warmups=WARMUPS,
        rows=ROWS,
    )
    return Inspection(**(defaults | changes))


USUAL = inspection()


def plain(text: str) -> str:
    return re.sub(r"\s", " ", text)


def read(shown: Inspection) -> str:
    return plain(report.to_markdown(shown).replace("\\", ""))


# ---- What the numbers say ----


@pytest.mark.parametrize(
    ("estimate", "is_significant", "verdict"),
    [
        (0.381, True, "This model answers better after its warmups: "),
        (-0.381, True, "This model answers better without warmups: "),
        (0.381, False, "No significant difference: "),
        (math.nan, False, "No significant difference: "),
    ],
)
def test_the_first_sentence_says_what_the_warmups_are_worth(estimate, is_significant, verdict):
    assert report.worth_of_warmups(inspection(difference=difference(estimate, is_significant))).startswith(verdict)


def test_the_first_sentence_has_its_numbers():
    assert (
        "accuracy 1.000 with its warmup, 0.619 without (+38.1 points, 95% interval +30.1 to +46.1, p < 0.001)."
    ) in plain(report.worth_of_warmups(USUAL))
    bleu = inspection(metric="bleu", scores={"bleu": (0.3421, 0.33)}, difference=difference(0.0121, p_adjusted=0.03))
    assert "BLEU 34.2 with its warmup, 33.0 without (+1.2 points" in plain(report.worth_of_warmups(bleu))


@pytest.mark.parametrize(
    ("over_none", "over_others", "words"),
    [
        (2.4, 1.9, "The content of the warmups matters"),
        (0.05, 0.05, "The content of the warmups matters"),  # the threshold itself is a gain
        (2.4, 0.049, "only give the model time to compute"),
        (2.4, -0.3, "only give the model time to compute"),
        (0.049, 0.049, "are not used"),
        (-0.049, -1.0, "are not used"),
        (0.01, 0.5, "but they are no better than none"),
        (-0.5, 0.5, "less likely than no warmup does"),
        (-0.5, 0.0, "less likely than no warmup does"),
        (math.nan, 1.0, "not measured"),
        (1.0, math.nan, "not measured"),
    ],
)
def test_the_second_sentence_reads_the_gains(over_none, over_others, words):
    assert words in report.use_of_warmups({"gain_over_none": over_none, "gain_over_others": over_others})


def test_the_sentences_stand_first():
    text = read(USUAL)
    sentences = (report.worth_of_warmups(USUAL), report.use_of_warmups(WARMUPS), report.CAVEAT)
    places = [text.index(plain(part)) for part in sentences]
    assert places == sorted(places)
    assert places[-1] < text.index("perplexity")


# ---- Tables and rows ----


def test_numbers_are_written_as_people_read_them():
    lines = [cells(line) for line in table_lines(report.to_markdown(USUAL))]
    for line in (
        ["accuracy", "1.000", "0.619"],
        ["perplexity", "1.02", "2.50"],
        ["gain over no warmup, nats", "+2.41", report.MEANINGS["gain_over_none"]],
        ["mean length, tokens", "7.0", report.MEANINGS["mean_length"]],
        ["direct", "62.5%", CLASSES["direct"]],
        ["similar", "0%", CLASSES["similar"]],
        ["neither", "Tim Val .", "Bob"],
        ["empty", "(empty)", "Bob"],
        ["Gus Bob .", "40", "62.5%", "1.000"],
        ["(empty)", "23", "35.9%", "1.000"],
        ["with its warmup", "right", "Gus Bob .", "Bob"],
        ["without", "wrong", "(empty)", "Cid"],
    ):
        assert line in lines
    for part in ("+38.1 [+30.1, +46.1]", "McNemar p = 0.03", "11.4 points", "runs/mine", USUAL.source):
        assert part in read(USUAL)
    assert "3 texts in 64 of 64 rows, 100%." in read(USUAL)


def test_changed_rows_are_counted_where_they_are_capped():
    text = read(USUAL)
    assert "Of 64 rows, 40 score better with the warmup, 1 score worse, and 23 score the same." in text
    assert f"{report.MOST_ROWS} of 40 rows, sorted by the size of the change." in text
    assert "1 of 1 row, sorted" in text
    assert text.count("Prompt: Who?") == report.MOST_ROWS + 1


def test_graded_changes_are_numbers_even_where_all_are_0_or_1():
    bleu = inspection(metric="bleu", scores={"bleu": (0.3, 0.2)})
    assert ["with its warmup", "100.0", "Gus Bob .", "Bob"] in map(cells, table_lines(report.to_markdown(bleu)))
    degrees = inspection(rows=[pair("a", "b", 0.75, 0.25)])
    assert ["without", "0.250", "(empty)", "Cid"] in map(cells, table_lines(report.to_markdown(degrees)))
    assert "**Worse with the warmup.** 0 of 0 rows" in read(degrees)


def test_long_texts_are_clipped():
    long = Row("a" * 5000, "r" * 5000, "w" * 5000, "b" * 5000, 1.0, 1.0, 1)
    assert len(report.to_markdown(inspection(rows=[(long, replace(long, score=0.0))]))) < 12_000


EMPTY = [
    inspection(rows=[], warmups={}),
    inspection(
        difference=difference(
            math.nan, False, p_adjusted=math.nan, minimum_detectable_effect=math.nan, mcnemar_p_adjusted=None
        )
    ),
    inspection(scores={"accuracy": (math.nan, math.inf)}, warmups=dict.fromkeys(WARMUPS, math.nan)),
]


@pytest.mark.parametrize("bare", EMPTY)
def test_missing_values_are_said_in_words(bare):
    text = read(bare)
    assert plain(report.worth_of_warmups(bare)) in text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)


# ---- Texts that look like markup, and files ----


def test_texts_cannot_become_markdown():
    row = Row(EVIL, EVIL, EVIL, EVIL, 1.0, 1.0, 1)
    pairs = [(row, replace(row, score=0.0)), (replace(row, score=0.0), row)]
    text = report.to_markdown(inspection(folder=EVIL, source=EVIL, rows=pairs))
    assert re.findall(r"(?<!\\)<[a-z/!]|(?<!\\)`|(?<!\\)\]\(", text) == []
    assert [line for line in text.splitlines() if line.startswith("# ")] == []
    widths = [len(cells(line)) if line.startswith("|") else None for line in text.splitlines()]
    assert all(before == after for before, after in itertools.pairwise(widths) if before and after)
    assert text.count(markdown(EVIL)) > 10


def test_the_report_is_written_and_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    path = report.write_inspection(USUAL, tmp_path)
    assert path == tmp_path / "inspect.md"
    assert path.read_text(encoding="utf-8") == report.to_markdown(USUAL)
    report.write_inspection(replace(USUAL, folder="half \ud83d"), tmp_path)
    assert "half ?" in path.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "inspect.md"]


def test_a_better_answer_after_a_warmup_is_no_proof_that_training_with_warmups_helps():
    assert "see: warmup-peft compare." in report.worth_of_warmups(inspection(difference=difference(0.381, True)))
    assert "compare" not in report.worth_of_warmups(inspection(difference=difference(-0.381, True)))
