"""An adapter's way out: merge it, describe it. Paths in, paths out. No trl."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from warmup_peft.files import scratch_folder
from warmup_peft.inference.export import export_decoding
from warmup_peft.inference.loading import (
    TRAINING_RECORD_NAME,
    TrainingRecord,
    end_with_the_tokenizer,
    is_adapter,
    load_base,
    load_tokenizer,
    looks_like_a_path,
)
from warmup_peft.inference.warmup_config import WARMUP_CONFIG_NAME, WarmupConfig
from warmup_peft.method.scoring import evaluation_mode

METRICS_NAME = "metrics.json"
CARD_NAME = "README.md"
MERGED_FROM_ADAPTER = (WARMUP_CONFIG_NAME, TRAINING_RECORD_NAME, METRICS_NAME)
PREVIOUS = "previous"  # the folder that a merged one takes the place of, for a moment
PROBE_TOKENS = 128


# ---- Merge ----


@dataclass(frozen=True)
class MergeReport:
    """Where the merged model lies, and how far its logits are from the adapter's: |merged - adapter| / |adapter|."""

    output_dir: str
    relative_logit_error: float


def merge_adapter(
    adapter: str | Path,
    output_dir: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    merge_base: Literal["dequantized", "original"] = "dequantized",
    overwrite: bool = False,
) -> MergeReport:
    """Merge an adapter into its base and save a plain transformers model.

    A quantised base is dequantised first and the adapter merged into that: it was trained on the dequantised weights,
    not on the original ones.

    Args:
        adapter: the adapter's folder.
        output_dir: made anew; it appears only when everything in it is written.
        dtype: of the merged weights; that of the base where it is not given. The sums are taken in float32, one layer
            after another, so that a model of 8B parameters in 16 bit needs about 20 GB.
        merge_base: `original` takes the base's weights as they were before quantisation. The report says how far the
            logits are then from the adapter's.
        overwrite: replace an `output_dir` that holds a model.

    Raises:
        ValueError: no adapter, a `merge_base` that is unknown, a base that is gone, or an `output_dir` that is taken.
    """
    if merge_base not in ("dequantized", "original"):
        raise ValueError(f"merge_base={merge_base} is unknown. Choose dequantized or original.")
    output_dir = Path(output_dir)
    check_merge_target(output_dir, Path(adapter), overwrite)
    WarmupConfig.load(adapter)
    saved_dtype = None if dtype is None else as_dtype(dtype)
    tokenizer = load_tokenizer(adapter)
    model = load_base(adapter)
    saved_dtype = saved_dtype or model.dtype

    probe = torch.arange(PROBE_TOKENS, device=model.device).remainder(len(tokenizer)).unsqueeze(0)
    with_adapter = PeftModel.from_pretrained(model, adapter)
    expected = logits_of(with_adapter, probe)
    model = with_adapter.unload()
    del with_adapter
    if merge_base == "original":
        model = load_base(adapter, quantized=False)
    elif getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = model.dequantize()
    model = merge_layer_by_layer(PeftModel.from_pretrained(model, adapter), saved_dtype)
    end_with_the_tokenizer(model, tokenizer)
    error = (logits_of(model, probe) - expected).norm() / expected.norm()

    model.config.dtype = saved_dtype
    with whole_or_nothing(output_dir) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for name in MERGED_FROM_ADAPTER:
            if Path(adapter, name).is_file():
                shutil.copy(Path(adapter, name), staging)
        export_decoding(staging)
        write_model_card(staging, title=output_dir.name)
    return MergeReport(str(output_dir), error.item())


