"""What a person at the terminal gets from a training run: a short line now and then, and a clean stop."""

from __future__ import annotations

import signal
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback

from warmup_peft.evaluation.metrics import METRICS
from warmup_peft.evaluation.score_texts import metric_name, score_text

SHOWN = {
    "loss": "loss {:.3f}",
    "mean_token_accuracy": "token accuracy {:.2f}",
    "warmups/mean_length": "warmups {:.1f} tokens",
    "warmups/distinct": "distinct {:.2f}",
    "warmups/overlap": "overlap {:.2f}",
    "warmups/gain_over_none": "gain over none {:+.2f}",
    "warmups/gain_over_others": "over others' {:+.2f}",
    "warmups/kl": "KL {:.2f}",
    "learning_rate": "lr {:.1e}",
}


class ShortProgress(ProgressCallback):
    """Transformers' progress bar, with one readable line for each log instead of a dictionary."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        is_evaluation = any(key.startswith("eval_") for key in logs)
        values = {key.removeprefix("eval_"): value for key, value in logs.items()}
        shown = [text.format(float(values[key])) for key, text in SHOWN.items() if key in values]
        shown += [f"{metric_name(key)} {score_text(key, values[key])}" for key in values if key in METRICS]
        if shown:
            name = "evaluation" if is_evaluation else "step"
            self.training_bar.write("  ".join([f"{name} {state.global_step:>5}", *shown]))


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C, or SIGTERM as clusters send it, ends the run after the step in hand and keeps a checkpoint; a second one
    ends it at once. All ranks stop at the same step.
    """

    def __init__(self):
        self.interrupted = False
        self._previous: dict[int, Any] = {}

    def _interrupt(self, *_):
        self.interrupted = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:  # a signal reaches the ranks at different steps
            was_any = torch.tensor(float(self.interrupted), device=args.device)
            torch.distributed.all_reduce(was_any)
            self.interrupted = bool(was_any)
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self._restore()
