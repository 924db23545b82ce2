"""Build the trainer of a recipe: check the settings and read the rows. Trains nothing."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl import SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from warmup_peft.evaluation.data import is_one_split
from warmup_peft.evaluation.metrics import METRICS
from warmup_peft.evaluation.rows import data_record, training_rows
from warmup_peft.inference.hub import commit_of
from warmup_peft.inference.loading import check_trainable, load_tokenizer, readable_weights, trusted_code
from warmup_peft.inference.quantization import keep_4bit_weights_in_place
from warmup_peft.settings.arguments import check_counts
from warmup_peft.training.config import TrainingSettings
from warmup_peft.training.trainer import WarmupSFTTrainer

FLASH_ATTENTION = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}


def build_trainer(settings: TrainingSettings) -> WarmupSFTTrainer:
    """The `WarmupSFTTrainer` of a recipe.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    arguments = trainer_arguments(settings)
    with readable_weights(settings.model.model_name_or_path):
        trainer = WarmupSFTTrainer(**arguments)
    trainer.data_record = data_record(settings.script, settings.run, trainer.train_dataset)
    return trainer


def build_sft_trainer(settings: TrainingSettings) -> SFTTrainer:
    """TRL's own trainer with a recipe's settings, without warmups.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    best = (settings.training.metric_for_best_model or "").removeprefix("eval_")
    if best in METRICS:
        raise ValueError(
            f"metric_for_best_model={best} is a score of eval_generate, and SFT's own trainer writes no answers. Add "
            "--metric_for_best_model loss."
        )
    fields = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    arguments = trainer_arguments(settings)
    arguments["args"] = SFTConfig(**{name: getattr(arguments["args"], name) for name in fields})
    name = settings.model.model_name_or_path
    with readable_weights(name), trusted_code(name):
        trainer = SFTTrainer(**arguments)
    keep_4bit_weights_in_place(trainer.model)
    trainer.base_revision = commit_of(name, settings.model.model_revision)
    return trainer


def trainer_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """The arguments of both trainers. `args` is a copy with `model_init_kwargs` set."""
    check_settings(settings)
    script, run, args, model = settings
    disable_progress_bars()
    train_dataset = training_rows(script, run, script.dataset_train_split, run.max_train_samples)
    eval_dataset = None
    if args.eval_strategy != "no":
        eval_dataset = training_rows(script, run, script.dataset_test_split, None)
    args = copy.copy(args)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    return {
        "args": args,
        "model": model.model_name_or_path,
        "train_dataset": train_dataset,
        "eval_dataset": eval_dataset,
        "processing_class": load_tokenizer(
            model.model_name_or_path, model.model_revision, trust_remote_code=args.trust_remote_code
        ),
        "quantization_config": get_quantization_config(model),
        "peft_config": get_peft_config(model),
    }


def check_settings(settings: TrainingSettings) -> None:
    """Raise ValueError for settings that cannot work together."""
    script, run, args, model = settings
    check_base_model(settings)
    if script.dataset_name is None:
        raise ValueError("No data is named. Set --dataset_name to a file, a folder or a Hub id.")
    check_counts(run, max_train_samples=1)
    check_training_counts(args)
    if Path(args.output_dir).resolve() == Path(model.model_name_or_path).resolve():
        raise ValueError(f"output_dir={args.output_dir} is the base model's own folder. Choose another --output_dir.")
    if script.dataset_streaming and args.max_steps <= 0:
        raise ValueError("A stream does not say how many rows it has. Set max_steps, or leave dataset_streaming out.")
    if args.eval_generate and args.eval_strategy == "no":
        raise ValueError(
            f"eval_generate={args.eval_generate} writes answers at every evaluation, and eval_strategy is 'no'. Set "
            "eval_strategy to steps or epoch, or eval_generate to 0."
        )
    if args.eval_strategy != "no" and is_one_split(script.dataset_name) and run.test_split_size == 0:
        raise ValueError(
            f"eval_strategy={args.eval_strategy.value} would evaluate on the training rows: "
            f"{script.dataset_name} has no other ones. Keep some out of training with --test_split_size 0.1."
        )


def check_base_model(settings: TrainingSettings) -> None:
    """Raise ValueError where no base model is named, or an adapter, or an attention that is not installed."""
    if settings.model.model_name_or_path is None:
        raise ValueError("No model is named. Set --model_name_or_path to a folder or a Hub id.")
    check_trainable(settings.model.model_name_or_path, settings.model.model_revision)
    attention = settings.model.attn_implementation
    if attention in FLASH_ATTENTION and not FLASH_ATTENTION[attention]():
        raise ValueError(
            f"attn_implementation={attention} needs the package flash-attn and a GPU that it works on, and one of the "
            "two is missing. Run: pip install flash-attn; or leave attn_implementation out, which takes sdpa."
        )


def check_training_counts(args) -> None:
    """Raise ValueError for numbers that transformers would refuse late, or not at all."""
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
