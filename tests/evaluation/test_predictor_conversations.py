"""Conversations as prompts: token ids, log-likelihoods and answers, with a warmup and without."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from chat_world import CONVERSATIONS, RENDERED
from transformers import AutoModelForCausalLM, AutoTokenizer

from warmup_peft.evaluation.answering import (
    ROOM_FOR_MORE,
    answer_limit,
)
from warmup_peft.evaluation.prediction import as_rows
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.prompt_completion import prompt_completion
from warmup_peft.evaluation.tasks import Question, as_answers
from warmup_peft.inference.folder import WarmupConfig

QUESTIONS = prompt_completion(CONVERSATIONS)
OPENING, SEPARATOR = "<think>\n", "</think>\n\n"


@pytest.fixture(scope="module")
def thinker(chat_folder):
    return AutoTokenizer.from_pretrained(chat_folder)


@pytest.fixture(scope="module")
def model(chat_folder):
    return AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def config(thinker):
    opening, separator = (thinker(text, add_special_tokens=False)["input_ids"] for text in (OPENING, SEPARATOR))
    return WarmupConfig(SEPARATOR, separator, 4, separator[:1], OPENING, opening, uses_chat_template=True)


def test_scores_equal_a_plain_loop(model, thinker, config):
    empty, plain = (
        f"{OPENING}\n{SEPARATOR}",
        dataclasses.replace(config, warmup_separator_ids=[7], warmup_opening_ids=[]),
    )
    for own, before in ((None, empty), (config, ""), (plain, empty)):
        predictor = Predictor(model, thinker, own, batch_size=3)
        for question, prediction in zip(QUESTIONS, predictor.answer(QUESTIONS, 3), strict=True):
            around = ([], []) if own is None else (own.warmup_opening_ids, own.warmup_separator_ids)
            text = RENDERED.format(question.prompt[0]["content"])
            context = [*thinker(text)["input_ids"], *around[0], *prediction.warmup_ids, *around[1]]
            context += thinker(before)["input_ids"]  # what the template itself puts before an answer
            target = thinker(question.completion)["input_ids"]
            with torch.no_grad():
                logp = model(torch.tensor([context + target])).logits[0].log_softmax(-1)
            whole = sum(float(logp[len(context) + i - 1, token]) for i, token in enumerate(target))
            assert prediction.option_logps == pytest.approx([whole], abs=1e-3)
            assert prediction.target_tokens == len(target)


def test_tables_and_metrics_read_text(model, thinker):
    predictions = Predictor(model, thinker, None).answer(QUESTIONS, 0)
    rows = as_rows(QUESTIONS, predictions, [0.0] * 4)
    assert [row.prompt for row in rows] == as_answers(QUESTIONS, [""] * 4, [0] * 4).prompts
    assert rows[0].prompt == "user: one?"


def test_who_answers_directly_may_think_first(model, thinker, monkeypatch):
    """The thought has room of its own beyond the longest reference, and is not scored. In texts there is none."""
    asked = []

    def generate(input_ids, max_new_tokens, **_):
        asked.append(max_new_tokens)
        ids = thinker(f"{OPENING}hm\n{SEPARATOR}TWO", return_tensors="pt", add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, ids.expand(len(input_ids), -1)], 1)

    monkeypatch.setattr(model, "generate", generate)
    predictor = Predictor(model, thinker, None, room_to_think=100)
    assert predictor.write(QUESTIONS, None).texts == ["TWO"] * 4
    text = predictor.write([Question("Two?", (" TWO",))], 7).texts
    assert text == [f"{OPENING}hm\n{SEPARATOR}TWO"]
    assert asked == [len("THREE") + ROOM_FOR_MORE + 100, 7]
    assert answer_limit(thinker, [" ONE\n", "THREE"]) == len("THREE") + ROOM_FOR_MORE


def test_an_answer_ends_where_the_context_does(model, thinker):
    (question,) = prompt_completion([{"prompt": "x" * 500, "completion": "y"}])
    (text,) = Predictor(model, thinker, None).write([question], 100).texts
    assert len(thinker(text)["input_ids"]) <= 512 - 500
