"""From a folder to a model that runs: an adapter on its base, in the precision it was trained in, or a merged model.

`warmup_training.json` beside the adapter says how the base was loaded. No trl.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from warmup_peft.files import write_text
from warmup_peft.inference.folder import WarmupConfig, check_folder
from warmup_peft.inference.generation import end_token_ids
from warmup_peft.inference.quantization import (
    is_quantized,
    keep_4bit_weights_in_place,
    save_as_it_is,
    stored_quantization,
    to_load_with,
)
from warmup_peft.method.model import without_peft_wrapper

TRAINING_RECORD_NAME = "warmup_training.json"
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass
class TrainingRecord:
    """How an adapter was made; what merging, scoring and the model card need to know.

    Attributes:
        base_model: name or path of the base.
        base_revision: its commit on the Hub, where known.
        dtype: the base's, such as "bfloat16".
        quantization_config: as transformers took it; None where the base was trained on unquantised or dequantised.
        num_embeddings: rows of the base's embeddings, which a chat template with new tokens makes more than its own.
        settings: the method's options, and the training's.
        data: where the rows came from and how they were read.
        versions: of the packages used.
    """

    base_model: str
    base_revision: str | None = None
    dtype: str = "auto"
    quantization_config: dict[str, Any] | None = None
    num_embeddings: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        write_text(Path(folder, TRAINING_RECORD_NAME), text + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TrainingRecord | None:
        """Read `warmup_training.json` of a local folder; None where there is none, unknown fields left out.

        Raises:
            ValueError: it is not what `save` wrote.
        """
        path = Path(folder, TRAINING_RECORD_NAME)
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Take it anew from the training's folder.") from error


@dataclass
class LoadedModel:
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    warmup_config: WarmupConfig
    record: TrainingRecord | None


def put_adapter_first(folder: str | Path, model: nn.Module) -> None:
    """Move the files of a PeftModel's only adapter up into the saved folder, where every loader looks.

    peft puts an adapter that is not called "default" into a folder of its name.
    """
    names = list(model.peft_config) if isinstance(model, PeftModel) else []
    if len(names) != 1 or names == ["default"]:
        return
    place = Path(folder, names[0])
    for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
        os.replace(place / name, Path(folder, name))
    if not any(place.iterdir()):
        place.rmdir()


def is_adapter(folder: str | Path) -> bool:
    return Path(folder, "adapter_config.json").is_file()


def load_folder(folder: str | Path) -> LoadedModel:
    """Load an adapter's folder, or a merged model's, for inference.

    Raises:
        ValueError: the folder is neither, or the adapter's base cannot be loaded.
    """
    warmup_config = WarmupConfig.load(folder)
    record = TrainingRecord.load(folder)
    tokenizer = load_tokenizer(folder)
    check_separator(folder, warmup_config, tokenizer)
    model = put_adapter_on(load_base(folder), folder) if is_adapter(folder) else load_whole(folder)
    end_with_the_tokenizer(model, tokenizer)
    return LoadedModel(model.eval(), tokenizer, warmup_config, record)


def load_whole(folder: str | Path) -> PreTrainedModel:
    """A model without an adapter, as its folder holds it; ValueError where its weights are broken."""
    with readable_weights(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=_device())


@contextmanager
def readable_weights(name: str | Path) -> Iterator[None]:
    """Around the making of a model: what its libraries raise over broken files becomes a ValueError.

    Raises:
        ValueError: weights that were cut off, or that do not fit the model's configuration.
        torch.OutOfMemoryError: as it comes.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"The model {name} cannot be loaded ({str(error).strip().splitlines()[0]}). Were its weights cut off, or "
            "do they belong to another config.json? Copy it anew."
        ) from error