def merge_layer_by_layer(model: PeftModel, dtype: torch.dtype) -> nn.Module:
    """The base with the adapter in its weights; each sum is taken in float32, and no second copy of the model made."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer().float()
            module.merge()
            layer.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        return model.merge_and_unload().to(dtype)  # puts the layers in place, and unties embeddings that were trained


def check_merge_target(output_dir: Path, adapter: Path, overwrite: bool) -> None:
    """Refuse an output folder whose replacement would take something that is needed."""
    if not is_adapter(adapter):
        raise ValueError(f"{adapter} holds no adapter_config.json, so it is no adapter. Name a training's output_dir.")
    base = Path(PeftConfig.from_pretrained(adapter).base_model_name_or_path)
    for needed in (adapter, *([base] if base.is_dir() else [])):
        if needed.resolve().is_relative_to(output_dir.resolve()):
            raise ValueError(f"{output_dir} holds {needed}, which the merge reads. Choose another --output_dir.")
    for folder in (output_dir, *output_dir.absolute().parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, so {output_dir} cannot be a folder. Choose another --output_dir.")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not (output_dir / "config.json").is_file():
        raise ValueError(f"{output_dir} is not empty and holds no model. Choose another --output_dir.")
    if not overwrite:
        raise ValueError(f"{output_dir} is not empty. Choose another --output_dir, or pass --overwrite_output_dir.")


def as_dtype(name: torch.dtype | str) -> torch.dtype:
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype={name} is none that torch knows. Choose float32, bfloat16 or float16.")
    return dtype


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` at the end, and is gone if there is an error.

    Killed between two renames, it leaves no `folder`: the older one is then put back before anything else is done.
    """
    prefix = f".{folder.name}-"
    put_back(folder, prefix)
    with scratch_folder(folder.parent, prefix) as room:
        staging, previous = room / "new", room / PREVIOUS
        staging.mkdir()
        yield staging
        if folder.exists():
            os.replace(folder, previous)
        os.replace(staging, folder)


def put_back(folder: Path, prefix: str) -> None:
    for previous in folder.parent.glob(f"{glob.escape(prefix)}????????/{PREVIOUS}"):
        if not folder.exists():
            os.replace(previous, folder)


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    with evaluation_mode(model):
        return model(input_ids=ids).logits.float()


# ---- Model card ----

CARD_TEXT = """
# {title}

{kind} that writes a short *warmup* to itself before it answers, trained with `WarmupSFTTrainer` from warmup_peft
(a plugin for TRL; method: [Warmup Generations](https://arxiv.org/abs/2502.12304)).

| | |
|---|---|
| Base model | `{base}` |
| Data | {data} |
| Warmup | at most {max_warmup_length} tokens, then the separator `{separator}` (ids {separator_ids}) |
{settings_rows}
{scores}
## Use

With warmup_peft:

```bash
warmup-peft generate --adapter <this folder> --prompt "..."
```

With {libraries} alone, where you trust the code in `custom_generate/generate.py` (read it, it is short):

```python
{own_code}
```

With {libraries} alone and no code of this repo, in two calls (the separator's ids go between them, never its text):

```python
{two_calls}
```
"""

LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "<this folder or repo>"
model = AutoPeftModelForCausalLM.from_pretrained(folder)"""

GENERATE = """{load}
tokenizer = AutoTokenizer.from_pretrained(folder)

