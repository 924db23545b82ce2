"""Scores of written answers while training (`eval_generate`): so that the best model is the one that answers best.

At every evaluation the model answers the first rows of the eval dataset after its own greedy warmups, as the saved
adapter does in `evaluate`. Prompts and references are the token ids of the prepared rows, so it needs no task.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from trl import SFTTrainer

from warmup_peft.evaluation.answering import Ids, answer_each, answer_limit, thought_marks, without_thought, write_each
from warmup_peft.evaluation.metric import Answers
from warmup_peft.evaluation.metrics import metric_names, score_rows, totals, try_metrics
from warmup_peft.inference.generation import end_token_ids
from warmup_peft.method.branches import split_examples
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.early import check_eval_metrics
from warmup_peft.training.monitor import PROMPT_TOKENS_SHOWN, WarmupMonitor


@dataclass(frozen=True)
class Written:
    """One row of the eval dataset and what the model wrote."""

    prompt: str
    warmup: str
    answer: str
    reference: str


def check_eval_generation(args: WarmupSFTConfig) -> None:
    """Check the options of `eval_generate`, and try its metrics.

    Raises:
        ImportError: a metric's package is missing.
        ValueError: a metric that cannot be logged, or a best model by one that is not.
    """
    check_eval_metrics(args)
    if args.eval_generate:
        try_metrics(metric_names(args.eval_metrics), Answers(["a"], ["a"], ["a"]))


def scores_of_answers(
    trainer: SFTTrainer, monitor: WarmupMonitor, dataset: Iterable[dict[str, Any]], prefix: str
) -> dict[str, float]:
    """Answer the first rows of a prepared dataset, show some of them, and score all.

    The ranks share the rows. Everything is greedy, and the model's mode stays as it is.

    Args:
        prefix: of the metrics' names, as in eval_exact_match.
    """
    args = trainer.args
    rows = first_examples(trainer, dataset, args.eval_generate)
    if not rows:
        return {}
    written = write(trainer, rows)
    answers = Answers(*([getattr(row, name) for row in written] for name in ("answer", "reference", "prompt")))
    statistics, _ = score_rows(metric_names(args.eval_metrics), answers)
    if trainer.is_world_process_zero():
        first = next(iter(statistics.values())).row_scores
        table = [{**vars(row), "score": float(score)} for row, score in zip(written, first)]
        monitor.show_answers(table, trainer.state.global_step)
    return {f"{prefix}_{name}": score for name, score in totals(statistics).items()}


def first_examples(trainer: SFTTrainer, dataset: Iterable[dict[str, Any]], count: int) -> list[tuple[Ids, Ids]]:
    """Token ids of prompt and target of the first `count` rows, as the loss sees them."""
    examples = []
    for row in itertools.islice(dataset, count):
        batch = trainer.data_collator([row])
        prompt, target = split_examples(batch["input_ids"], batch["labels"], batch["attention_mask"])
        examples.append((prompt.ids[prompt.mask].tolist(), target.ids[target.mask].tolist()))
    return examples


def write(trainer: SFTTrainer, examples: Sequence[tuple[Ids, Ids]]) -> list[Written]:
    """What the model writes to these examples, in their order, on every rank."""
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    config, size = trainer.warmup_config, trainer.args.per_device_eval_batch_size
    marks = thought_marks(tokenizer) if trainer.warmup_format.is_chat else None
    targets = [ids if marks is None else without_thought(ids, marks, tokenizer) for _, ids in examples]
    references = [text.strip() for text in tokenizer.batch_decode(targets, skip_special_tokens=True)]
    limit = answer_limit(tokenizer, references)
    mine = range(trainer.accelerator.process_index, len(examples), trainer.accelerator.num_processes)
    prompts = [examples[i][0] for i in mine]
    warmup_ids = write_each(model, prompts, config, size)
    ends = list(end_token_ids(model, tokenizer))
    answers = answer_each(model, tokenizer, prompts, warmup_ids, config, limit, size, marks=marks, eos_token_id=ends)
    found = [
        (i, Written(tail_of(tokenizer, prompt), tokenizer.decode(ids).strip(), answer.strip(), references[i]))
        for i, prompt, ids, answer in zip(mine, prompts, warmup_ids, answers)
    ]
    return [row for _, row in sorted(gather_object(found), key=lambda each: each[0])]


def tail_of(tokenizer: Any, prompt: Ids) -> str:
    return tokenizer.decode(prompt[-PROMPT_TOKENS_SHOWN:], skip_special_tokens=True)
