"""Train and score one arm with one seed in a process of its own, and write `run.json`. `compare` starts it.

    python -m warmup_peft.comparison.run_arm [id of the parent process] <folder with job.json>

With a process for each run, a crash does not stop the other runs, and peak memory is measured for one run. The process
ends when its parent does, even if the parent is killed, so that the same command can be run again in the same folder.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import torch
from datasets import disable_progress_bars
from filelock import FileLock
from transformers import TrainerCallback
from trl import SFTTrainer

from warmup_peft.comparison.arms import BASE_MODEL, MORE_SFT, SFT
from warmup_peft.comparison.results import LOCK_NAME, Job, Point, Run
from warmup_peft.comparison.sampled import SampledWarmups
from warmup_peft.evaluation.prediction import Prediction, as_rows, gains, score_predictions
from warmup_peft.evaluation.predictor import Predictor, empty, shuffled
from warmup_peft.evaluation.rows import rows_to_compare_on, task_to_score
from warmup_peft.evaluation.tasks import Question, Task, fingerprint, is_multiple_choice
from warmup_peft.inference.loading import end_with_the_tokenizer
from warmup_peft.method.model import random_numbers_from
from warmup_peft.settings.parsing import quieten
from warmup_peft.settings.recipe import Recipe
from warmup_peft.settings.traits import SOURCE_TRAITS
from warmup_peft.training.build import build_sft_trainer, build_trainer
from warmup_peft.training.config import TRAINING_KINDS, TrainingSettings
from warmup_peft.training.pool import POOL_NAME

INSTEAD = {"shuffled": shuffled, "empty": empty}  # in scoring, for each warmup_source that is a control
MODEL_FOLDER = "model"
PARENT_SECONDS = 0.2  # between looks at the parent


def main() -> None:
    *parent, place = sys.argv[1:]
    for process in parent:
        Thread(target=end_with, args=(int(process),), daemon=True).start()
    folder = Path(place)
    quieten()
    disable_progress_bars()
    with FileLock(folder / LOCK_NAME, timeout=0):
        run_arm(Job.load(folder), folder).save(folder)


def end_with(parent: int) -> None:
    """End this process at once when its parent has ended."""
    while has_parent(parent):
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def has_parent(parent: int) -> bool:
    """Whether the process that started this one still runs."""
    if sys.platform == "win32":  # where a virtual environment's python starts another one, and ids outlive processes
        return psutil.pid_exists(parent)
    return os.getppid() == parent


def run_arm(job: Job, folder: Path) -> Run:
    """Train one arm and score it on the test rows."""
    settings = settings_of_job(job, folder / MODEL_FOLDER)
    curve_rows, test_rows = rows_to_compare_on(
        settings.script, settings.run, job.max_samples, job.curve_samples, settings.training.eval_metrics
    )
    if fingerprint([*curve_rows, *test_rows]) != job.rows:
        raise ValueError("The rows to score on have changed since the comparison was started. Start it anew.")
    build = build_sft_trainer if job.kind in (BASE_MODEL, SFT, MORE_SFT) else build_trainer
    trainer = build(settings)
    end_with_the_tokenizer(trainer.model, trainer.processing_class)
    task, source = task_to_score(settings.run.task, settings.training.eval_metrics), settings.training.warmup_source
    predictor = Predictor(
        trainer.model,
        trainer.processing_class,
        getattr(trainer, "warmup_config", None),
        job.eval_batch_size,
        INSTEAD[source] if SOURCE_TRAITS[source].is_control else None,
    )
    samples = SampledWarmups(predictor, task, test_rows, job.sampled_warmups, settings.training)
    before = samples.before_training()
    curve: list[Point] = []
    seconds = 0.0
    if job.kind != BASE_MODEL:
        rows = curve_rows if job.curve_points else []
        curve, seconds = train(trainer, predictor, task, rows, job.curve_points)
        trainer.save_model()
        if settings.training.warmup_pool is None:
            shutil.rmtree(folder / MODEL_FOLDER / POOL_NAME, ignore_errors=True)

    memory = peak_memory()
    start = time.perf_counter()
    written = dataclasses.replace(predictor).write(test_rows, task.max_new_tokens)  # which knows no row's tokens yet
    seconds_per_answer = (time.perf_counter() - start) / len(test_rows)
    predictions = predictor.score(test_rows, written)
    scores = score_predictions(task.metric_names, test_rows, predictions)
    replaced = predictor.after_replaced(test_rows, predictions)
    warmups = {
        **predictor.warmup_metrics(test_rows, predictions, replaced),
        **scores_after(replaced, task, test_rows),
        **before,
        **samples.after_training(predictions),
    }
    examples = examples_seen(trainer, trainer.state.global_step)
    return Run(
        arm=job.arm,
        seed=job.seed,
        steps=trainer.state.global_step,
        metrics=scores.totals,
        signatures={name: rows.signature for name, rows in scores.statistics.items() if rows.signature},
        left_out=scores.left_out,
        train_seconds=seconds,
        examples_per_second=examples / seconds if seconds else 0.0,
        peak_memory=memory,
        seconds_per_answer=seconds_per_answer,
        warmups=warmups,
        row_gains={name: each.tolist() for name, each in gains(test_rows, predictions, replaced).items()},
        curve=curve,
        device=device_name(),
        at_a_time=job.at_a_time,
        rows=as_rows(test_rows, predictions, scores.statistics[task.metric_names[0]].row_scores),
    )


def scores_after(
    replaced: Mapping[str, Sequence[Prediction]], task: Task, rows: Sequence[Question]
) -> dict[str, float]:
    """The first metric after no warmup and after a shuffled one, where no answer has to be written for it."""
    if not is_multiple_choice(rows):
        return {}
    metric = task.metric_names[0]
    return {
        f"score_after_{name}": score_predictions([metric], rows, predictions).totals[metric]
        for name, predictions in replaced.items()
    }


def settings_of_job(job: Job, output_dir: Path) -> TrainingSettings:
    options = {**job.options, "seed": job.seed, "output_dir": str(output_dir)}
    return TrainingSettings.of(Recipe(TRAINING_KINDS, options))


def train(
    trainer: SFTTrainer, predictor: Predictor, task: Task, rows: Sequence[Question], num_points: int
) -> tuple[list[Point], float]:
    """Train, and return the learning curve and the seconds of training without scoring."""
    points: list[Point] = []
    scoring = 0.0
    start = time.perf_counter()

    def add_point(step: int) -> None:
        nonlocal scoring
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        with random_numbers_from(trainer.args.seed, trainer.args.device):
            metrics = metrics_of_point(predictor, task, rows)
        seen = examples_seen(trainer, step)
        points.append(Point(step=step, examples=seen, seconds=begin - start - scoring, **metrics))
        scoring += time.perf_counter() - begin

    if rows:
        trainer.add_callback(AtSteps(num_points, add_point))
    trainer.train()
    return points, time.perf_counter() - start - scoring


def metrics_of_point(predictor: Predictor, task: Task, rows: Sequence[Question]) -> dict[str, Any]:
    """The metrics of a `Point`; multiple-choice questions need no written answer."""
    predictions = predictor.answer(rows, max_new_tokens=0 if is_multiple_choice(rows) else task.max_new_tokens)
    metric = task.metric_names[0]
    scores = score_predictions([metric], rows, predictions).totals
    warmups = predictor.warmup_metrics(rows, predictions)
    return {
        "score": scores[metric],
        "nll_per_token": math.log(scores["perplexity"]),
        **{name: warmups.get(name) for name in ("gain_over_none", "gain_over_others", "overlap")},
    }


def examples_seen(trainer: SFTTrainer, step: int) -> int:
    """Training rows in the first `step` optimizer steps. The last step of an epoch may have fewer rows."""
    args, rows = trainer.args, len(trainer.train_dataset)
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last:
        rows -= rows % batch
    step_size = batch * args.gradient_accumulation_steps
    epochs, rest = divmod(step, math.ceil(rows / step_size))
    return epochs * rows + min(rest * step_size, rows)


class AtSteps(TrainerCallback):
    """Calls a function before the first step, and at `count` evenly spaced steps up to the last."""

    def __init__(self, count: int, call: Callable[[int], None]):
        self.count, self.call = count, call

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = set(np.linspace(0, state.max_steps, self.count + 1).round().astype(int).tolist())
        self.call(0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.call(state.global_step)


def peak_memory() -> int:
    """Bytes: of tensors on a GPU, of the whole process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