inputs = tokenizer("...", return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=64, do_sample=False{how})
print(tokenizer.decode(ids[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))"""

LOAD_MERGED = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "<this folder or repo>"
model = AutoModelForCausalLM.from_pretrained(folder)"""

TWO_CALLS = """import torch
{load}
tokenizer = AutoTokenizer.from_pretrained(folder)

separator = torch.tensor([{separator_ids}])
ids = tokenizer("...", return_tensors="pt").input_ids
warmup = model.generate(input_ids=ids, max_new_tokens={max_warmup_length}, do_sample=False)
if warmup[0, -1] in torch.tensor({end_token_ids}):
    warmup = warmup[:, :-1]
context = torch.cat([warmup, separator], dim=1)
answer = model.generate(input_ids=context, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, context.shape[1]:], skip_special_tokens=True))"""

SEAL = "<!-- written by warmup_peft {digest}; edit freely, an edited card is never overwritten -->"
SEAL_PATTERN = re.compile(SEAL.format(digest="([0-9a-f]{16})"))
PEFT_TEMPLATE_TITLE = "# Model Card for Model ID"
SHOWN_SETTINGS = (
    "objective", "warmup_source", "num_warmups", "warmup_sampling", "warmup_anchor", "temperature", "learning_rate",
    "steps", "batch_size", "lora_r",
)  # fmt: skip


def write_model_card(folder: str | Path, title: str | None = None, license: str | None = None) -> Path:
    """Write the folder's README.md from what lies in it, unless a person has edited the one that is there.

    Args:
        title: the folder's name where it is not given.
        license: the base's; what a local base's own card says where it is not given.
    """
    folder = Path(folder)
    path = folder / CARD_NAME
    if path.is_file() and is_edited(path.read_text(encoding="utf-8")):
        return path
    record = TrainingRecord.load(folder) or TrainingRecord(base_model="")
    license = license or license_of(record.base_model)
    metadata = card_metadata(folder, record, license).to_yaml()
    card = ModelCard(f"---\n{metadata}\n---\n{card_text(folder, record, title, license)}")
    path.write_text(seal(str(card)), encoding="utf-8")
    return path


def license_of(base: str) -> str | None:
    """What the card of a local base says."""
    path = Path(base, CARD_NAME)
    if not base or not path.is_file():
        return None
    return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.license


def card_metadata(folder: Path, record: TrainingRecord, license: str | None) -> ModelCardData:
    base_is_public = record.base_model and not looks_local(record.base_model)
    dataset = record.data.get("dataset_name", "")
    return ModelCardData(
        base_model=record.base_model if base_is_public else None,
        license=license,
        datasets=[dataset] if dataset.count("/") == 1 and not looks_local(dataset) else None,
        library_name="peft" if is_adapter(folder) else "transformers",
        pipeline_tag="text-generation",
        tags=["trl", "sft", "warmup-sft", "custom_generate", *(["lora"] if is_adapter(folder) else [])],
    )


def looks_local(name: str) -> bool:
    return looks_like_a_path(name) or name.startswith("hf://") or Path(name).exists()


def public_name(name: str) -> str:
    """A Hub id as it is; of a local path only the last part."""
    return f"{Path(name).name} (local)" if looks_local(name) else name


def card_text(folder: Path, record: TrainingRecord, title: str | None, license: str | None) -> str:
    warmup_config = WarmupConfig.load(folder)
    separator_ids = ", ".join(map(str, warmup_config.warmup_separator_ids))
    is_one = is_adapter(folder)
    load = LOAD_ADAPTER if is_one else LOAD_MERGED
    trusting = (
        load if is_one else load.replace("from_pretrained(folder)", "from_pretrained(folder, trust_remote_code=True)")
    )
    two_calls = TWO_CALLS.format(
        load=load,
        separator_ids=f"[{separator_ids}]",
        max_warmup_length=warmup_config.max_warmup_length,
        end_token_ids=warmup_config.end_token_ids,
    )
    rows = [f"| {key} | {record.settings[key]} |" for key in SHOWN_SETTINGS if record.settings.get(key) is not None]
    if license:
        rows.insert(0, f"| License | {license}, inherited from the base |")
    if record.base_revision:
        rows.insert(0, f"| Base revision | `{record.base_revision}` |")
    return CARD_TEXT.format(
        title=title or folder.name,
        kind="A PEFT adapter" if is_adapter(folder) else "A merged model",
        base=public_name(record.base_model),
        data=public_name(record.data.get("dataset_name", "")) if record.data else "not recorded",
        max_warmup_length=warmup_config.max_warmup_length,
        separator=warmup_config.warmup_separator,
        separator_ids=separator_ids,
        settings_rows="\n".join(rows),
        scores=scores_table(folder),
        libraries="transformers and peft" if is_one else "transformers",
        own_code=GENERATE.format(load=trusting, how=", custom_generate=folder, trust_remote_code=True" * is_one),
        two_calls=two_calls,
    )


def scores_table(folder: Path) -> str:
    path = folder / METRICS_NAME
    if not path.is_file():
        return ""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    arms = {name: scores for name, scores in metrics.items() if isinstance(scores, dict) and "n" in scores}
    columns = [key for key in next(iter(arms.values()), {}) if key != "n"]
    rows = [
        f"| {name} | " + " | ".join(f"{scores[key]:.3f}" for key in columns) + f" | {scores['n']} |"
        for name, scores in arms.items()
    ]
    titles = " | ".join(key.replace("_", " ") for key in columns)
    return "\n".join([f"\n| held-out data | {titles} | rows |", "|---" * (len(columns) + 2) + "|", *rows, ""])


def seal(card: str) -> str:
    """Sign the card, so that a later edit shows."""
    return f"{card.rstrip()}\n\n{SEAL.format(digest=_digest(card))}\n"


def is_edited(card: str) -> bool:
    """Whether a person has changed, or written, this card. peft's unfilled template is nobody's."""
    found = SEAL_PATTERN.search(card)
    if found is None:
        return PEFT_TEMPLATE_TITLE not in card
    return found.group(1) != _digest(card[: found.start()]) or card[found.end() :].strip() != ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()[:16]
