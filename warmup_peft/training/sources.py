"""Where the warmups of a training come from: one class for each value of `warmup_source`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmup_peft.inference.chat import WarmupFormat
from warmup_peft.method.branches import Tokens, Warmups, no_warmups, shuffled_warmups
from warmup_peft.method.encoding import Encoded, alone
from warmup_peft.method.model import is_sharded, random_numbers_from
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler
from warmup_peft.training.base_sampler import BaseSampler
from warmup_peft.training.checks import is_fsdp
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.dataset import base_fingerprint, prompts_of
from warmup_peft.training.engine import EngineSampler, pool_sampler
from warmup_peft.training.pool import POOL_NAME, SampleFunction, WarmupPool

logger = logging.getLogger(__name__)


@contextmanager
def random_numbers_of_rank(accelerator: Accelerator) -> Iterator[None]:
    """Random numbers that no other rank has: all ranks begin with the same seed.

    They follow from the rank's own, so that a run repeats itself and resumes; one process goes on with its own.
    """
    if accelerator.num_processes == 1:
        yield
        return
    seed = int(torch.randint(2**48, ())) + accelerator.process_index
    with random_numbers_from(seed, accelerator.device):
        yield


def largest_of(accelerator: Accelerator) -> Callable[[int], int]:
    """int -> the largest of all ranks' ints, on every rank. All ranks must ask."""

    def largest(value: int) -> int:
        if accelerator.num_processes == 1:
            return value
        return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).max())

    return largest


def sampling_settings(
    args: WarmupSFTConfig, warmup_format: WarmupFormat, end_tokens: Collection[int], pad_token_id: int
) -> SamplingSettings:
    """The distribution that a training's options ask for. A learned separator, or a thought's, ends a warmup, too."""
    separator_ids = warmup_format.separator_ids
    closes = args.learn_separator or warmup_format.thinking is not None
    return SamplingSettings(
        num_warmups=args.num_warmups,
        max_length=args.max_warmup_length,
        end_token_ids=tuple(sorted({*end_tokens, *separator_ids[:closes]})),
        separator_ids=separator_ids,
        pad_token_id=pad_token_id,
        num_beams=args.num_beams,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        closing_id=separator_ids[0] if args.learn_separator else None,
    )


