"""The folder of an adapter or of a merged model: the names of its files, its settings and the record of its training.

To add a file, add its name to one of the groups below. The lists of files that a training replaces, a merge copies and
a push uploads are built from these groups.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from warmup_peft.files import near_path, read_json, write_json

CARD_NAME = "README.md"
ADAPTER_CONFIG_NAME = "adapter_config.json"
WARMUP_CONFIG_NAME = "warmup_config.json"
TRAINING_RECORD_NAME = "warmup_training.json"
DECODING_NAME = "custom_generate/generate.py"
METRICS_NAME, HARNESS_NAME = "metrics.json", "harness.json"
PAGE_NAME, CURVES_NAME = "training.html", "training.png"

ADAPTER = (ADAPTER_CONFIG_NAME, "adapter_model.safetensors")
SETTINGS = (WARMUP_CONFIG_NAME, TRAINING_RECORD_NAME)  # written by our trainer; copied by a merge
SCORES = (METRICS_NAME, HARNESS_NAME)  # they belong to the weights beside them, so a merge does not copy them
TRAINER_STATE_NAME = "trainer_state.json"  # transformers' name
TRAINING_STATE = (TRAINER_STATE_NAME, "training_args.bin", PAGE_NAME)  # stays here: it may show rows of the data
MODEL_CONFIGS = ("config.json", "generation_config.json")
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = ("tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json",
             "vocab.txt", "merges.txt", "*.model", "*.jinja")  # fmt: skip
WEIGHTS = ("adapter_model*.safetensors", "model*.safetensors")

RUN_FILES = (*ADAPTER, *SETTINGS, DECODING_NAME, *TRAINING_STATE, *SCORES, CURVES_NAME)  # replaced by a new run
PUSHED = (CARD_NAME, "LICENSE*", "NOTICE*", *ADAPTER, *MODEL_CONFIGS, *WEIGHTS, "model.safetensors.index.json",
          *TOKENIZER, *SETTINGS, *SCORES, CURVES_NAME)  # fmt: skip
MAY_NAME_PLACES = (
    ADAPTER_CONFIG_NAME,
    *MODEL_CONFIGS,
    TOKENIZER_CONFIG,
    *SETTINGS,
    *SCORES,
)  # may contain local paths


def check_folder(folder: str | Path) -> None:
    """Raise ValueError if the folder does not exist."""
    if not Path(folder).is_dir():
        raise ValueError(f"The folder {folder} does not exist. Name the output_dir of a training or of a merge.")


def is_adapter(folder: str | Path) -> bool:
    return Path(folder, ADAPTER_CONFIG_NAME).is_file()


def training_seconds(folder: str | Path) -> float | None:
    """Seconds that the training of this folder took; None where it does not say so."""
    try:
        logs = read_json(Path(folder, TRAINER_STATE_NAME))["log_history"]
        return next((log["train_runtime"] for log in reversed(logs) if "train_runtime" in log), None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_is_adapter(folder: str | Path) -> None:
    """Raise ValueError if the folder does not exist or holds no adapter."""
    check_folder(folder)
    if not is_adapter(folder):
        raise ValueError(
            f"{folder} has no {ADAPTER_CONFIG_NAME}, so it is not an adapter. Name a training's output_dir."
        )


def check_is_no_adapter(base: str | Path) -> None:
    """Raise ValueError if the folder of the base model holds an adapter."""
    if is_adapter(base):
        raise ValueError(adapter_as_base(base))


def adapter_as_base(base: str | Path) -> str:
    return (
        f"The base model {base} is an adapter itself. Merge it first (warmup-peft merge --adapter {base} "
        f"--output_dir {base}-merged) and name the merged folder; or train it on, in a script, with model="
        f"PeftModel.from_pretrained(<its base>, '{base}', is_trainable=True)."
    )


def check_model_folder(name: str) -> None:
    """Raise ValueError if this can only be the path of a model, and there is no such folder."""
    if looks_like_a_path(name) and not Path(name).is_dir():
        raise ValueError(
            f"The model folder {name} does not exist. Name a folder, or a model's id on the Hub.{near_path(name)}"
        )


def check_named_folder(name: str, revision: str | None = None) -> bool:
    """Whether there is a folder of this name; if not, it may be an id on the Hub.

    Raises:
        ValueError: it can only be a folder, and there is none; or a revision is given for a folder.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a local folder, which has no revisions. Leave --revision={revision} out.")
        return True
    # beside folders that are here: a typing error, and no id
    if looks_like_a_path(name) or "/" not in name or Path(name).parent.is_dir():
        check_folder(name)
    return False


