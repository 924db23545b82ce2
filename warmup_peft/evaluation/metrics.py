"""Scores of answers, from the libraries that the field uses. All are between 0 and 1: BLEU and chrF++ in hundredths.

A metric is a row of numbers for each answer, and the score of their sum over rows. So a bootstrap can score any sample
of rows without looking at a text again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmup_peft.files import first_line

Array = NDArray[np.float64]
NEEDS_EXTRA = "Run: pip install 'warmup_peft[compare]'"


@dataclass(frozen=True)
class Answers:
    """What is scored: one entry a row.

    Attributes:
        texts: the answers as written; of multiple choice, the chosen options.
        references: the right answers.
        prompts: what was asked.
        choices: index of the chosen option and of the right one, (n, 2); None where answers are written freely.
        num_options: how many there are to choose from.
    """

    texts: Sequence[str]
    references: Sequence[str]
    prompts: Sequence[str]
    choices: NDArray[np.int64] | None = None
    num_options: int = 0


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """What one metric keeps of each row.

    Attributes:
        values: (n, d), such that `score` of their sum over rows is the corpus' score.
        score: (..., d) sums -> (...) scores.
        row_scores: (n,) score of each row by itself.
        signature: how exactly it was computed, as the library words it.
    """

    values: Array
    score: Callable[[Array], Array]
    row_scores: Array
    signature: str = ""

    def total(self) -> float:
        return float(self.score(self.values.sum(0)))


def mean_of_rows(row_scores: Sequence[float] | Array, signature: str = "") -> RowStatistics:
    scores = np.asarray(row_scores, dtype=np.float64)
    values = np.stack([scores, np.ones_like(scores)], axis=1)
    return RowStatistics(values, lambda sums: sums[..., 0] / sums[..., 1], scores, signature)


# ---- Multiple choice ----


def accuracy(answers: Answers) -> RowStatistics:
    return mean_of_rows((answers.choices[:, 0] == answers.choices[:, 1]).astype(np.float64))


def macro_f1(answers: Answers) -> RowStatistics:
    """Unweighted mean of the options' F1 (2 TP / (predicted + true)), an option that is neither counting as 0."""
    options = np.arange(answers.num_options)
    predicted, true = (answers.choices[:, [i]] == options for i in (0, 1))
    counts = np.concatenate([predicted & true, predicted.astype(int) + true], axis=1).astype(np.float64)

    def score(sums: Array) -> Array:
        hits, either = np.split(sums, 2, axis=-1)
        return np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0).mean(-1)

    return RowStatistics(counts, score, accuracy(answers).row_scores)


# ---- Written answers ----


def of_sacrebleu(metric, sentence_metric, answers: Answers) -> RowStatistics:
    texts, references = list(answers.texts), [list(answers.references)]
    values = np.asarray(metric._extract_corpus_statistics(texts, references), dtype=np.float64)

    def score(sums: Array) -> Array:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_score_from_stats(row.tolist()).score / 100 for row in flat]
        return np.asarray(scores).reshape(sums.shape[:-1])

    rows = [sentence_metric.sentence_score(t, [r]).score / 100 for t, r in zip(texts, references[0])]
    return RowStatistics(values, score, np.asarray(rows), str(metric.get_signature()))


def bleu(answers: Answers) -> RowStatistics:
    """sacrebleu's corpus BLEU; of a single row with effective order."""
    from sacrebleu.metrics import BLEU

    return of_sacrebleu(BLEU(), BLEU(effective_order=True), answers)


def chrf_plus_plus(answers: Answers) -> RowStatistics:
    """sacrebleu's chrF with word order 2."""
    from sacrebleu.metrics import CHRF

    return of_sacrebleu(CHRF(word_order=2), CHRF(word_order=2), answers)


def rouge(name: str) -> Callable[[Answers], RowStatistics]:
    def rows(answers: Answers) -> RowStatistics:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([name], use_stemmer=True)
        pairs = zip(answers.references, answers.texts)
        return mean_of_rows([scorer.score(*pair)[name].fmeasure for pair in pairs], "rouge-score F1, stemmed")

    return rows


def bertscore(answers: Answers) -> RowStatistics:
    """F1 of bert-score, with its default model for English."""
    from bert_score import BERTScorer

    scorer = BERTScorer(lang="en")
    return mean_of_rows(scorer.score(list(answers.texts), list(answers.references))[2].tolist(), scorer.hash)


COMET_MODEL = "Unbabel/wmt22-comet-da"


def comet(answers: Answers) -> RowStatistics:
    """COMET of the prompts' last line but one, which holds the source text."""
    from comet import download_model, load_from_checkpoint

    model = load_from_checkpoint(download_model(COMET_MODEL))
    rows = [
        {"src": source_text(prompt), "mt": text, "ref": reference}
        for prompt, text, reference in zip(answers.prompts, answers.texts, answers.references)
    ]
    return mean_of_rows(model.predict(rows, batch_size=16, progress_bar=False).scores, COMET_MODEL)


def source_text(prompt: str) -> str:
    """`German: Ein Hund.` newline `English:` -> `Ein Hund.`"""
    line = prompt.strip().rsplit("\n", 1)[0]
    return line.split(":", 1)[-1].strip()


METRICS: dict[str, Callable[[Answers], RowStatistics]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "bleu": bleu,
    "chrf++": chrf_plus_plus,
    "rouge1": rouge("rouge1"),
    "rouge2": rouge("rouge2"),
    "rougeL": rouge("rougeL"),
    "bertscore": bertscore,
    "comet": comet,
}
OPTIONAL = {"bertscore": "bert-score", "comet": "unbabel-comet"}  # large packages, and weights of their own
OF_CHOICES = ("accuracy", "macro_f1")


def check_metrics(names: Sequence[str], is_multiple_choice: bool) -> None:
    """Raise ValueError for a metric that is unknown or does not fit the task."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f"There is no metric '{name}'. Choose from {', '.join(METRICS)}.")
        if name in OF_CHOICES and not is_multiple_choice:
            raise ValueError(f"The metric {name} needs options to choose from, and the task's questions have none.")
    if not names or names[0] in (*OPTIONAL, "macro_f1"):
        raise ValueError(
            "A task's first metric is what arms are compared by. Let it be one that is always there and scores each "
            f"row: {', '.join(name for name in METRICS if name not in (*OPTIONAL, 'macro_f1'))}."
        )


def score_rows(names: Sequence[str], answers: Answers) -> tuple[dict[str, RowStatistics], dict[str, str]]:
    """Each metric's rows; and of those whose package or weights are not there, the reason.

    Raises:
        ImportError: a package that `warmup_peft[compare]` installs is missing.
    """
    scored, left_out = {}, {}
    for name in names:
        try:
            scored[name] = METRICS[name](answers)
        except Exception as error:
            if name not in OPTIONAL:
                if isinstance(error, ImportError):
                    raise ImportError(f"The metric {name} needs {error.name}. {NEEDS_EXTRA}") from error
                raise
            left_out[name] = why_left_out(name, error)
    return scored, left_out


def why_left_out(name: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"the package {OPTIONAL[name]} is not installed"
    return f"its weights could not be loaded ({first_line(error)})"


def totals(scored: Mapping[str, RowStatistics]) -> dict[str, float]:
    return {name: rows.total() for name, rows in scored.items()}
