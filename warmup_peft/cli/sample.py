"""`warmup-peft sample`: from a recipe to the warmups that an adapter will be trained on."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import PartialState

from warmup_peft.settings.arguments import SampleOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.config import TRAINING_KINDS
from warmup_peft.training.sample import sample_warmups


def run(argv: Sequence[str]) -> None:
    """Sample the warmups of a training with `warmup_source: base`, and train nothing.

    Raises:
        ValueError: as `sample_warmups`.
    """
    recipe = Recipe.read(argv, *TRAINING_KINDS, SampleOptions)
    (options,) = recipe.restricted_to(SampleOptions).settings()
    pool = sample_warmups(recipe.restricted_to(*TRAINING_KINDS), **vars(options))
    if PartialState().is_main_process:
        print(f"{pool.num_samples} warmups for each of {len(pool):,} prompts lie in {pool.folder}")
        print(f"Train with them: --warmup_source base --warmup_pool {pool.folder}")