def check_can_be_pushed(folder: str | Path) -> None:
    """Raise ValueError if the folder holds neither an adapter nor a model."""
    check_folder(folder)
    if not is_adapter(folder) and not Path(folder, "config.json").is_file():
        raise ValueError(f"{folder} is neither an adapter nor a model. Name the output_dir of a training or a merge.")


def looks_like_a_path(name: str) -> bool:
    """Whether this name is a path for certain, because it cannot be an id on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def looks_local(name: str) -> bool:
    """Whether the name of a model or data set is a local path, not an id on the Hub."""
    return looks_like_a_path(name) or name.startswith("hf://") or Path(name).exists()


@dataclass(frozen=True)
class WarmupConfig:
    """The settings that decoding needs.

    Attributes:
        warmup_separator: text of the separator, for people to read.
        warmup_separator_ids: token ids of the separator; these are inserted.
        max_warmup_length: W, in tokens. 0 means no warmup and no separator: plain `generate`.
        end_token_ids: tokens that ended a warmup in training. The end tokens of the generation config end it too.
        warmup_opening, warmup_opening_ids: text and token ids that stand between prompt and warmup.
        writes_separator: whether the model was trained to write opening and separator by itself, so that plain
            `generate` answers in one call.
        uses_chat_template: whether the prompts were conversations.
        chat_template_kwargs: what their chat template was given.
    """

    warmup_separator: str
    warmup_separator_ids: list[int]
    max_warmup_length: int
    end_token_ids: list[int] = field(default_factory=list)
    warmup_opening: str = ""
    warmup_opening_ids: list[int] = field(default_factory=list)
    writes_separator: bool = False
    uses_chat_template: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """The largest number of tokens that opening, warmup and separator take together."""
        around = len(self.warmup_opening_ids) + len(self.warmup_separator_ids)
        return self.max_warmup_length and self.max_warmup_length + around

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder, WARMUP_CONFIG_NAME), asdict(self))

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        return Path(folder, WARMUP_CONFIG_NAME).is_file()

    @classmethod
    def load(cls, folder: str | Path) -> WarmupConfig:
        """Read `warmup_config.json` of a local folder. Raises ValueError if it is missing or broken."""
        check_folder(folder)
        path = Path(folder, WARMUP_CONFIG_NAME)
        if not cls.is_in(folder):
            raise ValueError(
                f"{folder} has no {WARMUP_CONFIG_NAME}, so it is not a warmup adapter, or its training was cut off. "
                "Name the output_dir of a training. Other models are decoded with plain `generate`."
            )
        try:
            config = cls(**read_json(path))
            ids = [*config.warmup_opening_ids, *config.warmup_separator_ids, *config.end_token_ids]
            numbers = [*ids, config.max_warmup_length]
            if not all(isinstance(number, int) for number in numbers):  # they become code in the folder and its card
                raise TypeError("max_warmup_length and token ids must be whole numbers")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Copy it again from the training's folder.") from error
        return config


@dataclass
class TrainingRecord:
    """How an adapter was trained. Merging, scoring and the model card read it.

    Attributes:
        base_model: name or path of the base model.
        base_revision: commit of the base model on the Hub, if known.
        dtype: dtype of the base model, such as "bfloat16".
        quantization_config: quantisation of the base model in training, as given to transformers; None if it was not
            quantised, or dequantised for training.
        num_embeddings: rows of the base model's embeddings in training. A chat template with new tokens adds rows.
        settings: options of the method and of the training.
        data: where the rows came from and how they were read.
        versions: versions of the packages used.
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
        """Read `warmup_training.json` of a local folder. Unknown fields are ignored; returns None if there is no file.

        Raises:
            ValueError: the file is broken.
        """
        path = Path(folder, TRAINING_RECORD_NAME)
        if not path.is_file():
            return None
        try:
            values = read_json(path)
            return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Copy it again from the training's folder.") from error
