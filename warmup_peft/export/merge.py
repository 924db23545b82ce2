"""Merge an adapter into its base model, which gives a plain transformers model. Does not import trl."""

from __future__ import annotations

import glob
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from tqdm import tqdm

from warmup_peft.export.custom_generate import export_decoding
from warmup_peft.export.model_card import write_model_card
from warmup_peft.files import first_line, scratch_folder
from warmup_peft.inference.folder import CURVES_NAME, SETTINGS, TRAINING_RECORD_NAME, WarmupConfig
from warmup_peft.inference.loading import (
    Base,
    Loading,
    end_with_the_tokenizer,
    find_base,
    load_base,
    load_tokenizer,
    load_whole,
    put_adapter_on,
    why_no_base,
)
from warmup_peft.inference.quantization import dequantized_while_loading, has_dequantize, is_quantized, save_as_it_is
from warmup_peft.method.model import evaluation_mode, without_peft_wrapper

LOST_AND_FOUND = "lost+found"  # in the root of a file system
PREVIOUS = "previous"  # the folder that is being replaced, until the new one is in place
PROBE_TOKENS = 128
# Relative errors of the logits that rounding can cause, with a margin. Measured on 2 to 24 layers: 3e-7 to 5e-6 in
# float32; 6e-3 to 0.1 in 16 bit, up to 0.17 if 8-bit layers also round activations.
EXACT = 1e-3
ROUNDED = 0.2


@dataclass(frozen=True)
class MergeReport:
    """Folder of the merged model, and the relative error of its logits: |merged - adapter| / |adapter|.

    The error is measured on the saved model, loaded again.
    """

    output_dir: str
    relative_logit_error: float


