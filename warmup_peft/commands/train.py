"""`warmup-peft train` and `draw`: from a recipe to an adapter, or to the warmups it will be trained on."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import ProgressCallback
from trl import SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from warmup_peft.arguments import DrawOptions, RunOptions, check_counts
from warmup_peft.callbacks import ShortProgress, StopOnInterrupt
from warmup_peft.checkpoints import checkpoint_to_resume, checkpoints, last_checkpoint, remove_unfinished
from warmup_peft.commands.rows import data_record, training_rows
from warmup_peft.data import is_one_split
from warmup_peft.disk import saying_where_the_disk_is_full
from warmup_peft.inference.client import CompletionsClient, ServerError, draw_from_server
from warmup_peft.inference.export import EXPORT_NAME
from warmup_peft.inference.loading import check_is_no_adapter, load_tokenizer, readable_weights
from warmup_peft.inference.scores import HARNESS_NAME, METRICS_NAME
from warmup_peft.method.pool import POOL_NAME, PROMPTS_PER_FILE
from warmup_peft.quantization import keep_4bit_weights_in_place
from warmup_peft.trainer import WarmupSFTTrainer

RUN_FILES = ("adapter_config.json", "adapter_model.safetensors", "warmup_config.json", "warmup_training.json",
             EXPORT_NAME, "trainer_state.json", "training_args.bin", METRICS_NAME, HARNESS_NAME)  # fmt: skip


def run_training(script_args, options: RunOptions, args, model_args) -> None:
    """Train an adapter into `args.output_dir`.

    Raises:
        ValueError: bad input, before anything is loaded or written.
    """
    checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, args.output_dir)
    check_output_dir(Path(args.output_dir), options.overwrite_output_dir, resuming=checkpoint is not None)
    trainer = build_trainer(script_args, options, args, model_args)
    if options.overwrite_output_dir and checkpoint is None:
        if trainer.is_world_process_zero():
            remove_run(Path(args.output_dir), keep_pool=args.warmup_pool is not None)
        trainer.accelerator.wait_for_everyone()  # no other rank may read the old pool
    with saying_where_the_disk_is_full(args.output_dir, partial(how_to_go_on, args.output_dir)):
        run_trainer(trainer, checkpoint)


def run_trainer(trainer: WarmupSFTTrainer, checkpoint: str | None) -> None:
    """Train to the end, or to a checkpoint where a signal asks for it."""
    output_dir = trainer.args.output_dir
    if trainer.is_world_process_zero():
        remove_unfinished(output_dir)
    interrupt = StopOnInterrupt()
    trainer.add_callback(interrupt)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ShortProgress())
    trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.interrupted:
        last = last_checkpoint(output_dir)
        print(f"Stopped at step {trainer.state.global_step}. Go on with: --resume_from_checkpoint {last}")
        raise KeyboardInterrupt
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        print(f"Trained {trainer.state.global_step} steps. The adapter lies in {output_dir}")


def how_to_go_on(folder: str) -> str:
    """With a run that found the disk full, in a sentence. What it wrote in part is removed."""
    remove_unfinished(folder)
    last = last_checkpoint(folder)
    if last is None:
        return "Free some space and start the run again: there is no checkpoint yet."
    return f"The last checkpoint is whole: free some space and go on with --resume_from_checkpoint {last}"


def build_trainer(
    script_args, options: RunOptions, args, model_args, trainer_class: type[WarmupSFTTrainer] = WarmupSFTTrainer
) -> WarmupSFTTrainer:
    """The `WarmupSFTTrainer` of a recipe, or a kind of it.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    arguments = trainer_arguments(script_args, options, args, model_args)
    with readable_weights(model_args.model_name_or_path):
        trainer = trainer_class(**arguments)
    trainer.data_record = data_record(script_args, options, trainer.train_dataset)
    return trainer


