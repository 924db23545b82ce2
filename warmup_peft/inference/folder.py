"""What the folder of an adapter or of a merged model holds: names and lists of the files, settings, record.

A new file is one more name in one of the groups below. What a training replaces, what a merge copies and what a push
uploads are made of these groups.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from warmup_peft.files import read_json, write_json

CARD_NAME = "README.md"
ADAPTER_CONFIG_NAME = "adapter_config.json"
WARMUP_CONFIG_NAME = "warmup_config.json"
TRAINING_RECORD_NAME = "warmup_training.json"
DECODING_NAME = "custom_generate/generate.py"
METRICS_NAME, HARNESS_NAME = "metrics.json", "harness.json"

ADAPTER = (ADAPTER_CONFIG_NAME, "adapter_model.safetensors")
SETTINGS = (WARMUP_CONFIG_NAME, TRAINING_RECORD_NAME)  # what a training leaves of its own; a merge copies them
SCORES = (METRICS_NAME, HARNESS_NAME)  # of the weights that lie beside them, so a merge leaves them behind
TRAINING_STATE = ("trainer_state.json", "training_args.bin")
MODEL_CONFIGS = ("config.json", "generation_config.json")
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = ("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json",
             "vocab.txt", "merges.txt", "*.model", "*.jinja")  # fmt: skip
WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors")

RUN_FILES = (*ADAPTER, *SETTINGS, DECODING_NAME, *TRAINING_STATE, *SCORES)  # replaced with the run
PUSHED = (CARD_NAME, "LICENSE*", "NOTICE*", *ADAPTER, *MODEL_CONFIGS, *WEIGHTS, "model.safetensors.index.json",
          *TOKENIZER, *SETTINGS, *SCORES)  # fmt: skip
MAY_NAME_PLACES = (ADAPTER_CONFIG_NAME, *MODEL_CONFIGS, TOKENIZER_CONFIG, *SETTINGS, *SCORES)  # local paths


def check_folder(folder: str | Path) -> None:
    """Raise ValueError where there is no such folder."""
    if not Path(folder).is_dir():
        raise ValueError(f"The folder {folder} does not exist. Name the output_dir of a training or of a merge.")


def is_adapter(folder: str | Path) -> bool:
    return Path(folder, ADAPTER_CONFIG_NAME).is_file()


def check_is_adapter(folder: str | Path) -> None:
    check_folder(folder)
    if not is_adapter(folder):
        raise ValueError(
            f"{folder} holds no {ADAPTER_CONFIG_NAME}, so it is no adapter. Name a training's output_dir."
        )


def looks_like_a_path(name: str) -> bool:
    """Whether this can be no id on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def looks_local(name: str) -> bool:
    """Whether a model or data set of this name lies on this machine, not on the Hub."""
    return looks_like_a_path(name) or name.startswith("hf://") or Path(name).exists()


@dataclass(frozen=True)
class WarmupConfig:
    """What decoding needs to know of an adapter's training.

    Attributes:
        warmup_separator: the separator's text, to be read by people.
        warmup_separator_ids: its token ids, which are what is inserted.
        max_warmup_length: W, in tokens. 0 is no warmup and no separator: plain `generate`.
        end_token_ids: tokens that ended warmups in training; those of the generation config end them too.
    """

    warmup_separator: str
    warmup_separator_ids: list[int]
    max_warmup_length: int
    end_token_ids: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens that a warmup and the separator take at most."""
        return self.max_warmup_length and self.max_warmup_length + len(self.warmup_separator_ids)

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder, WARMUP_CONFIG_NAME), asdict(self))

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        return Path(folder, WARMUP_CONFIG_NAME).is_file()

    @classmethod
    def load(cls, folder: str | Path) -> WarmupConfig:
        """Read `warmup_config.json` of a local folder; ValueError where there is none, or a broken one."""
        check_folder(folder)
        path = Path(folder, WARMUP_CONFIG_NAME)
        if not cls.is_in(folder):
            raise ValueError(
                f"{folder} holds no {WARMUP_CONFIG_NAME}, so it is no warmup adapter (or its training was cut off). "
                "Name the folder that the training wrote; plain `generate` decodes other models."
            )
        try:
            config = cls(**read_json(path))
            numbers = [*config.warmup_separator_ids, *config.end_token_ids, config.max_warmup_length]
            if not all(isinstance(number, int) for number in numbers):  # they become code in the folder and its card
                raise TypeError("max_warmup_length and token ids must be whole numbers")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Take it anew from the training's folder.") from error
        return config


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
        write_json(Path(folder, TRAINING_RECORD_NAME), asdict(self))

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
            values = read_json(path)
            return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Take it anew from the training's folder.") from error