class Policy:
    """The model's own warmups, sampled from it as it is now.

    Args:
        args: the trainer's settings.
        sampling: the distribution.
        accelerator: the trainer's.
        tokenizer: the trainer's.
    """

    is_off_policy = False  # whether the warmups have the log-probability of another distribution
    state: tuple[torch.Tensor, ...] | None = None  # what the next batch needs of this one; a checkpoint keeps it

    def __init__(
        self,
        args: WarmupSFTConfig,
        sampling: SamplingSettings,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.args, self.sampling, self.accelerator, self.tokenizer = args, sampling, accelerator, tokenizer
        self.sampler: WarmupSampler | EngineSampler = WarmupSampler(
            largest_of(accelerator) if is_fsdp(args) else alone
        )

    @property
    def autocast(self) -> Callable[[], AbstractContextManager]:
        return self.accelerator.autocast

    def sample(self, model: PreTrainedModel | PeftModel, encoded: Encoded, epoch: int) -> Warmups:
        """(B, K) warmups for the encoded prompts.

        Args:
            model: without a wrapper for distributed training.
            encoded: the prompts.
            epoch: of the training, counted from 0.
        """
        with self.autocast():
            return self.sampler(model, encoded, self.sampling)


class Shuffled(Policy):
    """Each row gets the warmups of another row: does it matter what they say?"""

    _previous: Warmups | None = None  # of the batch before

    @property
    def state(self) -> tuple[torch.Tensor, ...] | None:
        """What a batch of one row borrows from the batch before it."""
        return None if self._previous is None else tuple(x[-1:] for x in self._previous[:3])

    @state.setter
    def state(self, state: tuple[torch.Tensor, ...]) -> None:
        self._previous = Warmups(*state)

    def sample(self, model: PreTrainedModel | PeftModel, encoded: Encoded, epoch: int) -> Warmups:
        own = super().sample(model, encoded, epoch)
        shuffled, self._previous = shuffled_warmups(own, self._previous), own
        return own.emptied(own.lengths >= 0) if shuffled is None else shuffled


class Empty(Policy):
    """The separator stands right behind the prompt: what does the method gain from everything but the warmups?"""

    def sample(self, model: PreTrainedModel | PeftModel, encoded: Encoded, epoch: int) -> Warmups:
        return no_warmups(encoded.prompt)


class Base(Policy):
    """Warmups of the model with its adapter off, sampled once, before training, and kept in a pool on disk."""

    is_off_policy = True
    pool: WarmupPool | None = None
    _fingerprint: str | None = None  # of the base that the first training started from

    def sample(self, model: PreTrainedModel | PeftModel, encoded: Encoded, epoch: int) -> Warmups:
        return self.pool.sample(
            encoded.prompt,
            self.args.num_warmups,
            seed=self.args.seed,
            epoch=epoch,
            pad_token_id=self.sampling.pad_token_id,
        )

    def fill(
        self, model: PreTrainedModel | PeftModel, train_dataset: Dataset, sample: SampleFunction | None = None
    ) -> WarmupPool:
        """Sample M warmups for each training prompt that has none yet.

        Args:
            model: without a wrapper for distributed training.
            train_dataset: prepared rows.
            sample: prompts (token ids of each) and a seed -> `Warmups` (B, M), in place of this model.

        Raises:
            ValueError: what `WarmupSFTTrainer.fill_warmup_pool` raises.
        """
        sampling = dataclasses.replace(self.sampling, num_warmups=self.args.warmup_pool_size)
        base = BaseSampler(model, sampling, self.autocast)
        is_whole = not is_sharded(model)
        fingerprint = base_fingerprint(model) if is_whole else self._fingerprint
        if is_fsdp(self.args) and is_whole:  # the first rank may be the only one that has loaded the weights
            (fingerprint,) = broadcast_object_list([fingerprint])
        self._fingerprint = self._fingerprint or fingerprint
        folder = Path(self.args.warmup_pool or Path(self.args.output_dir, POOL_NAME))
        identity = base.identity(self._fingerprint, self.tokenizer)
        self.pool = WarmupPool(folder, identity, self.args.warmup_pool_size)
        self.accelerator.wait_for_everyone()  # all ranks have seen the same files before one writes another
        missing = train_dataset.select(self.pool.missing(prompts_of(train_dataset)))
        if missing and fingerprint != self._fingerprint:
            raise ValueError(
                f"{len(missing)} prompts have no warmups in {folder}, and the whole model has been trained since this "
                "trainer started, so its base is gone. Call fill_warmup_pool() before the first training, or make a "
                "new trainer with the model that is to be the base."
            )
        if missing and is_fsdp(self.args):
            raise ValueError(
                f"{len(missing)} prompts have no warmups in {folder}, and weights that FSDP shards are not sampled "
                "from before training. Run `warmup-peft sample` with the same options and without FSDP before."
            )
        if sample is None and self.args.use_vllm and missing:
            from warmup_peft.training.vllm_engine import start_engine  # imports vLLM

            sample = pool_sampler(start_engine(model, self.args, sampling, self.accelerator, self.tokenizer), sampling)
        self._add(missing, base.sample if sample is None else base.checking(sample))
        useless = self.pool.why_useless()
        if useless:
            raise ValueError(
                f"Nothing can be learnt with warmup_source base: {useless}. Choose a base model (or a prompt) after "
                "which it has something to say, or set warmup_source to 'policy'."
            )
        return self.pool

    def _add(self, missing: Dataset, sample: SampleFunction) -> None:
        is_main, num_ranks = self.accelerator.is_main_process, self.accelerator.num_processes
        if missing and len(self.pool) and is_main:
            logger.warning(
                "%d prompts have no warmups in %s yet; they are sampled now.", len(missing), self.pool.folder
            )
        is_quiet = not missing or self.args.disable_tqdm or not is_main
        with tqdm(total=len(missing), desc="sampling warmups", unit="prompt", disable=is_quiet) as bar:
            self.pool.add(
                prompts_of(missing),
                sample,
                seed=self.args.seed,
                prompts_per_batch=max(1, self.args.warmup_pool_batch_size // self.args.warmup_pool_size),
                share=(self.accelerator.process_index, num_ranks),
                on_progress=lambda count: bar.update(min(count * num_ranks, len(missing) - bar.n)),
            )
        self.accelerator.wait_for_everyone()
        if missing:
            self.pool.load()


class DataWarmups:
    """Thoughts that rows of the data have, by their prompts. Rows with one prompt and several targets have none.

    Args:
        dataset: prepared rows, with a column `thought_ids` (empty where a row has none).
        sampling: whose closing token ends them, and whose W is the longest that is used.
    """

    def __init__(self, dataset: Dataset, sampling: SamplingSettings):
        ids = [list(thought) for thought in dataset["thought_ids"]]
        prompts = [tuple(prompt.tolist()) for prompt in prompts_of(dataset)]
        targets: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for prompt, whole in zip(prompts, dataset["input_ids"]):
            targets.setdefault(prompt, set()).add(tuple(whole[len(prompt) :]))
        self._ids = {prompt: thought for prompt, thought in zip(prompts, ids)
                     if 0 < len(thought) <= sampling.max_length and len(targets[prompt]) == 1}  # fmt: skip
        self._sampling = sampling
        num_thoughts = sum(map(bool, ids))
        num_long = sum(len(thought) > sampling.max_length for thought in ids)
        num_unclear = sum(bool(thought) and len(targets[prompt]) > 1 for prompt, thought in zip(prompts, ids))
        if num_unclear:
            logger.warning(
                "warmup_from_data: %d thoughts are not used, since rows with the same prompt have other targets.",
                num_unclear,
            )
        if num_long or not num_thoughts:
            logger.warning(
                "warmup_from_data: %d of %d rows have a thought, and %d of them are longer than max_warmup_length=%d "
                "tokens and are not used.",
                num_thoughts, len(ids), num_long, sampling.max_length,
            )  # fmt: skip

    def put_first(self, warmups: Warmups, prompt: Tokens) -> Warmups:
        """(B, K) warmups, the first of which is the data's where the row has one."""
        known = [self._ids.get(tuple(ids[mask].tolist())) for ids, mask in zip(prompt.ids, prompt.mask)]
        width = max(warmups.ids.size(-1), *(len(ids) + 1 for ids in known if ids), 0)
        missing = width - warmups.ids.size(-1)
        ids = torch.nn.functional.pad(warmups.ids, (0, missing), value=self._sampling.pad_token_id)
        lengths, num_decisions = warmups.lengths.clone(), warmups.num_decisions.clone()
        for row, thought in enumerate(known):
            if thought:
                whole = [*thought, self._sampling.separator_ids[0]]
                ids[row, 0, : len(whole)] = torch.tensor(whole, device=ids.device)
                lengths[row, 0], num_decisions[row, 0] = len(thought), len(whole)
        log_ratio = warmups.log_ratio
        if log_ratio is not None:
            is_known = torch.tensor([bool(thought) for thought in known], device=ids.device)
            log_ratio = log_ratio.clone()
            log_ratio[:, 0] = log_ratio[:, 0].masked_fill(is_known, 0.0)
        return Warmups(ids, lengths, num_decisions, log_ratio=log_ratio)


SOURCES: dict[str, type[Policy]] = {"policy": Policy, "base": Base, "shuffled": Shuffled, "empty": Empty}
