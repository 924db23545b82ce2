"""Build the trainer of a recipe: check the settings and read the rows. Trains nothing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from datasets import disable_progress_bars
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl import SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from warmup_peft.evaluation.rows import data_record, training_rows
from warmup_peft.inference.hub import commit_of
from warmup_peft.inference.loading import check_trainable, load_tokenizer, readable_weights, trusted_code
from warmup_peft.inference.quantization import keep_4bit_weights_in_place
from warmup_peft.training.config import TrainingSettings, say_notes
from warmup_peft.training.early import check_losses_choose, check_settings
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
    check_losses_choose(settings.training)
    fields = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    arguments = trainer_arguments(settings)
    arguments["args"] = SFTConfig(**{name: getattr(arguments["args"], name) for name in fields})
    name = settings.model.model_name_or_path
    with readable_weights(name), trusted_code(name):
        trainer = SFTTrainer(**arguments)
    keep_4bit_weights_in_place(trainer.model)
    trainer.base_revision = commit_of(name, settings.model.model_revision)
    say_notes(settings.training)
    return trainer


def trainer_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """The arguments of both trainers. `args` is a copy with `model_init_kwargs` set."""
    check_settings(*settings)
    script, run, args, model = settings
    check_trainable(model.model_name_or_path, model.model_revision)
    check_attention(model.attn_implementation)
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


def check_attention(attention: str | None) -> None:
    """Raise ValueError for an attention that is not installed."""
    if attention in FLASH_ATTENTION and not FLASH_ATTENTION[attention]():
        raise ValueError(
            f"attn_implementation={attention} needs the package flash-attn and a GPU that it works on, and one of the "
            "two is missing. Run: pip install flash-attn; or leave attn_implementation out, which takes sdpa."
        )
