"""Sampled warmups of models whose samples are known: a model of one token, and a task that knows what is right."""

from __future__ import annotations

import dataclasses
import re
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from comparisons import runs_of
from folders import puzzles, warmup_config
from transformers import AutoModelForCausalLM

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.comparison.sampled import SampledWarmups
from warmup_peft.evaluation.logiqa import logiqa
from warmup_peft.evaluation.predictor import Predictor, empty, shuffled
from warmup_peft.evaluation.tasks import Task

ROWS = logiqa(puzzles(6))
ARGS = SimpleNamespace(temperature=1.0, top_k=0, top_p=1.0, min_p=None, seed=3)
TASK_FILE = """
from warmup_peft import Task
from warmup_peft.evaluation.logiqa import logiqa

def warmup_is_right(question, warmup):
    return {found}

TASK = Task(read=logiqa, metrics=("accuracy",), warmup_is_right=warmup_is_right)
"""


@pytest.fixture(scope="module")
def predictor(model_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    return Predictor(model, tokenizer, warmup_config(tokenizer, max_warmup_length=2), batch_size=4)


def measured(predictor, is_right=None, count=2, args=ARGS) -> dict[str, float]:
    task = Task(logiqa, ("accuracy",), warmup_is_right=is_right)
    samples = SampledWarmups(predictor, task, ROWS, count, args)
    return samples.before_training() | samples.after_training(predictor.answer(ROWS, 0))


def test_the_share_of_right_warmups_counts_every_sample(predictor):
    """The check sees each sample once before and once after training, and each greedy warmup once."""
    seen = []
    measured(predictor, lambda question, warmup: seen.append((question, warmup)) or True, count=3)
    assert [question for question, _ in seen] == ROWS * 7
    sampled = chain.from_iterable(SampledWarmups(predictor, None, ROWS, 3, ARGS)._sample())
    samples = predictor.tokenizer.batch_decode(list(sampled))
    greedy = predictor.tokenizer.batch_decode(predictor.warmups(ROWS))
    assert [text for _, text in seen] == [text.strip() for text in (*samples, *greedy, *samples)]


def test_shares_by_hand(predictor):
    """Right is what the greedy warmups say: all of those, and the samples that happen to be equal."""
    greedy = {q: text.strip() for q, text in zip(ROWS, predictor.tokenizer.batch_decode(predictor.warmups(ROWS)))}
    found = measured(predictor, lambda question, warmup: warmup == greedy[question], count=5)
    assert found["right"] == 1.0
    assert 0.0 <= found["right_of_samples"] < 0.5
    assert found["right_before"] == found["right_of_samples"]  # the same model and seed
    cold = SimpleNamespace(**{**vars(ARGS), "top_k": 1})
    assert measured(predictor, lambda q, warmup: warmup == greedy[q], args=cold)["right_of_samples"] == 1.0


def test_the_score_is_the_mean_over_samples(predictor):
    samples = SampledWarmups(predictor, None, ROWS, 3, ARGS)._sample()
    assert len({tuple(map(tuple, each)) for each in samples}) == 3
    scores = [
        sum(p.choice == q.answer for q, p in zip(ROWS, predictor.answer(ROWS, 0, each))) / len(ROWS)
        for each in samples
    ]
    assert measured(predictor, count=3)["sampled_score"] == pytest.approx(sum(scores) / 3)


def test_samples_leave_the_trainings_random_numbers(predictor):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    measured(predictor)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("instead", "count", "checked", "names"),
    [
        (None, 0, False, set()),
        (None, 0, True, {"right"}),
        (None, 2, False, {"sampled_score"}),
        (None, 2, True, {"sampled_score", "right", "right_of_samples", "right_before"}),
        (shuffled, 2, True, {"sampled_score"}),  # its warmups are other rows'
        (empty, 2, True, set()),
    ],
)
def test_what_is_measured(predictor, instead, count, checked, names):
    found = measured(dataclasses.replace(predictor, instead=instead), (lambda q, w: True) if checked else None, count)
    assert set(found) == names
    assert all(found[name] == 1.0 for name in names - {"sampled_score"})


def test_a_model_without_warmups_has_none(predictor):
    assert measured(dataclasses.replace(predictor, warmup_config=None), lambda q, w: True) == {}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("warmup", "returned '.*'. Return True or False"),
        ("question.colour", "warmup_is_right fails on the warmup .*: AttributeError"),
        ("bool(warmup[0])", "fails on the warmup '': IndexError"),
    ],
)
def test_a_check_that_fails_is_bad_input_before_any_run(argv, tmp_path, in_this_process, capsys, found, words):
    path = tmp_path / "task.py"
    path.write_text(TASK_FILE.format(found=found))
    assert main(argv(arms="sft", task=str(path))) == BAD_INPUT
    assert re.search(words, capsys.readouterr().err)
    assert in_this_process.started == []


def test_a_comparison_reports_them(argv, tmp_path, in_this_process, capsys):
    path = tmp_path / "task.py"
    path.write_text(TASK_FILE.format(found='"x" in warmup or len(warmup) > 1'))
    assert main(argv(arms="sft,warmup,empty_warmup", task=str(path), sampled_warmups="2")) == 0
    runs = runs_of(tmp_path / "cmp")
    assert {"sampled_score", "right", "right_of_samples", "right_before"} <= set(runs["warmup"].warmups)
    assert runs["sft"].warmups == runs["empty_warmup"].warmups == {}
    report = (tmp_path / "cmp" / "report.md").read_text(encoding="utf-8")
    for column in ("accuracy after a sampled warmup", "right among samples, before training"):
        assert f"| {column} |" in report
    assert "sampled" in capsys.readouterr().out
    assert main(argv(arms="sft", task=str(path), sampled_warmups="-1")) == BAD_INPUT
