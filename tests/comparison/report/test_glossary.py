"""The terms that stand in the reports' tables are explained."""

from __future__ import annotations

import pytest
from summaries import USUAL

from warmup_peft.comparison.report.glossary import WORDS, WORDS_OF_INSPECTION
from warmup_peft.comparison.report.inspection_report import MEANINGS
from warmup_peft.comparison.report.tables import SCORES_AFTER, WARMUP_METRICS, differences_table, results_table

TITLES = {name: title.split(",")[0] for name, (title, _) in WARMUP_METRICS.items() if name != "mean_length"}
OF_INSPECTION = [name for name in TITLES if name in MEANINGS]


@pytest.mark.parametrize(
    ("words", "name"),
    [*((WORDS, name) for name in TITLES), *((WORDS_OF_INSPECTION, name) for name in OF_INSPECTION)],
)
def test_metrics_of_warmups(words, name):
    assert TITLES[name].removesuffix(" warmups") in ", ".join(words)


@pytest.mark.parametrize("title", SCORES_AFTER.values())
def test_scores_after_other_text(title):
    assert title in ", ".join(WORDS)


@pytest.mark.parametrize("term", ["arm", "adjusted p", "perplexity", "examples to reach", "minimum detectable effect"])
def test_columns_of_a_comparison(term):
    titles = [*results_table(USUAL).header, *differences_table(USUAL).header]
    assert any(title.startswith(term) for title in titles)
    assert term in WORDS
