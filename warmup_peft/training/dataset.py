"""What a trainer is given, made into what it needs: settings, rows, tokenizer, prompts and their fingerprints."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from peft import PeftConfig, PeftModel
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from warmup_peft.inference.loading import is_of_adapter
from warmup_peft.method.branches import IGNORE_INDEX
from warmup_peft.method.model import adapter_off, keeps_initial_weights, without_peft_wrapper
from warmup_peft.settings.options import DEFAULT_ANCHOR
from warmup_peft.settings.traits import SOURCE_TRAITS
from warmup_peft.training.checks import has_transform
from warmup_peft.training.config import WarmupSFTConfig, choose_learning_rate

logger = logging.getLogger(__name__)

HUB_FILE = re.compile(r"hf://datasets/(?P<id>[^/@]+/[^/@]+)")

CHECKSUM_WORDS = 1 << 18  # 2 MiB, which stay in the cache between multiplication and sum
SPREAD = 0x1E3779B97F4A7C15  # an odd number of 61 bits without a pattern


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


def own_settings(args: WarmupSFTConfig, adapters: list[PeftConfig]) -> WarmupSFTConfig:
    """A trainer's own copy of its settings, with `warmup_anchor` and `learning_rate` resolved.

    TRL and transformers write into theirs.
    """
    own = copy.copy(args)
    for option in dataclasses.fields(args):
        value = getattr(args, option.name)
        if isinstance(value, (dict, list, AcceleratorConfig)):
            setattr(own, option.name, copy.deepcopy(value))
    own.notes = list(args.notes)
    choose_learning_rate(own, has_adapter=bool(adapters))
    own.check_warmup_options()  # again: they may have been changed since they were made
    if own.warmup_anchor is None:
        may_be_anchored = SOURCE_TRAITS[own.warmup_source].may_be_anchored
        has_anchor = own.warmup_source == "base" or (adapters and may_be_anchored)
        own.warmup_anchor = DEFAULT_ANCHOR if has_anchor else 0.0
    return own


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


def name_the_base(model: PreTrainedModel | PeftModel) -> None:
    """Let what is saved name a local base by its absolute path, whatever folder it will be read from."""
    config = without_peft_wrapper(model).config
    config._name_or_path = absolute_folder(get_config_model_id(config))
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.base_model_name_or_path = absolute_folder(adapter.base_model_name_or_path or "")


def absolute_folder(name: str) -> str:
    """A local folder's absolute path; any other name as it is."""
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name


def report_lengths(name: str, whole: Dataset, kept: Dataset, args: WarmupSFTConfig, num_opening: int = 0) -> None:
    """Warn, with numbers, of rows that `max_length` cut or dropped.

    Args:
        num_opening: how many tokens at each prompt's end are the opening.

    Raises:
        ValueError: nothing is left, or of a row (`truncation_mode` keep_end) nothing of its prompt but the opening.
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
    opening = [IGNORE_INDEX] * (num_opening + 1)
    without_prompt = sum(labels[: len(opening)] != opening for labels in kept["labels"]) if keeps_end else 0
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


def record_of_rows(dataset: Any) -> dict[str, Any]:
    """What a data set says about itself, for the model card.

    Returns:
        `source` (no path), `train_rows` and `fingerprint`, and its `license` if it has one.
    """
    if not isinstance(dataset, Dataset):
        return {}
    urls = dataset.info.download_checksums or {}
    on_hub = next((match["id"] for url in urls if (match := HUB_FILE.match(url))), None)
    read_as = dataset.info.dataset_name
    name = on_hub or (f"a {read_as} file" if read_as in _PACKAGED_DATASETS_MODULES else read_as) or "rows of a script"
    split = f", split {dataset.split}" if dataset.split is not None else ""
    record = {"source": name + split, "train_rows": len(dataset), "fingerprint": dataset._fingerprint}
    return {**record, "license": dataset.info.license} if dataset.info.license else record


# ---- What a pool of warmups depends on ----


def prompts_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """Token ids of each prepared row, up to its first supervised label."""
    for row in dataset.select_columns(["input_ids", "labels"]).with_format("numpy"):
        yield row["input_ids"][: int((row["labels"] != IGNORE_INDEX).argmax())].astype(np.int32)


def base_fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """Of all weights without the adapter (shapes, types, every value) and of what scales positions.

    Of a model that keeps its initial weights, these, with the adapter's. The same on every device; two to four seconds
    for each GiB on one busy CPU core.
    """
    base = without_peft_wrapper(model)
    config = base.config.get_text_config().to_dict()
    seen = hashlib.blake2b(repr(sorted((k, v) for k, v in config.items() if "rope" in k)).encode(), digest_size=8)
    saved = base.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in base.named_buffers() if name in saved)
    skips_adapter = isinstance(model, PeftModel) and not keeps_initial_weights(model)
    with adapter_off(model):
        for name, values in (*base.named_parameters(), *buffers):
            if skips_adapter and is_of_adapter(name, model):
                continue
            quantized = getattr(values, "quant_state", None)
            scales = (getattr(quantized, "absmax", None), getattr(getattr(quantized, "state2", None), "absmax", None))
            for tensor in (values, *(x for x in scales if x is not None)):
                seen.update(repr((tuple(tensor.shape), str(tensor.dtype), checksums(tensor))).encode())
    return seen.hexdigest()


def checksums(values: torch.Tensor) -> list[int]:
    """One for each `CHECKSUM_WORDS` * 8 bytes of a tensor, computed where it lies.

    Integers that wrap around: exact, and in any order of summation the same. Every word counts times an odd number of
    its own, so that a change of one word always shows.
    """
    data = values.detach().reshape(-1).view(torch.uint8)
    words = torch.nn.functional.pad(data, (0, -len(data) % 8)).view(torch.int64)
    places = torch.arange(min(CHECKSUM_WORDS, len(words)), device=words.device) * SPREAD
    places = (places ^ (places >> 29)) | 1
    sums = [(chunk * places[: len(chunk)]).sum() for chunk in words.split(CHECKSUM_WORDS)]
    return torch.stack(sums).tolist()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the vocabulary: which token has which id."""
    return hashlib.blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()
