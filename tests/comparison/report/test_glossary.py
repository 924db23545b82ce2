"""The terms that stand in the reports' tables are explained."""

from __future__ import annotations

import pytest
from summaries import USUAL

from warmup_peft.comparison.report.glossary import WORDS, WORDS_OF_INSPECTION
from warmup_peft.comparison.report.tables import WARMUP_METRICS, differences_table, results_table

GAINS_AND_OVERLAP = [title.split(",")[0] for name, (title, _) in WARMUP_METRICS.items() if name != "mean_length"]


@pytest.mark.parametrize("words", [WORDS, WORDS_OF_INSPECTION])
@pytest.mark.parametrize("term", GAINS_AND_OVERLAP)
def test_metrics_of_warmups(words, term):
    assert term.removesuffix(" warmups") in ", ".join(words)


@pytest.mark.parametrize("term", ["arm", "adjusted p", "perplexity", "examples to reach", "minimum detectable effect"])
def test_columns_of_a_comparison(term):
    titles = [*results_table(USUAL).header, *differences_table(USUAL).header]
    assert any(title.startswith(term) for title in titles)
    assert term in WORDS
