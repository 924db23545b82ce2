"""The metrics of this package, as functions of answers. Standard libraries compute BLEU, chrF++, ROUGE and the like.

Every score is between 0 and 1, and higher is better.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from warmup_peft.evaluation.metric import Answers, Array, RowStatistics, mean_of_rows, score_of_sums

# ---- Multiple choice ----


def chosen_and_right(answers: Answers) -> NDArray[np.int64]:
    """(n, 2) indices of options. Raises ValueError for answers that are generated freely."""
    if answers.choices is None:
        raise ValueError("The answers are not options, which this metric scores. Choose another metric.")
    return answers.choices


def accuracy(answers: Answers) -> Array:
    choices = chosen_and_right(answers)
    return choices[:, 0] == choices[:, 1]


def macro_f1(answers: Answers) -> RowStatistics:
    """Unweighted mean over options of F1 = 2 TP / (predicted + true); 0 for an option that never occurs."""
    options = np.arange(answers.num_options)
    choices = chosen_and_right(answers)
    predicted, true = (choices[:, [i]] == options for i in (0, 1))
    counts = np.concatenate([predicted & true, predicted.astype(int) + true], axis=1).astype(np.float64)

    def score(sums: Array) -> Array:
        hits, either = np.split(sums, 2, axis=-1)
        return np.divide(2 * hits, either, out=np.zeros_like(hits), where=either > 0).mean(-1)

    return score_of_sums(counts, score, accuracy(answers).astype(np.float64))


# ---- Written answers ----


def of_sacrebleu(metric, sentence_metric, answers: Answers) -> RowStatistics:
    texts, references = list(answers.texts), [list(answers.references)]
    values = np.asarray(metric._extract_corpus_statistics(texts, references), dtype=np.float64)

    def score(sums: Array) -> Array:
        flat = sums.reshape(-1, sums.shape[-1])
        scores = [metric._compute_score_from_stats(row.tolist()).score / 100 for row in flat]
        return np.asarray(scores).reshape(sums.shape[:-1])

    rows = [sentence_metric.sentence_score(t, [r]).score / 100 for t, r in zip(texts, references[0])]
    return score_of_sums(values, score, np.asarray(rows), str(metric.get_signature()))


def bleu(answers: Answers) -> RowStatistics:
    """Corpus BLEU from sacrebleu; the score of a single row uses effective order."""
    from sacrebleu.metrics import BLEU

    return of_sacrebleu(BLEU(), BLEU(effective_order=True), answers)


def chrf_plus_plus(answers: Answers) -> RowStatistics:
    """chrF with word order 2 from sacrebleu."""
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
    """F1 from bert-score with its default English model."""
    from bert_score import BERTScorer

    scorer = BERTScorer(lang="en")
    return mean_of_rows(scorer.score(list(answers.texts), list(answers.references))[2].tolist(), scorer.hash)


COMET_MODEL = "Unbabel/wmt22-comet-da"


def comet(answers: Answers) -> RowStatistics:
    """COMET. The source text is the last line but one of the prompt."""
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


ARTICLES = ("a", "an", "the")
QUOTES = "\"'`*“”‘’«»„"
ENDS = QUOTES + ".,;:!?。，！？、"


def normalised(text: str) -> str:
    """A text as `exact_match` and `contains` compare it.

    Lower case; white space is one space; quotation marks and asterisks go at both ends, `.,;:!?` at the end, and an
    article (a, an, the) at the beginning, if something is left. Unlike SQuAD's normalisation it keeps punctuation and
    articles inside a text, so that 3.5 is not 35, -3 is not 3, and the option A is not nothing.
    """
    text = " ".join(text.casefold().split())
    text = text.lstrip(QUOTES).rstrip(ENDS).strip() or text
    first, _, rest = text.partition(" ")
    return rest if first in ARTICLES and rest else text


def exact_match(answers: Answers) -> Array:
    """1 if answer and reference are the same text once both are `normalised`."""
    return np.array([normalised(text) == normalised(right) for text, right in zip(answers.texts, answers.references)])


def contains(answers: Answers) -> Array:
    """1 if the `normalised` reference stands in the `normalised` answer, not only as a part of a word or number."""
    return np.array([is_within(right, text) for text, right in zip(answers.texts, answers.references)])


def is_within(reference: str, text: str) -> bool:
    """`Paris` is within `It is Paris.`, and `12` is neither within `112` nor within `12.5`."""
    wanted = re.escape(normalised(reference))
    return re.search(rf"(?<![a-z0-9])(?<!\d[.,]){wanted}(?![a-z0-9])(?![.,]\d)", normalised(text)) is not None


def math_verify(answers: Answers) -> Array:
    """1 if the package math-verify finds answer and reference mathematically equal.

    As in TRL's `accuracy_reward`, the result in an answer is LaTeX that is marked as such, above all \\boxed{}. Where
    there is none, the package's defaults find it, so that a bare 42 counts too. A reference in which the package finds
    nothing (words, or LaTeX outside of $...$) is compared as by `exact_match`; TRL's reward leaves such a row out.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    is_main = threading.current_thread() is threading.main_thread()  # elsewhere there is no alarm to stop it with
    parse = partial(parse, parsing_timeout=10 if is_main else None)
    marked = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]

    def is_right(text: str, reference: str) -> bool:
        wanted = parse(reference)
        if not wanted:
            return normalised(text) == normalised(reference)
        found = parse(text, extraction_config=marked, extraction_mode="first_match") or parse(text)
        return verify(wanted, found, timeout_seconds=5 if is_main else None)

    with only_errors_of("math_verify"):
        return np.array([is_right(*pair) for pair in zip(answers.texts, answers.references)])


@contextmanager
def only_errors_of(package: str) -> Iterator[None]:
    """Without the warnings of a package's loggers."""
    logger = logging.getLogger(package)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
