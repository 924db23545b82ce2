"""Load an adapter with its base model, in the precision it was trained in, or load a merged model.

`warmup_training.json` beside the adapter says how the base model was loaded for training. Does not import trl.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

from warmup_peft.files import first_line, near_path
from warmup_peft.inference.folder import (
    ADAPTER_CONFIG_NAME,
    TrainingRecord,
    WarmupConfig,
    adapter_as_base,
    check_is_adapter,
    check_is_no_adapter,
    check_model_folder,
    is_adapter,
    looks_like_a_path,
)
from warmup_peft.inference.generation import end_token_ids
from warmup_peft.inference.hub import check_at_hand, check_main_branch, is_adapter_repo, local_folder
from warmup_peft.inference.quantization import (
    is_quantized,
    keep_4bit_weights_in_place,
    save_as_it_is,
    stored_quantization,
    to_load_with,
)
from warmup_peft.method.model import without_peft_wrapper
from warmup_peft.settings.arguments import check_placing

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        device: such as "cuda:1"; by default the first GPU, else the CPU.
        device_map: transformers' `device_map` for a model that is larger than a card; instead of `device`.
        trust_remote_code: run Python code that the model or its tokenizer brings with it.

    Raises:
        ValueError: a device that is not there.
    """

    device: str | None = None
    device_map: str | dict[str, Any] | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        check_placing(self)
        if self.device is not None:
            check_device(self.device)

    @classmethod
    def of(cls, options: Any) -> Loading:
        """As the options of a command say."""
        return cls(options.device, getattr(options, "device_map", None), options.trust_remote_code)

    @property
    def keywords(self) -> dict[str, Any]:
        """What `from_pretrained` takes."""
        first = "cuda:0" if torch.cuda.is_available() else "cpu"
        return {
            "device_map": self.device_map or {"": self.device or first},
            "trust_remote_code": self.trust_remote_code,
        }


def check_device(name: str) -> None:
    """Raise ValueError if this is no device, or one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name} is no device. Choose cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cpu":
        return
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if found is not None and found.type == device.type else 0
    if (device.index or 0) >= count:
        raise ValueError(f"device={name} is not there: torch sees {count} of that kind. Choose another, or cpu.")


@dataclass
class LoadedModel:
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    warmup_config: WarmupConfig
    record: TrainingRecord | None


def put_adapter_first(folder: str | Path, model: nn.Module) -> None:
    """Move the files of a PeftModel's only adapter to the top of the saved folder, where every loader looks for them.

    peft saves an adapter that is not called "default" into a subfolder of its name.
    """
    names = list(model.peft_config) if isinstance(model, PeftModel) else []
    if len(names) != 1 or names == ["default"]:
        return
    place = Path(folder, names[0])
    for name in (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME):
        os.replace(place / name, Path(folder, name))
    if not any(place.iterdir()):
        place.rmdir()


def load_folder(folder: str | Path, loading: Loading = Loading()) -> LoadedModel:
    """Load an adapter's folder, or a merged model's, for inference.

    Raises:
        ValueError: the folder is neither of them, or the adapter's base model cannot be loaded.
    """
    warmup_config = WarmupConfig.load(folder)
    record = TrainingRecord.load(folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=loading.trust_remote_code)
    check_separator(folder, warmup_config, tokenizer)
    if is_adapter(folder):
        model = put_adapter_on(load_base(folder, loading=loading), folder)
    else:
        model = load_whole(folder, loading)
    end_with_the_tokenizer(model, tokenizer)
    return LoadedModel(model.eval(), tokenizer, warmup_config, record)


def load_adapter(
    folder: str | Path,
    *,
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load an adapter with its base model, quantised as in training, or a merged model; in evaluation mode.

    Answer with `warmup_generate(model, **inputs, warmup_config=folder)`, where the folder is a local one: that of an
    id is `huggingface_hub.snapshot_download(id, revision=...)`.

    Args:
        folder: of an adapter or of a merged model, or its id on the Hub.
        device: such as "cuda:1" or "cpu"; by default the first GPU, else the CPU.
        device_map: transformers' `device_map` for a model that is larger than a card; instead of `device`.
        revision: branch, tag or commit of an id on the Hub; by default its main branch.
        trust_remote_code: run the Python code that the model or its tokenizer brings with it.

    Raises:
        ValueError: the folder is neither of them, the adapter's base model cannot be loaded, or the device is not
            there.
    """
    loaded = load_folder(local_folder(str(folder), revision), Loading(device, device_map, trust_remote_code))
    return loaded.model, loaded.tokenizer


