"""`warmup-peft train`: from a recipe to an adapter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import ProgressCallback

from warmup_peft.comparison.training_page import TrainingPage, why_no_page
from warmup_peft.files import saying_where_the_disk_is_full
from warmup_peft.inference.chat import WarmupFormat
from warmup_peft.inference.folder import PAGE_NAME, RUN_FILES
from warmup_peft.training.build import build_trainer
from warmup_peft.training.callbacks import ShortProgress, StopOnInterrupt
from warmup_peft.training.checkpoints import (
    check_output_dir,
    checkpoint_to_resume,
    checkpoints,
    last_checkpoint,
    remove_unfinished,
)
from warmup_peft.training.config import TrainingSettings, parse_training
from warmup_peft.training.pool import POOL_NAME
from warmup_peft.training.trainer import WarmupSFTTrainer

LARGE_MODEL = 300_000_000  # weights; smaller ones are often trained as a whole
BYTES_OF_ADAMW = 16  # for each weight in float32: itself, its gradient and two averages


def run(argv: Sequence[str]) -> None:
    run_training(parse_training(argv))


def run_training(settings: TrainingSettings) -> None:
    """Train an adapter into `output_dir`.

    Raises:
        ValueError: bad input, before anything is loaded or written.
    """
    args, folder = settings.training, Path(settings.training.output_dir)
    checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir)
    check_output_dir(folder, settings.run.overwrite_output_dir, resuming=checkpoint is not None)
    trainer = build_trainer(settings)
    if settings.run.overwrite_output_dir and checkpoint is None:
        if trainer.is_world_process_zero():
            remove_run(folder, keep_pool=args.warmup_pool is not None)
        trainer.accelerator.wait_for_everyone()  # no other rank may read the old pool
    with saying_where_the_disk_is_full(args.output_dir, partial(how_to_go_on, args.output_dir)):
        run_trainer(trainer, checkpoint)


def what_stands_around_warmups(found: WarmupFormat) -> str:
    """The format of the warmups as a sentence."""
    if found.thinking is not None:
        return (
            f"Warmups are the model's own thoughts, between {found.opening!r} and {found.separator!r} (read from the "
            "chat template)."
        )
    start = repr(found.opening) if found.opening else "the prompt"
    return f"Warmups are plain text, between {start} and {found.separator!r}."


def what_is_trained(model: nn.Module) -> str | None:
    """A question where a large model is trained as a whole, which is seldom meant."""
    size = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(model, PeftModel) or size < LARGE_MODEL:
        return None
    return (
        f"All {size / 1e9:.1f} billion weights are trained, since use_peft is not set; AdamW then takes some "
        f"{size * BYTES_OF_ADAMW / 1e9:.0f} GB. Was use_peft: true forgotten?"
    )


def what_was_trained(model: nn.Module) -> str:
    return "The adapter" if isinstance(model, PeftModel) else "The whole model (use_peft was not set)"


def run_trainer(trainer: WarmupSFTTrainer, checkpoint: str | None) -> None:
    """Train to the end, or to a checkpoint where a signal asks for it."""
    output_dir = trainer.args.output_dir
    if trainer.is_world_process_zero():
        remove_unfinished(output_dir)
    interrupt = StopOnInterrupt()
    trainer.add_callback(interrupt)
    if trainer.is_world_process_zero():
        print(what_stands_around_warmups(trainer.warmup_format))
        if question := what_is_trained(trainer.model):
            print(question)
        if checkpoint is not None:
            print(f"Going on from {checkpoint}.")
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ShortProgress())
    if (reason := why_no_page()) is None:
        trainer.add_callback(TrainingPage())
    elif trainer.is_world_process_zero():
        print(reason)
    trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.interrupted:
        last = last_checkpoint(output_dir)
        print(f"Stopped at step {trainer.state.global_step}. Go on with: --resume_from_checkpoint {last}")
        raise KeyboardInterrupt
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        print(f"Trained {trainer.state.global_step} steps. {what_was_trained(trainer.model)} lies in {output_dir}")
        if (page := Path(output_dir, PAGE_NAME)).is_file():
            print(f"Curves and warmups: {page}")


def how_to_go_on(folder: str) -> str:
    """A sentence for a run that found the disk full. Removes its unfinished checkpoints."""
    remove_unfinished(folder)
    last = last_checkpoint(folder)
    if last is None:
        return "Free some space and start the run again: there is no checkpoint yet."
    return f"The last checkpoint is complete: free some space and go on with --resume_from_checkpoint {last}"


def remove_run(folder: Path, keep_pool: bool = False) -> None:
    """Remove only a run's own files, checkpoints and warmups."""
    for path in (*checkpoints(folder), *([] if keep_pool else [folder / POOL_NAME])):
        shutil.rmtree(path, ignore_errors=not path.exists())
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
