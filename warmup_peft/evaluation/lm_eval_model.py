"""lm-evaluation-harness with warmups: runs any of its tasks on a warmup model. Needs `warmup_peft[eval]`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from warmup_peft.evaluation.answering import check_logps, write_each
from warmup_peft.inference.chat import opened
from warmup_peft.inference.decoding import decode_prepared
from warmup_peft.inference.folder import WarmupConfig

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # (texts), ids of the context, ids of the continuation


class WarmupLM(HFLM):
    """`HFLM` with opening, warmup and separator between each context and the continuation or answer.

    If a context, its warmup, the separator and the continuation do not fit the model, the beginning of the context is
    cut first, so that the warmup is generated after the same context that is scored. Rolling log-likelihoods
    (perplexity of a document) have no prompt, so they are computed without warmups.

    Args:
        model: a causal language model or a `PeftModel`.
        tokenizer: its tokenizer.
        warmup_config: how the model writes its warmup; with a `max_warmup_length` of 0 this class equals `HFLM`.
        num_warmups: number of sampled warmups if it is above 1. The likelihood of a continuation is averaged over
            them, and the most frequent generated text is the answer.
        batch_size: number of requests per batch.
        is_chat: whether the contexts have been rendered by the chat template, with its own special tokens. They are
            then encoded as in training, apart from the continuations.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        warmup_config: WarmupConfig,
        num_warmups: int = 1,
        batch_size: int = 32,
        is_chat: bool = False,
    ):
        chat = {"add_bos_token": False, "chat_template_args": warmup_config.chat_template_kwargs} if is_chat else {}
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal", **chat)
        self.warmup_config, self.num_warmups, self.is_chat = warmup_config, num_warmups, is_chat

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both. `HFLM` moves the white space at the end of a context, which a generation prompt needs there."""
        if not self.is_chat:
            return super()._encode_pair(context, continuation)
        return self.tok_encode(context), self.tok_encode(continuation)

    def _loglikelihood_tokens(self, requests: Sequence[Request], **options: Any) -> list[tuple[float, bool]]:
        is_rolling = bool(requests) and requests[0][0] is None
        warms_up = self.warmup_config.max_warmup_length > 0 and not is_rolling
        scores = (self._after_warmups if warms_up else super()._loglikelihood_tokens)(requests, **options)
        check_logps(torch.tensor([logp for logp, _ in scores]))
        return scores

    def _after_warmups(self, requests: Sequence[Request], **options: Any) -> list[tuple[float, bool]]:
        kept = self._shorten(requests)
        suffixes = self._write(sorted(set(kept.values()), key=len))
        branches = [
            (None, [*kept[tuple(context)], *suffix], continuation)
            for _, context, continuation in requests
            for suffix in suffixes[kept[tuple(context)]]
        ]
        scores = super()._loglikelihood_tokens(branches, **options)
        grouped = [scores[i : i + self.num_warmups] for i in range(0, len(scores), self.num_warmups)]
        return [(log_mean_exp([logp for logp, _ in each]), all(greedy for _, greedy in each)) for each in grouped]

    def _shorten(self, requests: Sequence[Request]) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The end of each context that fits the model together with warmup, separator and the longest continuation.

        The last token of a continuation is never fed to the model, so it takes no room.

        Raises:
            ValueError: no token of a context fits.
        """
        longest: dict[tuple[int, ...], int] = {}
        for _, context, continuation in requests:
            longest[tuple(context)] = max(longest.get(tuple(context), 0), len(continuation))
        return {context: context[-self._room(length - 1) :] for context, length in longest.items()}

    def _room(self, num_tokens: int) -> int:
        """How many tokens of a context fit together with warmup, separator and `num_tokens` more tokens."""
        room = self.max_length - self.warmup_config.room - num_tokens
        if room < 1:
            raise ValueError(
                f"A warmup, the separator and {num_tokens} tokens after them leave no room for a prompt in the "
                f"model's context of {self.max_length}. Lower max_gen_toks in the task, or choose another task."
            )
        return room

    def _write(self, contexts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[list[int]]]:
        """Token ids of the warmups of each context, each after the opening and followed by the separator."""
        count, config = self.num_warmups, self.warmup_config
        prompts = [opened(list(context), config.warmup_opening_ids) for context in contexts for _ in range(count)]
        warmups = write_each(self.model, prompts, config, self.batch_size * count, do_sample=count > 1)
        starts = [len(context) for context in contexts for _ in range(count)]
        suffixes = [
            prompt[start:] + ids + config.warmup_separator_ids for prompt, start, ids in zip(prompts, starts, warmups)
        ]
        return {context: suffixes[row * count : (row + 1) * count] for row, context in enumerate(contexts)}

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Encode contexts for generation, and leave room for warmup and separator, which `HFLM` does not."""
        if left_truncate_len is not None:
            left_truncate_len = self._room(self.max_length - left_truncate_len)
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, **options)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], attention_mask: Tensor, **options: Any
    ) -> Tensor:
        """Rows [context | answer] (B, T). With several warmups, the first row with the most frequent answer."""
        if self.warmup_config.max_warmup_length == 0:
            return super()._model_generate(context, max_length, stop, attention_mask=attention_mask, **options)
        count = self.num_warmups
        decode = partial(decode_prepared, warmup_config=self.warmup_config, sample_warmup=count > 1)
        sequences = super()._model_generate(
            context.repeat_interleave(count, 0),
            max_length,
            stop,
            attention_mask=attention_mask.repeat_interleave(count, 0),
            custom_generate=decode,
            **options,
        )
        texts = [
            postprocess_generated_text(self.tok_decode(ids), stop, None)
            for ids in sequences[:, context.size(1) :].tolist()
        ]
        return sequences[[start + vote(texts[start : start + count]) for start in range(0, len(texts), count)]]


def vote(texts: Sequence[str]) -> int:
    """Index of the first occurrence of the most frequent text (on a tie, of the one that occurs first)."""
    return texts.index(Counter(texts).most_common(1)[0][0])


def log_mean_exp(values: Sequence[float]) -> float:
    tensor = torch.tensor(values, dtype=torch.float64)
    return (tensor.logsumexp(0) - torch.tensor(len(values)).log()).item()


@cache  # base and adapter are scored on the same tasks
def manager_of(with_the_harness_own: bool) -> TaskManager:
    """Finds tasks. For the harness' own it reads thousands of files."""
    return TaskManager(include_defaults=with_the_harness_own)


