"""The word that was meant, for a sentence about one that nothing is called. Loads neither torch nor trl."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.7  # share of the letters of two words that agree, in order, where one may be the other misspelt
SHORT_NAMES = {  # what people call an option, and the options that it may be, the first known one first
    "lr": ("learning_rate",),
    "bs": ("per_device_train_batch_size", "batch_size"),
    "batch_size": ("per_device_train_batch_size", "eval_batch_size"),
    "train_batch_size": ("per_device_train_batch_size",),
    "epochs": ("num_train_epochs",),
    "num_epochs": ("num_train_epochs",),
    "steps": ("max_steps",),
    "grad_accum": ("gradient_accumulation_steps",),
    "accumulation_steps": ("gradient_accumulation_steps",),
    "wd": ("weight_decay",),
    "scheduler": ("lr_scheduler_type",),
    "lr_scheduler": ("lr_scheduler_type",),
    "rank": ("lora_r",),
    "r": ("lora_r",),
    "alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "target_modules": ("lora_target_modules",),
    "model": ("model_name_or_path", "adapter"),
    "base_model": ("model_name_or_path",),
    "data": ("dataset_name",),
    "dataset": ("dataset_name",),
    "split": ("dataset_test_split",),
    "out": ("output_dir",),
    "output": ("output_dir",),
    "max_seq_length": ("max_length",),
    "k": ("num_warmups",),
    "num_samples": ("max_samples", "max_train_samples"),
    "max_tokens": ("max_new_tokens",),
    "4bit": ("load_in_4bit",),
    "lora": ("use_peft",),
    "peft": ("use_peft",),
    "resume": ("resume_from_checkpoint",),
    "overwrite": ("overwrite_output_dir",),
}


def nearest(word: str, known: Iterable[str], otherwise: str = "See --help.") -> str:
    """A question for the known word that is meant: one that is spelt nearly so, or has this usual short name.

    Args:
        otherwise: what to say where no known word is near.
    """
    by_name = {each.lstrip("-").casefold(): each for each in known}
    name = word.lstrip("-").casefold()
    meant = next((by_name[each] for each in SHORT_NAMES.get(name, ()) if each in by_name), None)
    if meant is None:
        close = difflib.get_close_matches(name, by_name, n=1, cutoff=NEAR)
        meant = by_name[close[0]] if close else None
    if meant is None:
        return otherwise
    return f"Did you mean {meant}?" if meant.startswith("-") else f"Did you mean '{meant}'?"
