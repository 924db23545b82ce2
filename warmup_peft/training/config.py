"""`WarmupSFTConfig`: TRL's `SFTConfig` and the method's own options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from transformers.utils.logging import get_logger
from trl import ModelConfig, ScriptArguments, SFTConfig

from warmup_peft.settings import arguments
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.parsing import typed
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.early import check_refused

logger = get_logger(__name__)

ADAPTER_LEARNING_RATE = 2e-4  # LoRA's usual one: some ten times the best of full fine-tuning, as TRL's default is
TRACKER_PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit"}  # all others are called as the tracker is


@dataclass
class WarmupSFTConfig(WarmupOptions, SFTConfig):
    """Settings of `WarmupSFTTrainer`: every field of TRL's `SFTConfig`, and those of `WarmupOptions`.

    `temperature`, `top_k`, `top_p` and `min_p` concern the warmups; `warmup_steps` is the learning rate's, as in TRL.

    Attributes:
        notes: sentences about what was chosen because it is not set; the trainer says them once nothing is refused.

    Raises:
        ValueError: a value that cannot work, naming the field and the fix.
    """

    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "AdamW's learning rate at its highest. The default is 2e-4 for an adapter, which needs about ten "
            "times what a whole model does, and otherwise TRL's 2e-5."
        },
    )

    def __post_init__(self):
        self.notes: list[str] = []
        self.check_warmup_options()
        check_refused(self)
        self._check_bf16()
        if 0 < self.max_steps <= self.hindsight_steps:
            self.notes.append(
                f"All {self.max_steps} steps are within hindsight_steps={self.hindsight_steps}, so what is written as "
                "a warmup is not trained. Lower hindsight_steps to half of the steps or less."
            )
        super().__post_init__()
        check_trackers(self.report_to)
        check_processes(self)

    def _check_bf16(self) -> None:
        """Without an accelerator, leave bf16 off and note it: TRL's default is on, which transformers refuses."""
        is_accelerated = not self.use_cpu and (is_torch_bf16_gpu_available() or is_torch_xla_available())
        asked: bool | None = self.bf16  # type: ignore[has-type]  # TRL's
        if asked and not (is_accelerated or self.use_cpu):
            raise ValueError(
                "bf16=True needs a GPU that computes in bfloat16, and this machine has none. Leave bf16 out or set it "
                "to false."
            )
        if asked is None and not self.fp16 and not is_accelerated:
            self.bf16 = False
            where = "use_cpu is set" if self.use_cpu else "this machine has no GPU that computes in bfloat16"
            self.notes.append(
                f"bf16 is not set, and {where}: bf16 is off. Training computes in the model's own dtype (float32, "
                "unless dtype says another)."
            )


def check_processes(args: SFTConfig) -> None:
    """Raise ValueError where several processes were started that do not know of each other."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started > args.world_size == 1:
        raise ValueError(
            f"{started} processes were started, and there are no GPUs for them, so each would train alone, into the "
            "same folder. Start one process, or set use_cpu to true, with which they train together."
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a `report_to` that transformers does not know, or whose package is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"report_to={name} is no tracker that transformers knows. Choose from "
                f"{', '.join(INTEGRATION_TO_CALLBACK)}, or set it to none."
            )
        if name not in get_available_reporting_integrations():
            package = TRACKER_PACKAGES.get(name, name)
            raise ValueError(
                f"report_to={name} needs the package {package}, which is not installed. Run: pip install {package}; "
                "or set report_to to none."
            )


def choose_learning_rate(args: WarmupSFTConfig, has_adapter: bool) -> None:
    """Set `learning_rate` where the user did not, and note so where it is not TRL's."""
    if args.learning_rate is not None:
        return
    args.learning_rate = ADAPTER_LEARNING_RATE if has_adapter else SFTConfig.learning_rate
    if has_adapter:
        args.notes.append(
            f"learning_rate is not set: {ADAPTER_LEARNING_RATE:g}, as is usual for adapters (TRL's default, "
            f"{SFTConfig.learning_rate:g}, is for whole models)."
        )


def say_notes(args: WarmupSFTConfig) -> None:
    """Say, once, what was chosen because it is not set."""
    for note in args.notes:
        logger.warning_once(note)


TRAINING_KINDS = (ScriptArguments, arguments.RunOptions, WarmupSFTConfig, ModelConfig)


class TrainingSettings(NamedTuple):
    """All settings of a training.

    Attributes:
        script: the dataset, in TRL's options.
        run: the task, the rows and whether to overwrite, in our options.
        training: the trainer's settings.
        model: the base model, its quantization and its adapter, in TRL's options.
    """

    script: ScriptArguments
    run: arguments.RunOptions
    training: WarmupSFTConfig
    model: ModelConfig

    @classmethod
    def of(cls, recipe: Recipe) -> TrainingSettings:
        """The settings of a recipe of `TRAINING_KINDS`. Raises ValueError for a value that cannot work.

        Two defaults are not TRL's: `lora_dropout` is 0, without which prompts cannot be encoded once, and see
        `choose_learning_rate`.
        """
        settings = cls(*recipe.settings())
        if "lora_dropout" not in recipe.values:
            settings.model.lora_dropout = 0.0
        choose_learning_rate(settings.training, has_adapter=settings.model.use_peft)
        return settings


def read_recipe(recipe: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """The recipe in a YAML file, or with these keys and values.

    Raises:
        ValueError: a file that is missing, an unknown option, or a value of the wrong kind.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe(TRAINING_KINDS, typed(TRAINING_KINDS, recipe, "The recipe"))
    return Recipe.read(["--config", str(recipe)], *TRAINING_KINDS)


def parse_training(argv: Sequence[str]) -> TrainingSettings:
    """The settings of a command line with `--config`.

    Raises:
        ValueError: an unknown option, a value of the wrong kind or one that cannot work, or a file that is missing.
    """
    return TrainingSettings.of(Recipe.read(argv, *TRAINING_KINDS))
