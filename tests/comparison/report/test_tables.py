"""The tables of a report, worked out by hand from a comparison made by hand."""

from __future__ import annotations

from dataclasses import replace

from summaries import ANCHORED, FAILED, SFT, USUAL, comparison

from warmup_peft.comparison.report.tables import (
    differences_table,
    references,
    results_table,
    warmups_table,
)
from warmup_peft.comparison.results import ArmSummary, Comparison, Estimate


def row_of(shown: Comparison, arm: str) -> list[str]:
    rows = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in results_table(shown).rows]
    return next(row for row in rows if row[0].split("\n")[0] == arm)


def test_results():
    assert results_table(USUAL).header == [
        *("arm", "accuracy", "difference to sft, points", "adjusted p", "Macro F1", "perplexity", "training time, s"),
        *("examples a second", "peak memory", "seconds per answer", "examples to reach 0.750"),
    ]
    assert row_of(USUAL, "sft") == [
        *("sft\n2 seeds", "0.754 ± 0.109", "–", "–", "–", "2.50 ± 0.25", "75.2 ± 1.5"),
        *("171", "1.50 GiB", "0.0123", "12,800 (1 of 2 seeds)"),
    ]
    assert row_of(USUAL, "anchored") == [
        *("anchored\n2 seeds", "0.877 ± 0.001", "+12.3 [+7.3, +17.3]\nsignificant: better"),
        *("p < 0.001\nMcNemar p = 0.03\nover seeds p = 0.24", "0.866 ± 0.002", "infinite", "75.2 ± 1.5"),
        *("171", "1.50 GiB", "0.0123", "3,200 to 4,800"),
    ]


def test_every_row_has_a_cell_for_every_title():
    for shown in (USUAL, comparison(), comparison(FAILED)):
        for table in (results_table(shown), differences_table(shown), warmups_table(shown)):
            assert {len(row) for row in table.rows} <= {len(table.header)}


def test_failures_stand_below_the_name_with_their_seeds():
    assert row_of(USUAL, "paper")[0] == "paper\nseeds 0 and 1 failed: out of | memory\nseed 2 failed: <b>killed</b>"
    assert set(row_of(USUAL, "paper")[1:]) == {"–"}
    arm = replace(SFT, failures={2: "The loss is not finite."})
    name, score, *_ = row_of(comparison(arm), "sft")
    assert name == "sft\n2 seeds\nseed 2 failed: The loss is not finite."
    assert score == "0.754 ± 0.109"
    assert row_of(comparison(ArmSummary("paper", "")), "paper")[0] == "paper\nnot run yet"


def test_one_seed_has_no_standard_error():
    arm = replace(SFT, seeds=[0], metrics={"accuracy": Estimate(0.75)}, train_seconds=Estimate(75.0))
    assert row_of(comparison(arm), "sft")[1] == "0.750"
    assert not any("±" in cell for cell in row_of(comparison(arm), "sft"))


def test_metrics_keep_the_scale_they_are_published_in():
    arm = replace(SFT, metrics={"bleu": Estimate(0.3421, 0.01), "chrf++": Estimate(0.6, 0.01)})
    shown = comparison(arm, metric="bleu", goal=0.4)
    assert results_table(shown).header[1:3] == ["BLEU", "chrF++"]
    assert results_table(shown).header[-1] == "examples to reach 40.0"
    assert row_of(shown, "sft")[1:3] == ["34.2 ± 1.0", "60.0 ± 1.0"]


def test_differences():
    (row,) = differences_table(USUAL).rows
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] == [
        *("anchored", "sft", "+12.3 [+7.3, +17.3]\nsignificant: better", "p < 0.001", "p < 0.001"),
        *("p = 0.015", "p = 0.03", "p = 0.24", "3.1"),
    ]
    assert references(USUAL) == ["sft"]
    alone = comparison(replace(ANCHORED, versus_sft=None))
    assert references(alone) == differences_table(alone).rows == []
    assert not any("difference" in title for title in results_table(alone).header)


def test_warmups_are_those_that_were_measured():
    table = warmups_table(USUAL)
    assert table.header == ["arm", "gain over no warmup, nats", "overlap with the reference"]
    assert [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in table.rows] == [
        ["anchored", "+1.96 ± 0.02", "0.29 ± 0.01"]
    ]


def test_scores_after_other_warmups_stand_where_they_were_measured():
    after = {"score_after_others": Estimate(0.262, 0.01), "sampled_score": Estimate(0.98), "right": Estimate(0.5)}
    shown = comparison(SFT, replace(ANCHORED, warmups=after))
    assert warmups_table(shown).header == ["arm", "right greedy warmups", "accuracy after a shuffled warmup"]
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in warmups_table(shown).rows[0]] == [
        *("anchored", "0.500", "0.262 ± 0.010"),
    ]
    assert results_table(shown).header[1:3] == ["accuracy", "accuracy after a sampled warmup"]
    assert [row[2] for row in results_table(shown).rows] == ["–", "0.980"]
