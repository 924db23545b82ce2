"""`WarmupSFTConfig`: TRL's `SFTConfig` and the method's own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trl import ModelConfig, ScriptArguments, SFTConfig

from warmup_peft.settings import arguments
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.recipe import Recipe

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
    "router_aux_loss_coef": "The load-balancing loss of mixture-of-experts models is not added to the warmup loss. "
    "Set router_aux_loss_coef to 0.",
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
        super().__post_init__()


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
        """The settings of a recipe of `TRAINING_KINDS`. Raises ValueError for a value that cannot work."""
        return cls(*recipe.settings())


def parse_training(argv: Sequence[str]) -> TrainingSettings:
    """The settings of a command line with `--config`.

    Raises:
        ValueError: an unknown option, a value of the wrong kind or one that cannot work, or a file that is missing.
    """
    return TrainingSettings.of(Recipe.read(argv, *TRAINING_KINDS))