def load_whole(folder: str | Path, loading: Loading = Loading()) -> PreTrainedModel:
    """Load a model without an adapter. Raises ValueError if its weights are broken."""
    with readable_weights(folder), trusted_code(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **loading.keywords)


@contextmanager
def trusted_code(name: str | Path) -> Iterator[None]:
    """Say in a sentence that a model brings code which was not to be run."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name} brings Python code of its own, which was not run. Read it, and add --trust_remote_code true."
        ) from error


@contextmanager
def readable_weights(name: str | Path) -> Iterator[None]:
    """Turn the errors that libraries raise for broken weights into a ValueError.

    Raises:
        ValueError: the weights are truncated or do not match the model's configuration.
        torch.OutOfMemoryError: passed on unchanged.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"The model {name} cannot be loaded ({first_line(error)}). Are its weights truncated, or "
            "do they belong to another config.json? Copy it again."
        ) from error


def check_separator(folder: str | Path, config: WarmupConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tokenizer splits the separator differently than in training."""
    ids = tokenizer(config.warmup_separator, add_special_tokens=False)["input_ids"]
    if ids != config.warmup_separator_ids:
        raise ValueError(
            f"The separator {config.warmup_separator!r} had the token ids {config.warmup_separator_ids} in training, "
            f"but the tokenizer in {folder} gives {ids}. Put back the tokenizer of the training."
        )


def why_no_base(config: PeftConfig) -> str | None:
    """The reason why the model with this adapter disabled differs from the base model; None if it does not."""
    init = str(getattr(config, "init_lora_weights", ""))
    if init.lower().startswith(CHANGES_BASE):
        return f"init_lora_weights='{init}' changes the base's own weights"
    bias = getattr(config, "bias", "none")
    if bias != "none":
        return f"bias='{bias}' trains the base's own biases"
    if getattr(config, "layer_replication", None):
        return "layer_replication repeats the base's own layers"
    return None


def switches_off(model: PeftModel) -> bool:
    """Whether the model with its adapter disabled is its base, however long it is trained."""
    trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return not any(map(why_no_base, model.peft_config.values())) and all(
        is_of_adapter(name, model) for name in trained
    )


def is_of_adapter(name: str, model: PeftModel) -> bool:
    """Whether a parameter or buffer of this name belongs to an adapter, not to the base model."""
    return any(part in name for part in (f".{model.base_model.prefix}", ".modules_to_save.", ".trainable_tokens_"))


def context_length(config: PretrainedConfig) -> int | None:
    """Maximum number of tokens that the model can process; None if its configuration sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def put_adapter_on(base: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """Raises ValueError if the adapter is truncated or was made for another architecture."""
    try:
        return PeftModel.from_pretrained(base, adapter)
    except torch.OutOfMemoryError:
        raise
    except SafetensorError as error:
        raise ValueError(
            f"{Path(adapter, 'adapter_model')}.safetensors cannot be read ({error}). Is it truncated? Copy it again."
        ) from error
    except (RuntimeError, ValueError) as error:
        name = PeftConfig.from_pretrained(adapter).base_model_name_or_path
        raise ValueError(
            f"The adapter in {adapter} does not fit its base model {name} ({first_line(error)}). "
            "Was the base model replaced by one of another architecture or size?"
        ) from error


def end_with_the_tokenizer(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make generation end at the tokenizer's end token, as in training, and pad with its pad token if none is set."""
    config = without_peft_wrapper(model).generation_config
    config.eos_token_id = list(end_token_ids(without_peft_wrapper(model), tokenizer))
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = config


@dataclass(frozen=True)
class Base:
    """An adapter's base model, before its weights are loaded.

    Attributes:
        name: folder or Hub id.
        record: record of the training; None if the adapter has none.
        stored: quantisation that the weights are stored in; None if they are not quantised.
    """

    name: str
    record: TrainingRecord | None
    stored: dict[str, Any] | None

    @property
    def recorded(self) -> dict[str, Any] | None:
        """Quantisation of the base model in training."""
        return self.stored if self.record is None else self.record.quantization_config


def find_base(adapter: str | Path, trust_remote_code: bool = False) -> Base:
    """Find the base model of an adapter. Raises ValueError if the folder holds no adapter, or the base is missing."""
    check_is_adapter(adapter)
    name = base_name(adapter)
    places = [Path(name), Path(adapter, name)]
    name = str(next((place for place in places if place.is_dir()), name))
    check_is_no_adapter(name)
    record = TrainingRecord.load(adapter)
    try:
        check_at_hand(name)
        with trusted_code(name):
            config = AutoConfig.from_pretrained(
                name, revision=record and record.base_revision, trust_remote_code=trust_remote_code
            )
    except (OSError, KeyError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise
        looked = "" if Path(name).is_dir() else f"there is no folder {' or '.join(str(p.absolute()) for p in places)}"
        reason = first_line(error)
        reason = looked if looks_like_a_path(name) else f"{looked}; {reason}" if looked else reason
        raise ValueError(
            f"The adapter's base model {name} cannot be loaded ({reason}). Put it back, or set "
            f"base_model_name_or_path in {Path(adapter, ADAPTER_CONFIG_NAME)} to its place."
        ) from error
    return Base(name, record, stored_quantization(config))


def load_base(
    adapter: str | Path,
    weights: Literal["trained", "dequantized", "original"] = "trained",
    loading: Loading = Loading(),
) -> PreTrainedModel:
    """Load the base model of an adapter.

    Args:
        adapter: folder of the adapter.
        weights: "trained" loads them as in training, "dequantized" dequantises these, and "original" loads them as
            they were before quantisation.
        loading: where to, and whether the base's own code may run.

    Raises:
        ValueError: the folder holds no adapter, or the base model is missing.
    """
    base = find_base(adapter, loading.trust_remote_code)
    record = base.record or TrainingRecord(base.name)
    dequantize = weights == "dequantized" or base.recorded is None
    quantization = to_load_with(base.stored, None if weights == "original" else base.recorded, dequantize=dequantize)
    chosen = {} if quantization is None else {"quantization_config": quantization}  # None would hide what is stored
    with readable_weights(base.name):
        model = AutoModelForCausalLM.from_pretrained(
            base.name, revision=record.base_revision, dtype=record.dtype, **chosen, **loading.keywords
        )
    keep_4bit_weights_in_place(model)
    if dequantize and is_quantized(model):
        model = model.dequantize()
    save_as_it_is(model)
    if record.num_embeddings and model.get_input_embeddings().num_embeddings != record.num_embeddings:
        model.resize_token_embeddings(record.num_embeddings, mean_resizing=False)
    return model


def base_name(adapter: str | Path) -> str:
    """Path or Hub id of an adapter's base model, from its adapter_config.json.

    Raises:
        ValueError: adapter_config.json is broken or names no base model.
    """
    path = Path(adapter, ADAPTER_CONFIG_NAME)
    try:
        name = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Copy it again from the training's folder.") from error
    if not name:
        raise ValueError(f"{path} names no base_model_name_or_path. Copy it again from the training's folder.")
    return name


def check_trainable(base: str, revision: str | None = None) -> None:
    """Raise ValueError if the base model, a folder or an id on the Hub, is an adapter, or TRL could not load it."""
    check_is_no_adapter(base)
    if is_adapter_repo(base, revision):
        raise ValueError(adapter_as_base(base))
    check_main_branch(base, revision)


def check_is_there(name: str) -> None:
    """Raise ValueError if this model is neither here nor to be had from the Hub, as far as that is known at once."""
    check_model_folder(name)
    check_at_hand(name)


def load_tokenizer(
    name: str | Path, revision: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder or Hub id.

    Raises:
        ValueError: there is no tokenizer, or it has no end token.
    """
    check_is_there(str(name))
    try:
        with trusted_code(name):
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise
        fix = "Save the model's tokenizer into the same folder."
        if not Path(name).is_dir():
            fix = f"Check its id and the network, or name a local folder.{near_path(str(name))}"
        raise ValueError(f"{name} gives no tokenizer ({first_line(error)}). {fix}") from error
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer of {name} has no eos_token, so neither warmup nor answer could end. Set eos_token in its "
            "tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