def build_sft_trainer(script_args, options: RunOptions, args, model_args) -> SFTTrainer:
    """TRL's own trainer with what a recipe says, but for the warmups.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    fields = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    arguments = trainer_arguments(script_args, options, args, model_args)
    arguments["args"] = SFTConfig(**{name: getattr(arguments["args"], name) for name in fields})
    with readable_weights(model_args.model_name_or_path):
        trainer = SFTTrainer(**arguments)
    keep_4bit_weights_in_place(trainer.model)
    return trainer


def trainer_arguments(script_args, options: RunOptions, args, model_args) -> dict[str, Any]:
    """What both trainers take; their `args` are a copy, in which `model_init_kwargs` are set."""
    if model_args.model_name_or_path is None:
        raise ValueError("No model is named. Set --model_name_or_path to a folder or a Hub id.")
    if script_args.dataset_name is None:
        raise ValueError("No data is named. Set --dataset_name to a file, a folder or a Hub id.")
    check_is_no_adapter(model_args.model_name_or_path)
    check_counts(options, max_train_samples=1)
    check_training_counts(args)
    if Path(args.output_dir).resolve() == Path(model_args.model_name_or_path).resolve():
        raise ValueError(f"output_dir={args.output_dir} is the base model's own folder. Choose another --output_dir.")
    if script_args.dataset_streaming and args.max_steps <= 0:
        raise ValueError("A stream does not say how many rows it has. Set max_steps, or leave dataset_streaming out.")
    evaluates = args.eval_strategy != "no"
    if evaluates and is_one_split(script_args.dataset_name) and options.test_split_size == 0:
        raise ValueError(
            f"eval_strategy={args.eval_strategy.value} would evaluate on the training rows: "
            f"{script_args.dataset_name} has no other ones. Keep some out of training with --test_split_size 0.1."
        )
    disable_progress_bars()
    train_dataset = training_rows(script_args, options, script_args.dataset_train_split, options.max_train_samples)
    eval_dataset = None
    if evaluates:
        eval_dataset = training_rows(script_args, options, script_args.dataset_test_split, None)
    args = copy.copy(args)
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    return {
        "args": args,
        "model": model_args.model_name_or_path,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "processing_class": load_tokenizer(model_args.model_name_or_path, model_args.model_revision),
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }


def check_training_counts(args) -> None:
    """Raise ValueError for what transformers would notice late, or not at all."""
    check_counts(
        args,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=1,
        max_length=1,
        dataloader_num_workers=0,
        seed=0,
    )
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs={args.num_train_epochs} trains nothing. Set it above 0, or set max_steps.")


def run_draw(script_args, options: RunOptions, args, model_args, draw_options: DrawOptions) -> None:
    """Draw the warmups of a training with `warmup_source: base`, and train nothing.

    Raises:
        ValueError: bad input, before a model is loaded; a server that fails while it is drawn from. What was drawn
            until then is kept.
    """
    if draw_options.base_url is None and draw_options.served_model is not None:
        raise ValueError("--served_model belongs to --base_url. Set the server's address too.")
    trainer = build_trainer(script_args, options, args, model_args)
    draw = None
    if draw_options.base_url is not None:
        client = CompletionsClient(
            draw_options.base_url,
            draw_options.served_model or model_args.model_name_or_path,
            timeout=draw_options.server_timeout,
        )
        draw = draw_from_server(client, dataclasses.replace(trainer.sampling, num_warmups=args.warmup_pool_size))
    folder = args.warmup_pool or args.output_dir
    again = "What was drawn until then is kept: free some space and run the same command again."
    try:
        with saying_where_the_disk_is_full(folder, lambda: again):
            pool = trainer.draw_warmups(draw)
    except ServerError as error:
        raise ServerError(
            f"{error} The same command goes on from there: every {PROMPTS_PER_FILE} prompts, what was drawn is kept "
            f"in {folder}."
        ) from error
    if trainer.is_world_process_zero():
        print(f"{pool.num_draws} warmups for each of {len(pool):,} prompts lie in {pool.folder}")
        print(f"Train with them: --warmup_source base --warmup_pool {pool.folder}")


def check_output_dir(folder: Path, overwrite: bool, resuming: bool) -> None:
    """Raise ValueError for a folder that holds a run, or that cannot be written."""
    holds_run = folder.is_dir() and bool(checkpoints(folder) or any((folder / name).exists() for name in RUN_FILES))
    if holds_run and not overwrite and not resuming:
        raise ValueError(
            f"{folder} holds another run. Pass --overwrite_output_dir to replace it, --resume_from_checkpoint last to "
            "go on with it, or another --output_dir (with make: ARGS=--overwrite_output_dir, or OUTPUT=)."
        )
    check_writable(folder)


def check_writable(folder: Path) -> None:
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written ({error.strerror}). Choose another --output_dir."
        ) from error


def remove_run(folder: Path, keep_pool: bool = False) -> None:
    """Remove a run's own files, checkpoints and warmups, nothing else."""
    for path in (*checkpoints(folder), *([] if keep_pool else [folder / POOL_NAME])):
        shutil.rmtree(path, ignore_errors=not path.exists())
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