def check_separator(folder: str | Path, config: WarmupConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the tokenizer splits the separator in another way than the training's did."""
    ids = tokenizer(config.warmup_separator, add_special_tokens=False)["input_ids"]
    if ids != config.warmup_separator_ids:
        raise ValueError(
            f"The separator {config.warmup_separator!r} has the token ids {config.warmup_separator_ids} in the "
            f"training, but the tokenizer in {folder} gives {ids}. Put back the tokenizer of the training."
        )


def why_no_base(config: PeftConfig) -> str | None:
    """Why the model with this adapter switched off is not the adapter's base; None where it is."""
    init = str(getattr(config, "init_lora_weights", ""))
    if init.lower().startswith(CHANGES_BASE):
        return f"init_lora_weights='{init}' changes the base's own weights"
    bias = getattr(config, "bias", "none")
    if bias != "none":
        return f"bias='{bias}' trains the base's own biases"
    if getattr(config, "layer_replication", None):
        return "layer_replication repeats the base's own layers"
    return None


def is_of_adapter(name: str, model: PeftModel) -> bool:
    """Whether a parameter or buffer of this name belongs to an adapter, not to the base."""
    return any(part in name for part in (f".{model.base_model.prefix}", ".modules_to_save.", ".trainable_tokens_"))


def context_length(config: PretrainedConfig) -> int | None:
    """Positions the model knows, in tokens; None where its configuration names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def put_adapter_on(base: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """Raises ValueError where the adapter was cut off, or made for another architecture."""
    try:
        return PeftModel.from_pretrained(base, adapter)
    except torch.OutOfMemoryError:
        raise
    except SafetensorError as error:
        raise ValueError(
            f"{Path(adapter, 'adapter_model')}.safetensors cannot be read ({error}). Was it cut off? Copy it anew."
        ) from error
    except (RuntimeError, ValueError) as error:
        name = PeftConfig.from_pretrained(adapter).base_model_name_or_path
        raise ValueError(
            f"The adapter in {adapter} does not fit its base {name} ({str(error).strip().splitlines()[0]}). Was the "
            "base replaced by another architecture or size?"
        ) from error


def end_with_the_tokenizer(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer's end token end what the model writes, as in training, and its pad token pad."""
    config = without_peft_wrapper(model).generation_config
    config.eos_token_id = list(end_token_ids(without_peft_wrapper(model), tokenizer))
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = config


@dataclass(frozen=True)
class Base:
    """What is known of an adapter's base before its weights are loaded.

    Attributes:
        name: its folder or Hub id.
        record: of the training; None where the adapter has none.
        stored: how its weights are stored quantised.
    """

    name: str
    record: TrainingRecord | None
    stored: dict[str, Any] | None

    @property
    def recorded(self) -> dict[str, Any] | None:
        """The quantisation it was trained on."""
        return self.stored if self.record is None else self.record.quantization_config


def find_base(adapter: str | Path) -> Base:
    """Raises ValueError where `adapter` is no adapter's folder, or its base is gone."""
    check_is_adapter(adapter)
    name = base_name(adapter)
    places = [Path(name), Path(adapter, name)]
    name = str(next((place for place in places if place.is_dir()), name))
    check_is_no_adapter(name)
    record = TrainingRecord.load(adapter)
    try:
        config = AutoConfig.from_pretrained(name, revision=record and record.base_revision)
    except (OSError, KeyError, ValueError) as error:
        looked = "" if Path(name).is_dir() else f"there is no folder {' or '.join(str(p.absolute()) for p in places)}"
        reason = str(error).strip().splitlines()[0]
        reason = looked if looks_like_a_path(name) else f"{looked}; {reason}" if looked else reason
        raise ValueError(
            f"The adapter's base model {name} cannot be loaded ({reason}). Put it back, or set "
            f"base_model_name_or_path in {Path(adapter, 'adapter_config.json')} to where it lies."
        ) from error
    return Base(name, record, stored_quantization(config))


def load_base(
    adapter: str | Path, weights: Literal["trained", "dequantized", "original"] = "trained"
) -> PreTrainedModel:
    """The base of an adapter.

    Args:
        adapter: the adapter's folder.
        weights: as they were in training, the same dequantised, or as they were before they were quantised for it.

    Raises:
        ValueError: `adapter` is no adapter's folder, or its base is gone.
    """
    base = find_base(adapter)
    record = base.record or TrainingRecord(base.name)
    dequantize = weights == "dequantized" or base.recorded is None
    with readable_weights(base.name):
        model = AutoModelForCausalLM.from_pretrained(
            base.name,
            revision=record.base_revision,
            dtype=record.dtype,
            quantization_config=to_load_with(
                base.stored, None if weights == "original" else base.recorded, dequantize=dequantize
            ),
            device_map=_device(),
        )
    keep_4bit_weights_in_place(model)
    if dequantize and is_quantized(model):
        model = model.dequantize()
    save_as_it_is(model)
    if record.num_embeddings and model.get_input_embeddings().num_embeddings != record.num_embeddings:
        model.resize_token_embeddings(record.num_embeddings, mean_resizing=False)
    return model


def base_name(adapter: str | Path) -> str:
    """Path or Hub id of the base that an adapter's folder names.

    Raises:
        ValueError: its adapter_config.json is broken, or names none.
    """
    path = Path(adapter, "adapter_config.json")
    try:
        name = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Take it anew from the training's folder.") from error
    if not name:
        raise ValueError(f"{path} names no base_model_name_or_path. Take it anew from the training's folder.")
    return name


def check_is_adapter(folder: str | Path) -> None:
    check_folder(folder)
    if not is_adapter(folder):
        raise ValueError(f"{folder} holds no adapter_config.json, so it is no adapter. Name a training's output_dir.")


def check_is_no_adapter(base: str | Path) -> None:
    """Raise ValueError where a base model's folder holds an adapter."""
    if is_adapter(base):
        raise ValueError(
            f"The base model {base} is an adapter itself. Merge it first (warmup-peft merge --adapter {base} "
            f"--output_dir {base}-merged) and name the merged folder."
        )


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or Hub id.

    Raises:
        ValueError: there is none, or it has neither a pad nor an end token.
    """
    if looks_like_a_path(str(name)) and not Path(name).is_dir():
        raise ValueError(f"The model folder {name} does not exist. Name a folder, or a model's id on the Hub.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        mend = "Save the model's tokenizer into the same folder."
        if not Path(name).is_dir():
            mend = "Check its id and the network, or name a local folder."
        raise ValueError(f"{name} gives no tokenizer ({str(error).strip().splitlines()[0]}). {mend}") from error
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {name} has no eos_token, so neither warmup nor answer could end. Set eos_token in its "
            "tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def looks_like_a_path(name: str) -> bool:
    """Whether this can be no id on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _device() -> dict[str, str]:
    return {"": "cuda:0" if torch.cuda.is_available() else "cpu"}
