"""`warmup-peft sft`: TRL's own SFT with a recipe's settings, to compare a warmup adapter with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback
from trl import SFTTrainer

from warmup_peft.cli.train import remove_run, what_is_trained, what_was_trained
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.settings.arguments import SFTOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.build import build_sft_trainer
from warmup_peft.training.callbacks import ShortProgress
from warmup_peft.training.checkpoints import check_output_dir, seconds_of
from warmup_peft.training.config import TRAINING_KINDS, TrainingSettings
from warmup_peft.training.saving import training_record

MANY_EPOCHS = 1_000_000  # more than any time limit allows


def run(argv: Sequence[str]) -> None:
    recipe = Recipe.read(argv, *TRAINING_KINDS, SFTOptions)
    (options,) = recipe.restricted_to(SFTOptions).settings()
    run_sft(TrainingSettings.of(recipe.restricted_to(*TRAINING_KINDS)), options)


def run_sft(settings: TrainingSettings, options: SFTOptions) -> None:
    """Train an adapter into `output_dir` without warmups. It answers directly.

    Raises:
        ValueError: bad input, before anything is loaded or written.
    """
    folder = Path(settings.training.output_dir)
    seconds = None if options.as_long_as is None else seconds_of(options.as_long_as)
    check_output_dir(folder, settings.run.overwrite_output_dir, resuming=False)
    if seconds is not None:
        settings.training.max_steps, settings.training.num_train_epochs = -1, MANY_EPOCHS
    trainer = build_sft_trainer(settings)
    if settings.run.overwrite_output_dir:
        remove_run(folder)
    if question := what_is_trained(trainer.model):
        print(question)
    trainer.remove_callback(ProgressCallback)
    if seconds is None:
        trainer.add_callback(ShortProgress())
    else:
        limit_time(trainer, seconds)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    WarmupConfig("", [], 0).save(folder)
    training_record(trainer).save(folder)
    trained = what_was_trained(trainer.model)
    print(f"Trained {trainer.state.global_step} steps without warmups. {trained} lies in {folder}")


class TimeLimit(TrainerCallback):
    """Ends a training after so many seconds, and shows how many are over."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, None

    @property
    def elapsed(self) -> float:
        return 0.0 if self.start is None else min(self.seconds, time.perf_counter() - self.start)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()
        self.bar = tqdm(total=round(self.seconds), unit="s", desc="SFT")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(round(self.elapsed) - self.bar.n)
        control.should_training_stop = self.elapsed >= self.seconds

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def limit_time(trainer: SFTTrainer, seconds: float) -> None:
    """End the training after so many seconds. The learning rate falls to 0 with the time instead of the steps."""
    limit = TimeLimit(seconds)
    trainer.add_callback(limit)
    trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(trainer.optimizer, lambda step: 1 - limit.elapsed / seconds)
