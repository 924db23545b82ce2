"""Scores, against numbers worked out by hand and against the libraries' own corpus scores."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
from answers import HYPOTHESES, REFERENCES, WRITTEN, choices
from sklearn.metrics import f1_score
from trl.rewards import accuracy_reward

from warmup_peft.evaluation.built_in_metrics import source_text
from warmup_peft.evaluation.metric import Answers
from warmup_peft.evaluation.metrics import METRICS, score_rows


def test_accuracy_and_f1_by_hand():
    """Option 0: 2 of 3 predicted are right, 2 of 2 found: F1 0.8. Option 1: 1 of 1, 1 of 2: 2/3. Option 2: 0."""
    answers = choices([0, 0, 1, 1, 2], [0, 0, 1, 0, 3])
    assert METRICS["accuracy"].score(answers).total() == pytest.approx(3 / 5)
    assert METRICS["macro_f1"].score(answers).total() == pytest.approx((0.8 + 2 / 3) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_f1_equals_sklearns_options_that_never_occur_counting_as_zero(seed):
    truth, chosen = np.random.default_rng(seed).integers(0, 3, (2, 40)).tolist()
    expected = f1_score(truth, chosen, labels=range(4), average="macro", zero_division=0.0)
    assert METRICS["macro_f1"].score(choices(truth, chosen)).total() == pytest.approx(expected)


def test_all_right():
    answers = choices([0, 1, 2, 3], [0, 1, 2, 3])
    assert METRICS["accuracy"].score(answers).total() == METRICS["macro_f1"].score(answers).total() == 1.0


def test_bleu_and_chrf_equal_sacrebleus_corpus_scores():
    bleu, chrf = METRICS["bleu"].score(WRITTEN), METRICS["chrf++"].score(WRITTEN)
    assert bleu.total() == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score / 100)
    expected = sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score / 100
    assert chrf.total() == pytest.approx(expected)
    assert "tok:13a" in bleu.signature
    assert f"version:{sacrebleu.__version__}" in bleu.signature
    assert bleu.row_scores[3] == pytest.approx(1.0)
    assert 0 < bleu.row_scores[1] < 1


def test_rouge_by_hand():
    """5 of 6 words in common: precision and recall are 5/6."""
    rows = METRICS["rouge1"].score(WRITTEN)
    assert rows.row_scores[0] == pytest.approx(5 / 6)
    assert rows.total() == pytest.approx(rows.row_scores.mean())


def scores_of(metric: str, pairs: list[tuple[str, str]]) -> list[float]:
    """Of pairs of answer and reference."""
    texts, references = map(list, zip(*pairs))
    rows = METRICS[metric].score(Answers(texts, references, [""] * len(pairs)))
    assert rows.total() == pytest.approx(sum(rows.row_scores) / len(pairs))
    return rows.row_scores.tolist()


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "within"),
    [
        ("Paris", "Paris", 1, 1),
        ("  paris.\n", "Paris", 1, 1),
        ("The  Eiffel\nTower!", "Eiffel tower", 1, 1),
        ("**Paris**", '"Paris"', 1, 1),
        ("It is Paris, in France.", "Paris", 0, 1),
        ("Parisian", "Paris", 0, 0),
        ("A", "B", 0, 0),  # an option's letter is no article
        ("A.", "A", 1, 1),
        ("", "A", 0, 0),
        ("", "the", 0, 0),
        ("-3", "3", 0, 1),
        ("3.5", "35", 0, 0),
        ("12.5", "12", 0, 0),
        ("1,200", "200", 0, 0),
        ("There are 12, I think.", "12", 0, 1),
        ("f(x) = 2", "f(x) = 2.", 1, 1),
        ("答案是巴黎。", "巴黎", 0, 1),
        ("?", "!", 0, 0),
    ],
)
def test_exact_match_and_contains_by_hand(answer, reference, exact, within):
    assert scores_of("exact_match", [(answer, reference)]) == [exact]
    assert scores_of("contains", [(answer, reference)]) == [within]


def test_math_verify_by_hand():
    pairs = [
        (r"So \boxed{\frac{1}{2}}.", "0.5"),
        (r"First $3$, then \boxed{4}.", "4"),  # what is marked counts
        (r"First $3$, then \boxed{4}.", "3"),
        ("42", "42"),  # where TRL's reward finds no result
        ("She has 18 dollars.\n#### 18", "#### 18"),
        ("1,000", "1000"),
        ("$1+x^2$", "$x^2+1$"),
        ("41", "42"),
        ("", "42"),
        ("ned.", "Ned"),  # no mathematics in the reference
        ("Ann", "Ned"),
    ]
    assert scores_of("math_verify", pairs) == [1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0]


def test_math_verify_in_a_thread_of_its_own(caplog):
    """Where there is no alarm, and so no time limit."""
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(scores_of, "math_verify", [("42", "42"), ("41", "42")]).result() == [1, 0]
    assert caplog.text == ""


def test_math_verify_counts_what_trls_reward_counts():
    pairs = [(r"\boxed{2\sqrt{2}}", r"$\sqrt{8}$"), (r"\boxed{7}", "8"), (r"It is \boxed{50\%}", "0.5")]
    texts, references = zip(*pairs)
    rewards = accuracy_reward([[{"role": "assistant", "content": text}] for text in texts], list(references))
    assert scores_of("math_verify", pairs) == rewards
    assert {0.0, 1.0} == set(rewards)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.package])
def test_the_score_of_a_sample_of_rows_is_that_of_these_rows_alone(name):
    answers = choices([0, 1, 2, 0], [0, 1, 1, 3]) if METRICS[name].needs_options else WRITTEN
    whole, sample = METRICS[name].score(answers), [3, 0, 0, 1]
    expected = [METRICS[name].score(answers.take(sample)).total(), whole.total()]
    assert whole.score_samples(np.array([sample, range(4)])) == pytest.approx(expected)


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
