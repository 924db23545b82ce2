"""Warmups from vLLM, through TRL's own generation class: in the training's process, or on a server.

vLLM gets weights, prompts and end tokens, and gives tokens with their log-probabilities. Where a warmup ends is
decided here, as for every other sampler, and the samples are scored again by the model itself: for the first batch to
be refused where the two disagree, and for the ratio of `warmup_peft.method.importance`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from trl.import_utils import is_vllm_available

from warmup_peft.method.branches import Branches, Warmups, prefix_mask, sums_where
from warmup_peft.method.encoding import Encoded
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.sampling import SamplingSettings, end_warmups
from warmup_peft.training.config import WarmupSFTConfig

if TYPE_CHECKING:
    from warmup_peft.training.vllm_engine import Engine  # which imports vLLM

TOLERANCE = 0.3  # nats a token; a 4-bit model and its 16-bit original differ by about a tenth


def check_engine(args: WarmupSFTConfig, config: PretrainedConfig, quantization: Any = None) -> None:
    """Raise ValueError where vLLM is asked for and cannot serve this training. Loads nothing.

    Args:
        args: the trainer's settings, `learn_separator` among them.
        config: the model's.
        quantization: what the model will be loaded with.
    """
    if not args.use_vllm:
        return
    if not is_vllm_available():
        raise ValueError("use_vllm needs the package vllm. Install it (`pip install trl[vllm]`), or set it to false.")
    is_base, truncates = args.warmup_source == "base", not samples_the_models_own(args)
    if args.learn_separator and (is_base or truncates):
        raise ValueError(
            "With learn_separator all end tokens are one event, and vLLM reports the probability of a single token. "
            "Set use_vllm or learn_separator to false; own samples (warmup_source 'policy') of temperature 1 without "
            "top_k, top_p and min_p work with both."
        )
    if is_base and args.world_size > 1:
        raise ValueError(
            "Several processes cannot fill a pool with vLLM. Fill it first in one (`warmup-peft sample`, with "
            "warmup_pool), and train with use_vllm false."
        )
    if not is_base and (quantization is not None or getattr(config, "quantization_config", None) is not None):
        raise ValueError(
            "vLLM gets the adapter merged into the weights, and a quantised base would be rounded anew at every step. "
            "Train on the base in 16 bit, set use_vllm to false, or warmup_source to 'base', whose pool vLLM fills."
        )


def samples_the_models_own(settings: SamplingSettings | WarmupSFTConfig) -> bool:
    """Whether temperature and truncation leave the model's distribution as it is."""
    return (settings.temperature, settings.top_k, settings.top_p) == (1.0, 0, 1.0) and not settings.min_p


def generate(engine: Engine, prompts: list[list[int]], settings: SamplingSettings, **options: Any) -> Warmups:
    """K warmups of each prompt, cut where `end_warmups` cuts them, with vLLM's log-probabilities. On the CPU.

    Args:
        prompts: token ids of each.
        options: more sampling parameters, in vLLM's words.

    Raises:
        ValueError: vLLM ended a warmup where nothing ends it, or sent no log-probabilities.
    """
    stops = {*settings.end_token_ids, *(settings.separator_ids if len(settings.separator_ids) == 1 else ())}
    engine.temperature, engine.top_k, engine.top_p = settings.temperature, settings.top_k, settings.top_p
    engine.min_p, engine.max_completion_length = settings.min_p, settings.max_length
    engine.generation_kwargs = {"stop_token_ids": sorted(stops), **options}
    copies = [ids for ids in prompts for _ in range(settings.num_warmups)]
    _, sampled, reported, _ = engine.generate(copies, None, settings.num_warmups)
    if reported is None:
        raise ValueError(
            "vLLM sent no log-probabilities with its samples. Start the server without `--max-logprobs 0`."
        )
    width = settings.max_length
    ids = torch.full((len(copies), width), settings.pad_token_id)
    logps = torch.zeros(len(copies), width)
    for row, (tokens, of_tokens) in enumerate(zip(sampled, reported, strict=True)):
        if len(tokens) > width or (len(tokens) < width and not (len(tokens) and tokens[-1] in stops)):
            raise ValueError(
                f"vLLM ended a warmup after {len(tokens)} tokens, neither at max_warmup_length={width} nor with one "
                f"of the end tokens {sorted(stops)}. Is its context (vllm_max_model_length) long enough?"
            )
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        logps[row, : len(tokens)] = torch.tensor([torch.nan if x[0] is None else x[0] for x in of_tokens])
    shape = (len(prompts), settings.num_warmups)
    return end_warmups(ids.unflatten(0, shape), settings, logps.unflatten(0, shape))