def task_in(file: str) -> dict[str, Any]:
    """The task of a YAML file. Raises ValueError where there is none."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not Path(file).is_file():
        raise ValueError(f"--harness names the file {file}, which does not exist.")
    try:
        return load_yaml(file, resolve_func=True)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no valid YAML: {error}") from error


def is_by_itself(task: str | dict[str, Any]) -> bool:
    """Whether it is a file's task, and no group of others."""
    return isinstance(task, dict) and isinstance(task.get("task"), str)


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    warmup_config: WarmupConfig | None,
    tasks: Sequence[str],
    *,
    num_warmups: int = 1,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    apply_chat_template: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run `lm_eval.simple_evaluate` on tasks, given by name or YAML file; with no `warmup_config`, without warmups.

    Args:
        apply_chat_template: render every context by the tokenizer's chat template.
        chat_template_kwargs: what that is given where there is no `warmup_config`.

    Raises:
        ValueError: a task is neither known to lm-evaluation-harness nor a file.
    """
    from lm_eval import simple_evaluate

    chosen = [task_in(task) if task.endswith((".yaml", ".yml")) else task for task in tasks]
    manager = manager_of(with_the_harness_own=not all(map(is_by_itself, chosen)))
    for task in chosen:
        if isinstance(task, str) and not manager.match_tasks([task]):
            raise ValueError(f"lm-evaluation-harness has no task '{task}'. `lm-eval ls tasks` lists them.")
    set_seed(seed)
    off = WarmupConfig("", [], 0, chat_template_kwargs=dict(chat_template_kwargs or {}))
    lm = WarmupLM(model, tokenizer, warmup_config or off, num_warmups, batch_size, is_chat=apply_chat_template)
    return simple_evaluate(
        model=lm, tasks=chosen, task_manager=manager, limit=limit, random_seed=seed, numpy_random_seed=seed,
        torch_random_seed=seed, log_samples=False, bootstrap_iters=0, apply_chat_template=apply_chat_template,
    )  # fmt: skip
