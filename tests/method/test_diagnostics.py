"""What the warmups are doing, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from warmup_peft.method.branches import Warmups
from warmup_peft.method.diagnostics import (
    contains,
    effective_sample_size,
    many_truncated,
    num_distinct,
    num_repeated,
    num_shared_words,
    what_is_wrong,
)


def warmups(ids, lengths, num_decisions=None):
    lengths = torch.tensor(lengths)
    return Warmups(torch.tensor(ids), lengths, lengths if num_decisions is None else torch.tensor(num_decisions))


def test_effective_sample_size_by_hand():
    """Weights 1/2, 1/4, 1/4: 1 / (1/4 + 1/16 + 1/16) = 8/3; equal ones: 3; one of them everything: 1."""
    rows = [[math.log(2.0), 0.0, 0.0], [-7.0, -7.0, -7.0], [0.0, -500.0, -500.0], [-math.inf] * 3]
    assert effective_sample_size(torch.tensor(rows)).tolist() == pytest.approx([8 / 3, 3.0, 1.0, 3.0])


def test_repeated_tokens_are_those_that_stood_in_the_warmup_before():
    """5 6 5 5: two repeats; 5 5 with one token that counts: none."""
    sampled = warmups([[[5, 6, 5, 5], [5, 5, 0, 0]]], [[4, 1]])
    assert num_repeated(sampled).tolist() == [[2, 0]]


def test_distinct_draws_tell_stops_apart():
    """5 and stopped, 5 and stopped, 5 and cut by the limit."""
    sampled = warmups(
        [[[5, 1], [5, 1], [5, 7]], [[1, 0], [1, 9], [1, 3]]], [[1, 1, 2], [0, 0, 0]], [[2, 2, 2], [1, 1, 1]]
    )
    assert num_distinct(sampled).tolist() == [2, 1]
    assert num_distinct(sampled.emptied(torch.tensor([[True, False, False]] * 2))).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("warmup", "target", "shared", "total", "whole"),
    [
        ("Lee > Max > Eve .", " Eve", 1, 3, True),
        (" eve", " Eve", 1, 1, True),
        ("", " Eve", 0, 0, False),
        ("the cat", "The black cat.", 2, 2, False),
        ("so the black cat sat", "The black cat.", 3, 5, True),
        ("Evelyn", "Eve", 0, 1, False),
        (". . .", "?!", 0, 0, False),
        ("答案是东京", "东京", 2, 5, True),
    ],
)
def test_words_shared_with_the_target(warmup, target, shared, total, whole):
    assert num_shared_words(warmup, target) == (shared, total)
    assert contains(warmup, target) is whole


HEALTHY = {"warmups/mean_length": 7.0, "warmups/overlap": 0.3, "warmups/gain_over_none": 1.5}


@pytest.mark.parametrize(
    ("changes", "share", "message"),
    [
        ({}, 1.0, None),
        ({"warmups/mean_length": 0.2}, 0.1, "become empty"),
        ({"warmups/overlap": 0.9}, 0.1, "collapsed into drafts of the answer: 90%"),
        ({"warmups/gain_over_none": 0.01}, 0.6, "answers as well without them"),
        ({"warmups/gain_over_none": 0.01}, 0.4, None),  # it may still come
        ({"warmups/gain_over_others": 0.0}, 1.0, None),  # pauses, not a collapse
    ],
)
def test_what_is_wrong_names_the_option_that_helps(changes, share, message):
    said = what_is_wrong({**HEALTHY, **changes}, share)
    assert (said is None) == (message is None)
    if message is not None:
        assert message in said
        assert "warmup_anchor" in said


def test_hindsight_that_finds_nothing_is_said():
    assert "hindsight_steps to 0" in what_is_wrong({**HEALTHY, "warmups/hindsight": 0.0}, 0.1)
    assert what_is_wrong({**HEALTHY, "warmups/hindsight": 0.05}, 0.1) is None


def test_truncated_warmups_are_said_with_their_share_and_w():
    thoughts, notes = (many_truncated(0.7, 64, are_thoughts=are_thoughts) for are_thoughts in (True, False))
    assert thoughts.startswith("70% of the thoughts are truncated at max_warmup_length=64")
    assert "normal" not in thoughts
    assert notes.startswith("70% of the warmups are truncated at max_warmup_length=64")
    assert "normal" in notes
    assert many_truncated(0.5, 64, are_thoughts=True) is None


def test_warmups_that_become_half_as_long_are_said():
    short = {**HEALTHY, "warmups/mean_length": 3.9}
    assert "(3.9 tokens instead of 8.0)" in what_is_wrong(short, 0.1, first_length=8.0)
    assert what_is_wrong(short, 0.1, first_length=7.0) is None


def test_nothing_is_wrong_with_what_was_not_measured():
    assert what_is_wrong({"train_runtime": 3.0}, 1.0) is None
