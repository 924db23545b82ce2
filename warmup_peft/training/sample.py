"""Sample the warmups that an adapter will be trained on, and train nothing: `warmup_peft.sample_warmups`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmup_peft.files import saying_where_the_disk_is_full
from warmup_peft.inference.server import CompletionsClient, ServerError, sample_from_server
from warmup_peft.settings.arguments import SampleOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.build import build_trainer
from warmup_peft.training.config import TrainingSettings, read_recipe
from warmup_peft.training.pool import PROMPTS_PER_FILE, SampleFunction, WarmupPool
from warmup_peft.training.trainer import WarmupSFTTrainer


def sample_warmups(recipe: str | Path | Mapping[str, Any] | Recipe, **options: Any) -> WarmupPool:
    """Sample the warmups of a training with `warmup_source: base`: `warmup_pool_size` (M) for each distinct prompt.

    They lie in `warmup_pool`, by default a folder of that name in the recipe's `output_dir`. What is there is kept, so
    the same call goes on where it was interrupted. A training with `warmup_source: base` then takes them.

    Args:
        recipe: a YAML file, or its keys and values, as of `warmup-peft sample`.
        options: `base_url`, an OpenAI-compatible server of the base model that returns token ids, to sample from
            instead of the model loaded here; `served_model`, its name there; `server_timeout`, seconds for an answer.

    Returns:
        The pool: its `folder`, `num_samples` (M), and `len(pool)` prompts. `pool.sample(prompt, K, ...)` gives
        `Warmups` (B, K, W) of prompts (B, P).

    Raises:
        ValueError: bad input, before a model is loaded; a pool of another model or distribution; or a server that
            fails. What was sampled until then is kept.
        OSError: the disk is full. What was sampled until then is kept.
    """
    options = SampleOptions(**options)
    if options.base_url is None and options.served_model is not None:
        raise ValueError("--served_model belongs to --base_url. Set the server's address too.")
    settings = TrainingSettings.of(read_recipe(recipe).with_overrides({"warmup_source": "base"}))
    trainer = build_trainer(settings)
    sampler = None if options.base_url is None else server_sampler(trainer, settings, options)
    folder = settings.training.warmup_pool or settings.training.output_dir
    again = "What was sampled until then is kept: free some space and run the same command again."
    try:
        with saying_where_the_disk_is_full(folder, lambda: again):
            return trainer.fill_warmup_pool(sampler)
    except ServerError as error:
        raise ServerError(
            f"{error} The same command goes on from there: every {PROMPTS_PER_FILE} prompts, the samples are saved in "
            f"{folder}."
        ) from error


def server_sampler(trainer: WarmupSFTTrainer, settings: TrainingSettings, options: SampleOptions) -> SampleFunction:
    """Samples from the base model that a server holds."""
    name = options.served_model or settings.model.model_name_or_path
    client = CompletionsClient(options.base_url, name, timeout=options.server_timeout)
    num_warmups = settings.training.warmup_pool_size
    return sample_from_server(client, dataclasses.replace(trainer.sampling, num_warmups=num_warmups))
