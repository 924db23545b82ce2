"""Log-likelihoods of options against a plain loop: one unpadded row at a time, straight from the definition."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from folders import puzzles, random_adapter, warmup_config
from transformers import AutoModelForCausalLM

from warmup_peft.evaluation.logiqa import logiqa
from warmup_peft.evaluation.predictor import Predictor, empty, shuffled
from warmup_peft.evaluation.tasks import Question
from warmup_peft.inference.generation import end_token_ids

QUESTIONS = [
    Question("Q: which?", (" A", " no, two", " yes", " a long option of many tokens"), 0),
    Question("x", (" one", " two", " three", " four"), 1),
    *logiqa(puzzles(4)),
]


@pytest.fixture(scope="module")
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


def greedy_warmup(model, prompt_ids, config):
    """The most likely token, one at a time, until an end token, the separator or the limit."""
    ids = []
    separator = config.warmup_separator_ids
    while len(ids) < config.max_warmup_length:
        token = int(model(torch.tensor([prompt_ids + ids])).logits[0, -1].argmax())
        if token in end_token_ids(model):
            return ids
        ids.append(token)
        if ids[-len(separator) :] == separator:
            return ids[: -len(separator)]
    return ids


def sum_of_logps(model, context_ids, ids):
    logp = model(torch.tensor([context_ids + ids])).logits[0].log_softmax(-1)
    return sum(float(logp[len(context_ids) + i - 1, token]) for i, token in enumerate(ids))


def context_of(model, tokenizer, question, config):
    prompt_ids = tokenizer(question.prompt)["input_ids"]
    if config is None:
        return prompt_ids, []
    warmup_ids = greedy_warmup(model, prompt_ids, config)
    return prompt_ids + warmup_ids + config.warmup_separator_ids, warmup_ids


@torch.no_grad()
def plain_answers(model, tokenizer, config):
    """Warmup, log-likelihood of each option and free generation of each question."""
    for question in QUESTIONS:
        context, warmup_ids = context_of(model, tokenizer, question, config)
        logps = [sum_of_logps(model, context, tokenizer(option)["input_ids"]) for option in question.options]
        sequence = model.generate(torch.tensor([context]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(sequence[0, len(context) :], skip_special_tokens=True)
        yield warmup_ids, logps, text


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("with_warmup", [False, True], ids=["direct", "warmup"])
def test_scores_equal_a_plain_loop_whatever_the_batches(model, tokenizer, with_warmup, batch_size):
    config = warmup_config(tokenizer) if with_warmup else None
    predictions = Predictor(model, tokenizer, config, batch_size).answer(QUESTIONS, max_new_tokens=6)
    plain = list(plain_answers(model, tokenizer, config))
    for question, prediction, (warmup_ids, logps, text) in zip(QUESTIONS, predictions, plain, strict=True):
        assert prediction.option_logps == pytest.approx(logps, abs=1e-3)
        assert prediction.target_tokens == len(tokenizer(question.completion)["input_ids"])
        assert prediction.choice == max(range(4), key=logps.__getitem__)
        assert prediction.warmup == tokenizer.decode(warmup_ids)
        assert prediction.generation == text
    if with_warmup:
        assert len({len(warmup_ids) for warmup_ids, _, _ in plain}) > 1  # ragged, or the test sees too little


def test_warmups_and_adapters_change_the_scores(model, model_folder, tokenizer, lora):
    config = warmup_config(tokenizer)
    with_adapter = random_adapter(model_folder, lora)
    arms = [(model, None), (model, config), (with_adapter, None), (with_adapter, config)]
    scores = [Predictor(one, tokenizer, own).answer(QUESTIONS, max_new_tokens=0) for one, own in arms]
    assert len({prediction[0].option_logps for prediction in scores}) == len(arms)
    with with_adapter.disable_adapter():
        off = Predictor(with_adapter, tokenizer, config).answer(QUESTIONS, max_new_tokens=0)
    assert off[0].option_logps == pytest.approx(scores[1][0].option_logps, abs=1e-3)


def test_order_is_kept(model, tokenizer):
    predictor = Predictor(model, tokenizer, warmup_config(tokenizer), batch_size=3)
    forward = predictor.answer(QUESTIONS, max_new_tokens=2)
    backward = predictor.answer(QUESTIONS[::-1], max_new_tokens=2)
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one.option_logps == pytest.approx(other.option_logps, abs=1e-3)
        assert dataclasses.replace(one, option_logps=()) == dataclasses.replace(other, option_logps=())


def test_no_tokens_no_generation(model, tokenizer):
    predictions = Predictor(model, tokenizer, None).answer(QUESTIONS[:2], max_new_tokens=0)
    assert [prediction.generation for prediction in predictions] == [None, None]
    assert [prediction.warmup for prediction in predictions] == ["", ""]


def test_training_mode_is_left_as_it_was(model, tokenizer):
    for mode in (True, False):
        model.train(mode)
        Predictor(model, tokenizer, warmup_config(tokenizer)).answer(QUESTIONS[:1], max_new_tokens=1)
        assert model.training is mode


def test_progress_sees_every_batch_and_every_question_once(model, tokenizer):
    seen = {}

    def progress(batches, what):
        seen[what] = batches
        return iter(batches)

    predictor = Predictor(model, tokenizer, warmup_config(tokenizer), batch_size=4, progress=progress)
    predictor.answer(QUESTIONS, max_new_tokens=1)
    assert list(seen) == ["warmups", "answers", "scores"]
    for batches in seen.values():
        assert [len(batch) for batch in batches] == [4, 2]
        assert sorted(i for batch in batches for i in batch) == list(range(6))


def test_questions_are_tokenised_once_however_often_they_are_answered(model, tokenizer):
    read = []

    class Counting(type(tokenizer)):
        def __call__(self, text, *positional, **keywords):
            read.extend([text] if isinstance(text, str) else text)
            return super().__call__(text, *positional, **keywords)

    counting = copy.copy(tokenizer)
    counting.__class__ = Counting
    predictor = Predictor(model, counting, warmup_config(tokenizer))
    first = predictor.answer(QUESTIONS, max_new_tokens=1)
    known = len(read)
    assert known > len(QUESTIONS)
    again = predictor.answer(QUESTIONS[::-1], max_new_tokens=1)[::-1]
    assert len(read) == known
    assert [each.target_tokens for each in again] == [each.target_tokens for each in first]
    predictor.answer([dataclasses.replace(QUESTIONS[0], prompt="Another?")], max_new_tokens=0)
    assert "Another?" in read[known:]


def test_answers_after_given_warmups_are_those_after_the_same_text(model, tokenizer):
    """Its own warmups given back change nothing; others, none among them, are what stands before the separator."""
    config = warmup_config(tokenizer)
    predictor = Predictor(model, tokenizer, config)
    own = predictor.answer(QUESTIONS, max_new_tokens=3)
    again = [prediction.warmup_ids for prediction in own]
    given = predictor.answer(QUESTIONS, max_new_tokens=3, warmup_ids=again)
    assert [p.generation for p in given] == [p.generation for p in own]
    for one, other in zip(given, own):
        assert one.option_logps == pytest.approx(other.option_logps, abs=1e-4)
    others = [list(range(70, 70 + i)) for i in range(len(QUESTIONS))]
    swapped = predictor.answer(QUESTIONS, max_new_tokens=0, warmup_ids=others)
    for question, prediction, ids in zip(QUESTIONS, swapped, others):
        context = tokenizer(question.prompt)["input_ids"] + ids + config.warmup_separator_ids
        with torch.no_grad():
            logps = [sum_of_logps(model, context, tokenizer(option)["input_ids"]) for option in question.options]
        assert prediction.option_logps == pytest.approx(logps, abs=1e-3)


def test_nan_logits_are_not_scored(model, tokenizer):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[5] = math.nan
    with pytest.raises(FloatingPointError, match=r"logits are NaN, so its answers cannot be scored\. .*learning_rate"):
        Predictor(broken, tokenizer, warmup_config(tokenizer)).answer(QUESTIONS, max_new_tokens=0)


def test_shuffled_and_empty_warmups_by_hand():
    assert shuffled([[1], [2, 3], []]) == [[], [1], [2, 3]]
    assert empty(["a", "b"]) == [[], []]


@pytest.mark.parametrize("instead", [shuffled, empty])
def test_answers_after_other_warmups_are_those_after_the_same_ones_given(model, tokenizer, instead):
    config = warmup_config(tokenizer)
    own = Predictor(model, tokenizer, config).warmups(QUESTIONS)
    given = Predictor(model, tokenizer, config).answer(QUESTIONS, max_new_tokens=0, warmup_ids=instead(own))
    assert Predictor(model, tokenizer, config, instead=instead).answer(QUESTIONS, max_new_tokens=0) == given


def test_what_warmups_are_worth_is_what_the_right_option_gains_by_them(model, tokenizer):
    predictor = Predictor(model, tokenizer, warmup_config(tokenizer))
    own = predictor.answer(QUESTIONS, max_new_tokens=0)
    found = predictor.warmup_metrics(QUESTIONS, own)
    for name, instead in (("gain_over_none", empty), ("gain_over_others", shuffled)):
        other = predictor.answer(QUESTIONS, max_new_tokens=0, warmup_ids=instead([list(p.warmup_ids) for p in own]))
        gains = [a.option_logps[q.answer] - b.option_logps[q.answer] for a, b, q in zip(own, other, QUESTIONS)]
        assert found[name] == pytest.approx(sum(gains) / len(gains), abs=1e-3)
    assert found["mean_length"] == pytest.approx(sum(len(p.warmup_ids) for p in own) / len(own))
    assert found["distinct"] == len({p.warmup_ids for p in own}) / len(own)


@pytest.mark.parametrize("arm", ["direct", "a limit of 0", "empty"])
def test_without_warmups_there_is_nothing_to_measure_of_them(model, tokenizer, arm):
    config = None if arm == "direct" else warmup_config(tokenizer, 0 if arm == "a limit of 0" else 5)
    predictor = Predictor(model, tokenizer, config, instead=empty if arm == "empty" else None)
    predictions = predictor.answer(QUESTIONS, max_new_tokens=0)
    assert predictor.warmup_metrics(QUESTIONS, predictions) == {}
    assert {prediction.warmup_ids for prediction in predictions} == {()}
