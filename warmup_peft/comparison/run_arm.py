"""One arm with one seed, in a process of its own: train, score, write `run.json`. `compare` starts it.

    python -m warmup_peft.comparison.run_arm [id of the process that it ends with] <folder with job.json>

A process each keeps a crash from the other arms, and makes peak memory an arm's own. It ends with the comparison that
started it, even where that is killed: the same command again finds nobody else in the folder.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from datasets import disable_progress_bars
from transformers import TrainerCallback
from trl import SFTTrainer

from warmup_peft.comparison.results import Job, Point, Run
from warmup_peft.evaluation.metrics import score_rows, totals
from warmup_peft.evaluation.predictor import answers_of, perplexity
from warmup_peft.evaluation.rows import rows_to_compare_on
from warmup_peft.evaluation.scorer import Scorer, anothers, as_row, none_at_all
from warmup_peft.evaluation.tasks import Question, find_task, fingerprint
from warmup_peft.inference.loading import end_with_the_tokenizer
from warmup_peft.method.scoring import random_numbers_from
from warmup_peft.settings.parsing import quieten
from warmup_peft.training.build import build_sft_trainer, build_trainer
from warmup_peft.training.config import parse_training
from warmup_peft.training.controls import AnothersWarmupTrainer, EmptyWarmupTrainer
from warmup_peft.training.pool import POOL_NAME
from warmup_peft.training.trainer import WarmupSFTTrainer

TRAINERS = {"random_warmup": AnothersWarmupTrainer, "empty_warmup": EmptyWarmupTrainer}
INSTEAD = {"random_warmup": anothers, "empty_warmup": none_at_all}
MODEL_FOLDER = "model"
PARENT_SECONDS = 0.2  # between looks at the parent


def main() -> None:
    *parent, folder = sys.argv[1:]
    for process in parent:
        Thread(target=end_with, args=(int(process),), daemon=True).start()
    folder = Path(folder)
    quieten()
    disable_progress_bars()
    run_arm(Job.load(folder), folder).save(folder)


def end_with(parent: int) -> None:
    """End this process, without any tidying up, when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def run_arm(job: Job, folder: Path) -> Run:
    """Train one arm and score it on the test rows."""
    script, options, args, model_args = parse_training([*job.argv, "--output_dir", str(folder / MODEL_FOLDER)])
    curve_rows, test_rows = rows_to_compare_on(script, options, job.max_samples, job.curve_samples)
    if fingerprint([*curve_rows, *test_rows]) != job.rows:
        raise ValueError("The rows to score on have changed since the comparison was started. Start it anew.")
    if job.kind in ("base_model", "sft"):
        trainer = build_sft_trainer(script, options, args, model_args)
    else:
        trainer = build_trainer(script, options, args, model_args, TRAINERS.get(job.kind, WarmupSFTTrainer))
    end_with_the_tokenizer(trainer.model, trainer.processing_class)
    scorer = Scorer(
        trainer.model,
        trainer.processing_class,
        getattr(trainer, "warmup_config", None),
        find_task(options.task),
        job.eval_batch_size,
        INSTEAD.get(job.kind),
    )
    curve, seconds = [], 0.0
    if job.kind != "base_model":
        curve, seconds = train(trainer, scorer, curve_rows if job.curve_points else [], job.curve_points)
        trainer.save_model()
        if args.warmup_pool is None:
            shutil.rmtree(folder / MODEL_FOLDER / POOL_NAME, ignore_errors=True)

    memory = peak_memory()
    predictions, seconds_per_answer = scorer.answers(test_rows)
    scored, left_out = score_rows(scorer.task.metrics, answers_of(test_rows, predictions))
    row_scores = scored[scorer.task.metrics[0]].row_scores
    examples = examples_seen(trainer, trainer.state.global_step)
    return Run(
        arm=job.arm,
        seed=args.seed,
        steps=trainer.state.global_step,
        metrics={**totals(scored), "perplexity": perplexity(test_rows, predictions)},
        signatures={name: rows.signature for name, rows in scored.items() if rows.signature},
        left_out=left_out,
        train_seconds=seconds,
        examples_per_second=examples / seconds if seconds else 0.0,
        peak_memory=memory,
        seconds_per_answer=seconds_per_answer,
        warmups=scorer.figures(test_rows, predictions),
        curve=curve,
        device=device_name(),
        at_a_time=job.at_a_time,
        rows=[as_row(*each) for each in zip(test_rows, predictions, row_scores)],
    )


def train(trainer: SFTTrainer, scorer: Scorer, rows: Sequence[Question], num_points: int) -> tuple[list[Point], float]:
    """The learning curve, and the seconds of training without those of scoring."""
    points: list[Point] = []
    scoring = 0.0
    start = time.perf_counter()

    def add_point(step: int) -> None:
        nonlocal scoring
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        with random_numbers_from(trainer.args.seed, trainer.args.device):
            figures = scorer.point(rows)
        seen = examples_seen(trainer, step)
        points.append(Point(step=step, examples=seen, seconds=begin - start - scoring, **figures))
        scoring += time.perf_counter() - begin

    if rows:
        trainer.add_callback(AtSteps(num_points, add_point))
    trainer.train()
    return points, time.perf_counter() - start - scoring


def examples_seen(trainer: SFTTrainer, step: int) -> int:
    """Rows of training in so many optimizer steps, counted anew in each epoch, whose last step may have fewer."""
    args, rows = trainer.args, len(trainer.train_dataset)
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last:
        rows -= rows % batch
    step_size = batch * args.gradient_accumulation_steps
    epochs, rest = divmod(step, math.ceil(rows / step_size))
    return epochs * rows + min(rest * step_size, rows)


class AtSteps(TrainerCallback):
    """Calls a function before the first step, and at so many steps that lie evenly up to the last."""

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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
