"""Scores, against numbers worked out by hand and against the libraries' own corpus scores."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score
from trl.rewards import accuracy_reward

from warmup_peft.evaluation.metrics import (
    METRICS,
    Answers,
    Metric,
    add_metrics,
    check_metrics,
    metric_name,
    metric_names,
    score_rows,
    score_text,
    source_text,
    try_metrics,
)

HYPOTHESES = ["a cat sits on the mat", "the dog barked at me", "rain", "two men walk home"]
REFERENCES = ["a cat sat on the mat", "the dog barked at us", "it rains", "two men walk home"]
WRITTEN = Answers(HYPOTHESES, REFERENCES, ["German: x\nEnglish:"] * 4)


def choices(answers: list[int], predictions: list[int], num_options: int = 4) -> Answers:
    texts = [""] * len(answers)
    return Answers(texts, texts, texts, np.array(list(zip(predictions, answers))), num_options)


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


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.package is None])
def test_the_score_of_a_sample_of_rows_is_that_of_these_rows_alone(name):
    answers = choices([0, 1, 2, 0], [0, 1, 1, 3]) if METRICS[name].needs_options else WRITTEN
    whole, sample = METRICS[name].score(answers), [3, 0, 0, 1]
    expected = [METRICS[name].score(answers.take(sample)).total(), whole.total()]
    assert whole.score_samples(np.array([sample, range(4)])) == pytest.approx(expected)


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


def test_a_missing_package_of_the_extra_is_an_error_that_says_how_to_fix_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'warmup_peft\[compare\]'"):
        score_rows(["bleu"], WRITTEN)


@pytest.mark.parametrize(
    ("names", "is_choice", "words"),
    [
        (("bleau",), False, "no metric 'bleau'. Did you mean 'bleu'?"),
        (("Exact_Match",), False, r"no metric 'Exact_Match'\. Did you mean 'exact_match'\?"),
        (("wer",), False, r"no metric 'wer'\. Choose from accuracy, macro_f1, exact_match"),
        (("accuracy",), False, "needs options"),
        (("comet", "bleu"), False, "need no package"),
        (("macro_f1",), True, "first metric"),
        ((), True, "first metric"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(names, is_choice, words):
    with pytest.raises(ValueError, match=words):
        check_metrics(names, is_choice)


def test_metrics_as_an_option_names_them():
    assert metric_names("exact_match") == ("exact_match",)
    assert metric_names(" bleu, rougeL,") == ("bleu", "rougeL")
    for text in ("", " , ", "bleu,bleu"):
        with pytest.raises(ValueError, match="name none, or one twice"):
            metric_names(text)


# ---- A task's own metrics ----


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test enters is gone after it."""
    monkeypatch.setattr("warmup_peft.evaluation.metrics.METRICS", dict(METRICS))


def same_words(predictions, references):
    return [len({*p.split()} & {*r.split()}) / len(r.split()) for p, r in zip(predictions, references)]


def same_length(predictions, references):
    return sum(len(p) == len(r) for p, r in zip(predictions, references)) / len(references)


def own(*metrics):
    return add_metrics(metrics, "mine/task.py")


def test_a_function_of_one_score_a_row_counts_as_their_mean():
    """5 of 6 words, 4 of 5, none of 2, all."""
    names = own("rougeL", same_words)
    assert names == ("rougeL", "same_words")
    statistics = score_rows(names, WRITTEN)[0]["same_words"]
    assert statistics.row_scores == pytest.approx([5 / 6, 4 / 5, 0, 1])
    assert statistics.total() == pytest.approx((5 / 6 + 4 / 5 + 1) / 4)
    assert statistics.score_samples(np.array([[0, 0], [2, 3]])) == pytest.approx([5 / 6, 1 / 2])


def test_a_function_of_one_score_for_all_rows_is_asked_again_for_every_sample():
    """Lengths agree in the second and the last row."""
    statistics = score_rows(own(same_length), WRITTEN)[0]["same_length"]
    assert statistics.total() == 1 / 2
    assert statistics.row_scores.tolist() == [0, 1, 0, 1]
    assert statistics.score_samples(np.array([[0, 1], [1, 3], [0, 2]])).tolist() == [1 / 2, 1, 0]


