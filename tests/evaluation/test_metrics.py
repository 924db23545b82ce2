"""Scores, against numbers worked out by hand and against the libraries' own corpus scores."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score

from warmup_peft.evaluation import metrics
from warmup_peft.evaluation.metrics import METRICS, Answers, check_metrics, score_rows, source_text

HYPOTHESES = ["a cat sits on the mat", "the dog barked at me", "rain", "two men walk home"]
REFERENCES = ["a cat sat on the mat", "the dog barked at us", "it rains", "two men walk home"]
WRITTEN = Answers(HYPOTHESES, REFERENCES, ["German: x\nEnglish:"] * 4)


def choices(answers: list[int], predictions: list[int], num_options: int = 4) -> Answers:
    return Answers([], [], [], np.array(list(zip(predictions, answers))), num_options)


def test_accuracy_and_f1_by_hand():
    """Option 0: 2 of 3 predicted are right, 2 of 2 found: F1 0.8. Option 1: 1 of 1, 1 of 2: 2/3. Option 2: 0."""
    answers = choices([0, 0, 1, 1, 2], [0, 0, 1, 0, 3])
    assert METRICS["accuracy"](answers).total() == pytest.approx(3 / 5)
    assert METRICS["macro_f1"](answers).total() == pytest.approx((0.8 + 2 / 3) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_f1_equals_sklearns_options_that_never_occur_counting_as_zero(seed):
    truth, chosen = np.random.default_rng(seed).integers(0, 3, (2, 40)).tolist()
    expected = f1_score(truth, chosen, labels=range(4), average="macro", zero_division=0.0)
    assert METRICS["macro_f1"](choices(truth, chosen)).total() == pytest.approx(expected)


def test_all_right():
    answers = choices([0, 1, 2, 3], [0, 1, 2, 3])
    assert METRICS["accuracy"](answers).total() == METRICS["macro_f1"](answers).total() == 1.0


def test_bleu_and_chrf_equal_sacrebleus_corpus_scores():
    bleu, chrf = METRICS["bleu"](WRITTEN), METRICS["chrf++"](WRITTEN)
    assert bleu.total() == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score / 100)
    expected = sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score / 100
    assert chrf.total() == pytest.approx(expected)
    assert "tok:13a" in bleu.signature
    assert f"version:{sacrebleu.__version__}" in bleu.signature
    assert bleu.row_scores[3] == pytest.approx(1.0)
    assert 0 < bleu.row_scores[1] < 1


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "bleu", "chrf++", "rouge1", "rouge2", "rougeL"])
def test_the_score_of_a_sample_of_rows_is_that_of_its_summed_statistics(name):
    answers = WRITTEN if name not in metrics.OF_CHOICES else choices([0, 1, 2, 0], [0, 1, 1, 3])
    whole, sample = METRICS[name](answers), [3, 0, 0, 1]
    picked = Answers(
        *([texts[i] for i in sample] if len(texts) else [] for texts in (answers.texts, answers.references, [""] * 4)),
        None if answers.choices is None else answers.choices[sample],
        answers.num_options,
    )
    sums = np.stack([whole.values[sample].sum(0), whole.values.sum(0)])
    assert whole.score(sums) == pytest.approx([METRICS[name](picked).total(), whole.total()])


def test_rouge_by_hand():
    """5 of 6 words in common: precision and recall are 5/6."""
    rows = METRICS["rouge1"](WRITTEN)
    assert rows.row_scores[0] == pytest.approx(5 / 6)
    assert rows.total() == pytest.approx(rows.row_scores.mean())


def test_a_metric_whose_package_is_missing_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    scored, left_out = score_rows(["rougeL", "bertscore"], WRITTEN)
    assert list(scored) == ["rougeL"]
    assert left_out == {"bertscore": "the package bert-score is not installed"}


def test_a_metric_whose_weights_are_missing_is_left_out_with_the_reason(monkeypatch):
    def download_model(name):
        raise OSError("no network\nat all")

    monkeypatch.setitem(
        sys.modules, "comet", SimpleNamespace(download_model=download_model, load_from_checkpoint=None)
    )
    assert score_rows(["bleu", "comet"], WRITTEN)[1] == {"comet": "its weights could not be loaded (no network)"}


def test_comet_gets_source_answer_and_reference(monkeypatch):
    seen = []

    class Model:
        def predict(self, rows, **options):
            seen.extend(rows)
            return SimpleNamespace(scores=[0.5] * len(rows))

    fake = SimpleNamespace(download_model=lambda name: name, load_from_checkpoint=lambda path: Model())
    monkeypatch.setitem(sys.modules, "comet", fake)
    assert score_rows(["bleu", "comet"], WRITTEN)[0]["comet"].total() == 0.5
    assert seen[1] == {"src": "x", "mt": HYPOTHESES[1], "ref": REFERENCES[1]}


def test_source_text():
    assert source_text("German: Ein Hund: klein.\nEnglish:") == "Ein Hund: klein."


def test_a_missing_package_of_the_extra_is_an_error_with_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'warmup_peft\[compare\]'"):
        score_rows(["bleu"], WRITTEN)


@pytest.mark.parametrize(
    ("names", "is_choice", "words"),
    [
        (("bleau",), False, "no metric 'bleau'"),
        (("accuracy",), False, "needs options"),
        (("comet", "bleu"), False, "always there"),
        (("macro_f1",), True, "first metric"),
        ((), True, "first metric"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(names, is_choice, words):
    with pytest.raises(ValueError, match=words):
        check_metrics(names, is_choice)