def sampled_logps(encoded: Encoded, warmups: Warmups, settings: SamplingSettings) -> Tensor:
    """(B, K) log-probability in nats of the very tokens that were sampled, whichever end token stands among them."""
    each = dataclasses.replace(settings, closing_id=None)
    is_sampled = prefix_mask(warmups.num_decisions, warmups.ids.size(-1))
    predictions = encoded.predictions(Branches(warmups.ids, is_sampled, is_sampled), is_sampled)
    return sums_where(is_sampled, each.logps_along(predictions, warmups.ids[is_sampled]))


def nats_a_token(log_ratio_BK: Tensor, num_decisions: Tensor) -> float:
    """How far two log-probabilities of the same warmups are apart, on average over all sampled tokens."""
    return (log_ratio_BK.abs().sum() / num_decisions.sum()).item()


class EngineSampler:
    """Samples with vLLM what `WarmupSampler` would sample from the model, with the same call.

    Args:
        engine: of `start_engine`.
        step: how many optimizer steps were done.
    """

    def __init__(self, engine: Engine, step: Callable[[], int]):
        self.engine, self.step = engine, step
        self._known: tuple[int, int] | None = None  # which weights vLLM has
        self._is_checked = False

    def __call__(self, model: PreTrainedModel | PeftModel, encoded: Encoded, settings: SamplingSettings) -> Warmups:
        """K warmups for each encoded prompt, with vLLM's log-probabilities and the model's less those.

        A log-probability that vLLM could not say (NaN) counts as the model's own, as in TRL.

        Raises:
            ValueError: what `generate` raises, or in the first batch log-probabilities that are not this model's.
        """
        if self._known != self._state(model):  # as TRL: once a step, however many batches it has
            self.engine.sync_weights()
            self._known = self._state(model)
        prompts = [ids[mask].tolist() for ids, mask in zip(*encoded.prompt)]
        warmups = generate(self.engine, prompts, settings)
        warmups = Warmups(*(None if x is None else x.to(encoded.prompt.ids.device) for x in warmups))
        with evaluation_mode(model):
            log_ratio_BK = (sampled_logps(encoded, warmups, settings) - warmups.logp).nan_to_num(0.0)
        if not self._is_checked:
            check_agreement(log_ratio_BK, warmups.num_decisions)
            self._is_checked = True
        return warmups._replace(log_ratio=log_ratio_BK)

    def _state(self, model: PreTrainedModel | PeftModel) -> tuple[int, int]:
        """Changes with every step, and where weights were loaded since."""
        return self.step(), sum(x._version for x in model.parameters() if x.requires_grad)


def check_agreement(log_ratio_BK: Tensor, num_decisions: Tensor) -> None:
    """Raise ValueError where vLLM's log-probabilities are not those of the model."""
    difference = nats_a_token(log_ratio_BK, num_decisions)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"vLLM's log-probabilities differ from this model's by {difference:.2f} nats a token. Does the server "
            "hold this very model, and report processed log-probabilities (`--logprobs-mode processed_logprobs`)?"
        )


def pool_sampler(engine: Engine, settings: SamplingSettings) -> Callable[[list[np.ndarray], int], Warmups]:
    """A function that samples M warmups of the base for prompts and a seed; vLLM keeps the weights it started with.

    The seed reaches a server. A colocated vLLM has random numbers of its own, since TRL gives it every copy of a
    prompt as a request, and a seed would make their samples equal.
    """

    def sample(prompts: list[np.ndarray], seed: int) -> Warmups:
        seeded = {"seed": seed % 2**31} if engine.mode == "server" else {}
        return generate(engine, [ids.tolist() for ids in prompts], settings, **seeded)

    return sample
