"""The line that a person reads at each log, and a clean stop."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from warmup_peft.training.callbacks import ShortProgress, StopOnInterrupt

FIRST = SimpleNamespace(is_world_process_zero=True, global_step=7)


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"loss": 1.23456, "grad_norm": 3.0}, "step     7  loss 1.235"),
        (
            {"warmups/mean_length": 4.0, "loss": 0.5, "learning_rate": 2e-3},
            "step     7  loss 0.500  warmups 4.0 tokens  lr 2.0e-03",
        ),
        ({"eval_loss": 0.5}, "evaluation     7  loss 0.500"),
        (
            {"eval_bleu": 0.342, "eval_loss": 0.5, "eval_exact_match": 0.25},
            "evaluation     7  loss 0.500  BLEU 34.2  exact match 0.250",
        ),
        ({"train_runtime": 3.0}, None),
    ],
)
def test_a_log_is_one_short_line(logs, line):
    written = []
    progress = ShortProgress()
    progress.training_bar = SimpleNamespace(write=written.append)
    progress.on_log(None, FIRST, None, logs)
    assert written == ([] if line is None else [line])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_in_hand(number):
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    args = SimpleNamespace(world_size=1, device="cpu")
    before = signal.getsignal(number)
    stop = StopOnInterrupt()
    stop.on_train_begin(args, FIRST, control)
    stop.on_step_end(args, FIRST, control)
    assert (control.should_save, control.should_training_stop) == (False, False)
    os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before  # a second one ends it at once
    stop.on_step_end(args, FIRST, control)
    assert stop.interrupted
    assert control.should_save
    assert control.should_training_stop


def test_handlers_come_back_after_a_training_that_was_not_interrupted():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopOnInterrupt()
    stop.on_train_begin(None, FIRST, None)
    assert signal.getsignal(signal.SIGTERM) != before
    stop.on_train_end(None, FIRST, None)
    assert signal.getsignal(signal.SIGTERM) == before