def merge_adapter(
    adapter: str | Path,
    output_dir: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    merge_base: Literal["dequantized", "original"] = "dequantized",
    overwrite: bool = False,
    max_shard_size: str = "5GB",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Merge an adapter into its base model and save a plain transformers model.

    A quantised base model is dequantised first, and the adapter is merged into the dequantised weights, because it was
    trained on these.

    Args:
        adapter: folder of the adapter.
        output_dir: folder of the merged model. It appears only when it is complete. A folder that cannot be replaced
            (a mount point) is filled in place, also at the end.
        dtype: dtype of the merged weights; by default that of the base model. The sums are computed in float32, one
            layer at a time, so a model of 8B parameters in 16 bit needs about 20 GB.
        merge_base: `original` merges into the weights before quantisation. The report then says how far the logits
            are from the adapter's.
        overwrite: replace an `output_dir` that holds a model.
        max_shard_size: the largest file of weights, as in "5GB".
        device: where to compute; by default on the CPU, or on the first GPU if only that can compute with the
            quantised weights.
        trust_remote_code: run Python code that the base model or its tokenizer brings with it.

    Raises:
        ValueError: there is no adapter; `merge_base` is unknown or impossible; the base model is missing; `output_dir`
            is not empty or cannot be written; or the merged logits differ by more than rounding. Nothing is written.
    """
    if merge_base not in ("dequantized", "original"):
        raise ValueError(f"merge_base={merge_base} is unknown. Choose dequantized or original.")
    output_dir = Path(output_dir)
    base = find_base(adapter, trust_remote_code)
    check_merge_target(output_dir, Path(adapter), base, overwrite)
    WarmupConfig.load(adapter)
    saved_dtype = None if dtype is None else as_dtype(dtype)
    check_shard_size(max_shard_size)
    check_mergeable(base, merge_base)
    loading = Loading(device or device_for(base), trust_remote_code=trust_remote_code)
    with whole_or_nothing(output_dir) as staging:
        error = _merge_into(staging, Path(adapter), base, saved_dtype, merge_base, max_shard_size, loading)
        write_model_card(staging, title=output_dir.name)
    return MergeReport(str(output_dir), error)


def _merge_into(
    folder: Path,
    adapter: Path,
    base: Base,
    saved_dtype: torch.dtype | None,
    merge_base: Literal["dequantized", "original"],
    max_shard_size: str,
    loading: Loading,
) -> float:
    """Write everything but the model card into the folder. Returns the relative error of the logits."""
    tokenizer = load_tokenizer(adapter, trust_remote_code=loading.trust_remote_code)
    model = load_base(adapter, loading=loading)
    saved_dtype = saved_dtype or model.dtype
    limit = error_limit(base, merge_base, model.dtype, saved_dtype)

    probe = torch.arange(PROBE_TOKENS, device=model.device).remainder(len(tokenizer)).unsqueeze(0)
    with_adapter = put_adapter_on(model, adapter)
    expected = logits_of(with_adapter, probe)
    model = with_adapter.unload()
    changed = why_no_base(with_adapter.active_peft_config) is not None
    del with_adapter
    if merge_base == "original" or changed or (is_quantized(model) and not has_dequantize(base.recorded or {})):
        del model  # two of them may not fit
        model = load_base(adapter, merge_base, loading)
    elif is_quantized(model):
        model = model.dequantize()
    model = merge_layer_by_layer(PeftModel.from_pretrained(model, adapter), saved_dtype)
    save_as_it_is(model)
    end_with_the_tokenizer(model, tokenizer)
    model.config.dtype = saved_dtype
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    del model
    error = ((logits_of(load_whole(folder, loading), probe) - expected).norm() / expected.norm()).item()
    if not error <= limit:  # NaN too
        raise ValueError(
            f"The merged model's logits differ from the adapter's by {error:.1%}. Rounding can cause at most "
            f"{limit:.1%}, so nothing was written. Use the adapter unmerged, and please report this."
        )
    for name in (*SETTINGS, CURVES_NAME):
        if (adapter / name).is_file():
            shutil.copy(adapter / name, folder)
    export_decoding(folder)
    return error


def merge_layer_by_layer(model: PeftModel, dtype: torch.dtype) -> nn.Module:
    """The base model with the adapter added to its weights, in float32 and without a second copy of the model."""
    untie(model)
    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for module in tqdm(adapted, desc="merging", unit="layer"):
        layer = module.get_base_layer().float()
        try:
            module.merge()
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(f"peft cannot merge this adapter ({first_line(error)}). Use it unmerged.") from error
        layer.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        model = model.merge_and_unload().to(dtype)  # removes the adapter's layers, and unties trained embeddings
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is not None and outputs.weight is not inputs.weight:
        model.config.tie_word_embeddings = False
    return model


def untie(model: PeftModel) -> None:
    """Copy weights that several modules share, so that merging into one module does not change the others.

    Tied embeddings without an adapter stay tied.
    """
    layers = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    merged = {id(weight) for layer in layers for weight in layer.parameters()}
    embedding = id(without_peft_wrapper(model).get_input_embeddings().weight)
    seen = set()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if id(weight) in seen and (id(weight) in merged or id(weight) != embedding):
                setattr(module, name, nn.Parameter(weight.detach().clone(), requires_grad=False))
            elif weight is not None:
                seen.add(id(weight))


def check_mergeable(base: Base, merge_base: str) -> None:
    """Raise ValueError if `merge_base` is impossible for this base model."""
    method = (base.recorded or {}).get("quant_method")
    instead = (
        "To merge into the unquantised model, name it as base_model_name_or_path in adapter_config.json, and set "
        f"quantization_config to null in {TRAINING_RECORD_NAME}."
    )
    if base.recorded is None:
        return
    if merge_base == "original" and base.stored is not None:
        raise ValueError(
            f"The base model {base.name} is stored quantised ({method}), so it has no original weights. Leave "
            f"merge_base at dequantized. {instead}"
        )
    if merge_base == "dequantized" and not has_dequantize(base.recorded or {}):
        if base.stored is None:
            raise ValueError(
                f"transformers cannot dequantise {method}, so the adapter cannot be merged into what it was trained "
                "on. Set merge_base to original, or use the adapter as it is."
            )
        if dequantized_while_loading(base.stored) is None:
            raise ValueError(
                f"transformers cannot dequantise {method}, in which the base model {base.name} is stored, so the "
                f"adapter cannot be merged. Use the adapter as it is. {instead}"
            )


def error_limit(base: Base, merge_base: str, *dtypes: torch.dtype) -> float:
    """The largest relative error of the logits that rounding can cause."""
    if merge_base == "original" and base.recorded is not None:
        return math.inf
    return EXACT if base.recorded is None and set(dtypes) == {torch.float32} else ROUNDED


def device_for(base: Base) -> str | None:
    """The CPU, unless it cannot compute with the quantised weights; then None, which is the first GPU."""
    is_plain = base.recorded is None or base.recorded.get("quant_method", "bitsandbytes") == "bitsandbytes"
    return "cpu" if is_plain else None


def check_shard_size(size: str) -> None:
    """Raise ValueError if this is no number of bytes."""
    if not re.fullmatch(r"\d+[KMGT]B", size):
        raise ValueError(f"max_shard_size={size} is no size. Write it as in 5GB or 500MB.")


def check_merge_target(output_dir: Path, adapter: Path, base: Base, overwrite: bool) -> None:
    """Raise ValueError if the output folder must not be replaced."""
    own = Path(base.name)
    for needed in (adapter, *([own] if own.is_dir() else [])):
        if needed.resolve().is_relative_to(output_dir.resolve()):
            raise ValueError(f"{output_dir} contains {needed}, which the merge reads. Choose another output_dir.")
    for folder in (output_dir, *output_dir.absolute().parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, so {output_dir} cannot be a folder. Choose another output_dir.")
    if not output_dir.is_dir() or not contents(output_dir):
        return
    if not (output_dir / "config.json").is_file():
        raise ValueError(f"{output_dir} is not empty and holds no model. Choose another output_dir.")
    if not overwrite:
        raise ValueError(f"{output_dir} is not empty. Choose another output_dir, or pass --overwrite_output_dir.")


def as_dtype(name: torch.dtype | str) -> torch.dtype:
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype={name} is unknown. Choose float32, bfloat16 or float16.")
    return dtype


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into, which replaces `folder` at the end, and is removed after an error.

    A mount point cannot be replaced, nor a folder whose parent is not writable: these are filled in place. If the
    process is killed between the two renames, `folder` is missing; the next call puts the older one back first.

    Raises:
        ValueError: the folder cannot be written. Raised before the block begins.
    """
    folder = folder.resolve()
    in_place = folder.is_dir() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK))
    put_back(folder)
    with ExitStack() as stack:
        try:
            place = folder if in_place else folder.parent
            room = stack.enter_context(scratch_folder(place, staging_prefix(folder)))
        except OSError as error:
            raise ValueError(f"{folder} cannot be written ({error.strerror}). Choose another output_dir.") from error
        staging, previous = room / "new", room / PREVIOUS
        staging.mkdir()
        yield staging
        try:
            if folder.exists():
                os.replace(folder, previous)
        except OSError:  # for example a bind mount of the same disk
            refill(folder, staging)
        else:
            os.replace(staging, folder)


def put_back(folder: Path) -> None:
    """Undo the first of the two renames if the process was killed before the second."""
    for previous in folder.parent.glob(f"{glob.escape(staging_prefix(folder))}????????/{PREVIOUS}"):
        if not folder.exists():
            os.replace(previous, folder)


def refill(folder: Path, staging: Path) -> None:
    """Replace the content of `folder` with that of `staging`."""
    others = [path for path in folder.iterdir() if path.name != LOST_AND_FOUND and not staging.is_relative_to(path)]
    # in this order the folder always holds config.json, which allows replacing it, until it is empty
    for path in sorted(others, key=lambda path: path.name == "config.json"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in sorted(staging.iterdir(), key=lambda path: path.name != "config.json"):
        shutil.move(path, folder)


def contents(folder: Path) -> list[Path]:
    """Content of the folder, without what a file system or an unfinished merge keeps there."""
    ours = staging_prefix(folder.resolve())
    return [path for path in folder.iterdir() if path.name != LOST_AND_FOUND and not path.name.startswith(ours)]


def staging_prefix(folder: Path) -> str:
    return f".{folder.name}-"


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    with evaluation_mode(model):
        return model(input_ids=ids).logits.float()
