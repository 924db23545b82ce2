"""`WarmupSFTConfig`: TRL's `SFTConfig` and the method's own options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.integrations.deepspeed import is_deepspeed_available
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from transformers.utils.logging import get_logger
from trl import ModelConfig, ScriptArguments, SFTConfig

from warmup_peft.settings import arguments
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.parsing import typed
from warmup_peft.settings.recipe import Recipe

logger = get_logger(__name__)

ADAPTER_LEARNING_RATE = 2e-4  # LoRA's usual one: some ten times the best of full fine-tuning, as TRL's default is
TRACKER_PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit"}  # all others are called as the tracker is
NOT_COMPILED = (
    "The passes over prompts, warmups and targets change their shapes from batch to batch, and each shape is compiled "
    "anew: on a CPU no step ended within 200 seconds. Set {} to {}."
)
REFUSED_SETTINGS = {
    "packing": "Packed rows hold several examples, but a warmup stands between one prompt and one target. Set "
    "packing to false.",
    "eval_packing": "Packed rows hold several examples, but a warmup stands between one prompt and one target. Set "
    "eval_packing to false.",
    "padding_free": "Rows laid end to end leave no room for warmups. Set padding_free to false.",
    "label_smoothing_factor": "The objective is a likelihood; smoothed labels would train something else. Set "
    "label_smoothing_factor to 0.",
    "neftune_noise_alpha": "Warmups and the anchor's reference would be sampled without the noise of the training. "
    "Set neftune_noise_alpha to null.",
    "torch_compile": NOT_COMPILED.format("torch_compile", "false"),
    "torch_compile_backend": NOT_COMPILED.format("torch_compile_backend", "null"),
    "torch_compile_mode": NOT_COMPILED.format("torch_compile_mode", "null"),
    "batch_eval_metrics": "It feeds logits to compute_metrics, and the logits depend on the warmup. Set "
    "batch_eval_metrics to false.",
}


@dataclass
class WarmupSFTConfig(WarmupOptions, SFTConfig):
    """Settings of `WarmupSFTTrainer`: every field of TRL's `SFTConfig`, and those of `WarmupOptions`.

    `temperature`, `top_k`, `top_p` and `min_p` concern the warmups; `warmup_steps` is the learning rate's, as in TRL.

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
        self.check_warmup_options()
        for name, fix in REFUSED_SETTINGS.items():
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)} does not work with warmups. {fix}")
        if self.loss_type != "nll":
            raise ValueError(
                f"loss_type='{self.loss_type}' does not work with warmups: it reweights a plain likelihood. "
                "Set loss_type to 'nll'."
            )
        if self.completion_only_loss is False:
            raise ValueError(
                "completion_only_loss=False trains on the prompt too, but only the target after a warmup is "
                "supervised. Leave completion_only_loss out or set it to true."
            )
        self._check_deepspeed()
        self._check_strategies()
        self._check_bf16()
        if 0 < self.max_steps <= self.hindsight_steps:
            logger.warning_once(
                f"All {self.max_steps} steps are within hindsight_steps={self.hindsight_steps}, so what is written as "
                "a warmup is not trained. Lower hindsight_steps to half of the steps or less."
            )
        super().__post_init__()
        check_trackers(self.report_to)

    def _check_bf16(self) -> None:
        """Without an accelerator, leave bf16 off and say so: TRL's default is on, which transformers refuses there."""
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
            logger.warning_once(
                f"bf16 is not set, and {where}: bf16 is off. Training computes in the model's own dtype (float32, "
                "unless dtype says another)."
            )

    def _check_deepspeed(self) -> None:
        if self.deepspeed and not is_deepspeed_available():
            raise ValueError(
                f"deepspeed={self.deepspeed} needs the package deepspeed, which is not installed. Run: pip install "
                "deepspeed; or leave it out."
            )

    def _check_strategies(self) -> None:
        evaluated, saved = (str(getattr(x, "value", x)) for x in (self.eval_strategy, self.save_strategy))
        if self.load_best_model_at_end and saved not in (evaluated, "best"):
            raise ValueError(
                f"load_best_model_at_end needs a checkpoint at every evaluation, but eval_strategy is '{evaluated}' "
                f"and save_strategy is '{saved}'. Set both to 'steps', or both to 'epoch'."
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
    """Set `learning_rate` where the user did not, and say so where it is not TRL's."""
    if args.learning_rate is not None:
        return
    args.learning_rate = ADAPTER_LEARNING_RATE if has_adapter else SFTConfig.learning_rate
    if has_adapter:
        logger.warning_once(
            f"learning_rate is not set: {ADAPTER_LEARNING_RATE:g}, as is usual for adapters (TRL's default, "
            f"{SFTConfig.learning_rate:g}, is for whole models)."
        )


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
