"""What a trainer is given, made into what it needs: settings, rows, tokenizer, prompts and their fingerprints."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from warmup_peft.checks import has_transform
from warmup_peft.config import WarmupSFTConfig
from warmup_peft.method.branches import IGNORE_INDEX
from warmup_peft.method.scoring import without_peft_wrapper

logger = logging.getLogger(__name__)

VALUES_OF_EACH_TENSOR = 256  # enough to tell models apart, and quick for large ones


def as_warmup_config(args: TrainingArguments | None, model: str | PreTrainedModel) -> WarmupSFTConfig:
    """Like `SFTTrainer`, take no settings, plain `TrainingArguments` or an `SFTConfig` too."""
    if isinstance(args, WarmupSFTConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return WarmupSFTConfig(f"{name.split('/')[-1]}-WarmupSFT")
    values = args.to_dict()
    tokens = {name: getattr(args, name) for name in values if name.endswith("_token")}  # to_dict hides them all
    return WarmupSFTConfig(**{**values, **tokens})


def apply_dict_formatting(arguments: dict[str, Any]) -> Callable | None:
    """Apply a `formatting_func` that returns `prompt` and `completion` to the data sets, and return it.

    Raises:
        ValueError: it returns text.
    """
    formatting_func: Callable | None = arguments.get("formatting_func")
    dataset = arguments.get("train_dataset")
    if formatting_func is None or dataset is None or has_transform(dataset):
        return None
    sample = next(iter(dataset), None)
    if sample is None or "input_ids" in sample:
        return None
    if not isinstance(formatting_func(sample), dict):
        raise ValueError(
            "formatting_func returns text, which does not show where the prompt ends and the target begins. Let it "
            "return {'prompt': ..., 'completion': ...}."
        )
    arguments["formatting_func"] = None
    for name in ("train_dataset", "eval_dataset"):
        if arguments.get(name) is not None:
            arguments[name] = format_rows(arguments[name], formatting_func)
    return formatting_func


def format_rows(data: Any, formatting_func: Callable) -> Any:
    """A data set, or a dictionary of them, whose rows are what `formatting_func` makes of them."""
    if isinstance(data, dict):
        return {name: format_rows(each, formatting_func) for name, each in data.items()}
    if data is None or isinstance(data, str) or has_transform(data):
        return data
    columns = get_dataset_column_names(data)
    return data if "input_ids" in columns else data.map(formatting_func, remove_columns=columns)


def load_tokenizer(model: str | PreTrainedModel, args: WarmupSFTConfig):
    """As `SFTTrainer` would, but before the model."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)


def report_lengths(name: str, whole: Dataset, kept: Dataset, args: WarmupSFTConfig) -> None:
    """Warn, with numbers, of rows that `max_length` cut or dropped.

    Raises:
        ValueError: nothing is left, or of a row (`truncation_mode` keep_end) nothing of its prompt.
    """
    max_length, keeps_end = args.max_length, args.truncation_mode == "keep_end"
    if max_length is None:
        return
    lengths = [len(ids) for ids in whole["input_ids"]]
    dropped = len(whole) - len(kept)
    if not kept:
        raise ValueError(
            f"No row of the {name} dataset is left: all {len(whole)} prompts fill max_length={max_length} tokens by "
            f"themselves (the shortest row has {min(lengths)}). Set max_length higher, or to null."
        )
    without_prompt = sum(labels[0] != IGNORE_INDEX for labels in kept["labels"]) if keeps_end else 0
    if without_prompt:
        raise ValueError(
            f"max_length={max_length} leaves nothing of the prompt in {without_prompt} of {len(whole)} rows of the "
            f"{name} dataset: truncation_mode keep_end cuts it first, and their targets fill that many tokens by "
            "themselves. Set max_length higher, or shorten these targets."
        )
    cut = max(sum(length > max_length for length in lengths) - dropped, 0)
    if dropped or cut:
        logger.warning(
            "max_length=%d: of %d rows of the %s dataset %d are dropped (no target left) and %d lose the %s. The "
            "longest has %d tokens.",
            max_length, len(whole), name, dropped, cut,
            "beginning of their prompt" if keeps_end else "end of their target", max(lengths),
        )  # fmt: skip


# ---- What a pool of warmups depends on ----


def prompts_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """Token ids of each prepared row, up to its first supervised label."""
    for row in dataset.select_columns(["input_ids", "labels"]).with_format("numpy"):
        yield row["input_ids"][: int((row["labels"] != IGNORE_INDEX).argmax())].astype(np.int32)


def base_fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """Of the weights without the adapter (shapes, types, values here and there) and of what scales positions."""
    base = without_peft_wrapper(model)
    config = base.config.get_text_config().to_dict()
    seen = hashlib.blake2b(repr(sorted((k, v) for k, v in config.items() if "rope" in k)).encode(), digest_size=8)
    for name, parameter in base.named_parameters():
        if isinstance(model, PeftModel) and (parameter.requires_grad or f".{model.base_model.prefix}" in name):
            continue
        quantized = getattr(parameter, "quant_state", None)
        scales = (getattr(quantized, "absmax", None), getattr(getattr(quantized, "state2", None), "absmax", None))
        for values in (parameter, *(x for x in scales if x is not None)):
            flat = values.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // VALUES_OF_EACH_TENSOR)][:VALUES_OF_EACH_TENSOR].cpu().contiguous()
            seen.update(repr((tuple(values.shape), str(values.dtype))).encode())
            seen.update(some.view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the vocabulary: which token has which id."""
    return hashlib.blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()