def test_a_sample_without_a_score_is_nan_where_the_whole_has_one():
    def spread(predictions, references):
        if len(predictions) < 2:
            raise ValueError("one row has no spread")
        return 0.5

    statistics = score_rows(own(spread), WRITTEN)[0]["spread"]
    assert statistics.total() == 0.5
    assert np.isnan(statistics.row_scores).all()


def test_a_metric_says_how_it_is_named_and_shown():
    def starts_alike(answers: Answers):
        return [text[0] == reference[0] for text, reference in zip(answers.texts, answers.references)]

    (name,) = own(Metric("starts", "starts alike", 100, "right_or_wrong", starts_alike))
    assert score_rows([name], WRITTEN)[0][name].total() == 3 / 4
    assert (metric_name(name), score_text(name, 3 / 4)) == ("starts alike", "75.0")


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0, 0.0], "returned a list of 2 for 4 rows. Return one number per row, or a single one for all rows."),
        ([[1.0]] * 4, "returned a table for 4 rows"),
        ({"f1": 1.0}, "returned dict. Return"),
        (["good"] * 4, "returned list. Return"),
        ([1.0, np.nan, 1.0, 1.0], "is nan for row 2, but a score must be a finite number."),
        (float("inf"), "is inf, but a score must be a finite number."),
        (OSError("no disk"), "cannot be computed: OSError: no disk"),
    ],
)
def test_what_is_no_score_is_one_sentence_with_metric_and_task(returned, words):
    def odd(predictions, references):
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(ValueError, match="^The metric odd of the task mine/task.py " + re.escape(words)):
        score_rows(own(odd), WRITTEN)


@pytest.mark.parametrize(("kind", "returned", "words"), [
    ("graded", 0.5, "returned one number for 4 rows. Return one number per row."),
    ("right_or_wrong", [1, 0, 0.5, 1], "the score of a row is neither 0 nor 1"),
])  # fmt: skip
def test_a_metric_keeps_to_its_kind(kind, returned, words):
    with pytest.raises(ValueError, match=words):
        score_rows(own(Metric("odd", "odd", 1, kind, lambda answers: returned)), WRITTEN)


def test_a_trial_finds_what_does_not_work_but_lets_a_missing_number_pass():
    try_metrics(own(lengthless := named("lengthless", lambda p, r: [1.0])), WRITTEN.take([0]))
    with pytest.raises(ValueError, match=r"The metric lengthless of the task mine/task\.py returned a list of 1 for"):
        try_metrics(own(lengthless), WRITTEN)
    try_metrics(own(named("nothing", lambda p, r: np.nan)), WRITTEN)


def test_a_trial_finds_what_fails_on_empty_answers():
    with pytest.raises(ValueError, match=r"share of the task .* cannot be computed: ZeroDivisionError"):
        try_metrics(own(named("share", lambda p, r: [1 / len(text) for text in p])), WRITTEN)
    with pytest.raises(ValueError, match=r"The metric mean .* is nan for row 1, but a score must be a finite number"):
        try_metrics(own(named("mean", lambda p, r: [1.0 if text else np.nan for text in p])), WRITTEN)


def named(name, function):
    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ((lambda p, r: 1.0,), r"Use a name \(accuracy, .*\), a named function"),
        ((3,), "lists the metric 3. Use a name"),
        ((named("bleu", lambda p, r: 1.0),), "a metric called bleu, but this name is already in use"),
        ((named("perplexity", lambda p, r: 1.0),), "already in use"),
        ((same_words, same_words), "lists a metric twice: same_words, same_words"),
        (("bleu", "bleu"), "lists a metric twice"),
        ("bleu", "has metrics='bleu'. Write a tuple"),
    ],
)
def test_metrics_that_have_no_name_of_their_own_are_refused(metrics, words):
    with pytest.raises(ValueError, match=words):
        add_metrics(metrics, "mine/task.py")


@pytest.mark.parametrize(("scale", "kind"), [(10, "graded"), (1, "mean")])
def test_a_metric_of_no_known_kind_or_scale_is_refused(scale, kind):
    with pytest.raises(ValueError, match=r"The metric mine has .*The kind is one of right_or_wrong, graded, corpus"):
        Metric("mine", "mine", scale, kind, same_length)
