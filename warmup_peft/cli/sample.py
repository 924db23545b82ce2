"""`warmup-peft sample`: from a recipe to the warmups that an adapter will be trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from warmup_peft.files import saying_where_the_disk_is_full
from warmup_peft.inference.server import CompletionsClient, ServerError, sample_from_server
from warmup_peft.settings.arguments import SampleOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.build import build_trainer
from warmup_peft.training.config import TRAINING_KINDS, TrainingSettings
from warmup_peft.training.pool import PROMPTS_PER_FILE


def run(argv: Sequence[str]) -> None:
    recipe = Recipe.read(argv, *TRAINING_KINDS, SampleOptions).with_overrides({"warmup_source": "base"})
    (options,) = recipe.restricted_to(SampleOptions).settings()
    run_sampling(TrainingSettings.of(recipe.restricted_to(*TRAINING_KINDS)), options)


def run_sampling(settings: TrainingSettings, options: SampleOptions) -> None:
    """Sample the warmups of a training with `warmup_source: base`, and train nothing.

    Raises:
        ValueError: bad input, before a model is loaded; or a server that fails. What was sampled until then is kept.
    """
    if options.base_url is None and options.served_model is not None:
        raise ValueError("--served_model belongs to --base_url. Set the server's address too.")
    trainer = build_trainer(settings)
    sampler = None if options.base_url is None else server_sampler(trainer, settings, options)
    folder = settings.training.warmup_pool or settings.training.output_dir
    again = "What was sampled until then is kept: free some space and run the same command again."
    try:
        with saying_where_the_disk_is_full(folder, lambda: again):
            pool = trainer.fill_warmup_pool(sampler)
    except ServerError as error:
        raise ServerError(
            f"{error} The same command goes on from there: every {PROMPTS_PER_FILE} prompts, the samples are saved in "
            f"{folder}."
        ) from error
    if trainer.is_world_process_zero():
        print(f"{pool.num_samples} warmups for each of {len(pool):,} prompts lie in {pool.folder}")
        print(f"Train with them: --warmup_source base --warmup_pool {pool.folder}")


def server_sampler(trainer, settings: TrainingSettings, options: SampleOptions):
    """Samples from the base model that a server holds."""
    name = options.served_model or settings.model.model_name_or_path
    client = CompletionsClient(options.base_url, name, timeout=options.server_timeout)
    num_warmups = settings.training.warmup_pool_size
    return sample_from_server(client, dataclasses.replace(trainer.sampling, num_warmups=num_warmups))
