"""`WarmupSFTTrainer`: SFT whose target follows warmups that the model wrote itself.

Wiring only: encode -> sample -> score -> objective. The arithmetic is in `warmup_peft.method`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.distributions import Categorical
from transformers import AutoProcessor, PreTrainedModel, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id

from warmup_peft.checks import (
    check_context,
    check_spans,
    check_trainer_arguments,
    context_length,
    memory_advice,
    model_config,
)
from warmup_peft.config import WarmupSFTConfig
from warmup_peft.inference.decoding import WarmupConfig, end_token_ids, separator_token_ids
from warmup_peft.inference.hub import own_model_card
from warmup_peft.inference.loading import TrainingRecord
from warmup_peft.method.branches import Branches, Tokens, Warmups, lay_out_branches, prefix_mask, split_examples
from warmup_peft.method.objective import NEEDS_WARMUP_LOGP, divergence, token_logps, warmup_loss
from warmup_peft.method.prefix import SharedPrefix, install, sliding_window, why_not_shareable
from warmup_peft.method.sampling import SamplingSettings, sample_warmups
from warmup_peft.method.scoring import PlainRows, evaluation_mode, score_after_prompt, without_peft_wrapper
from warmup_peft.options import WarmupOptions
from warmup_peft.quantization import keep_4bit_weights_in_place

logger = logging.getLogger(__name__)

ENTROPY_ROWS = 256  # at a time: a float32 copy of all target logits would cost as much as the step
SHARING_TOLERANCE = {"float32": 1e-3, "low": 0.1}  # nats a token; of bfloat16 logits rounding alone is some hundredths


class WarmupSFTTrainer(SFTTrainer):
    """TRL's `SFTTrainer`, except that the target's likelihood is taken after prompt, warmup and separator.

    For each example the model, as it is now, writes `args.num_warmups` short sequences after the prompt; the loss is
    the mean over them of the target's negative log-likelihood (and, with `args.warmup_anchor`, a divergence that keeps
    the warmups where the model without its adapter would have them). Equations: `warmup_peft.method.objective`;
    source: "Warmup Generations", arXiv 2502.12304.

    Takes exactly what `SFTTrainer` takes. The data must show where the prompt ends: `prompt` and `completion` columns,
    plain or conversational, or labels that are -100 on the prompt. `formatting_func` may return such a dictionary.

    Raises:
        ValueError: for what would train something else than asked for, with the mend, before a model is loaded.
    """

    _tag_names = ["trl", "sft", "warmup-sft"]
    _name = "Warmup SFT"
    _paper = {
        "title": "Warmup Generations: A Task-Agnostic Approach for Guiding Sequence-to-Sequence Learning with "
        "Unsupervised Initial State Generation",
        "id": "2502.12304",
    }
    _said_plain_rows = False
    _checked_sharing = False
    loss_is_scaled_for_ga = True  # divided by the targets of the whole accumulated batch, see compute_loss

    @functools.wraps(SFTTrainer.__init__)
    def __init__(self, *positional, **keywords):
        call = inspect.signature(SFTTrainer.__init__).bind(self, *positional, **keywords)
        arguments = call.arguments
        args = arguments["args"] = as_warmup_config(arguments.get("args"), arguments["model"])
        self._dict_formatting = apply_dict_formatting(arguments)
        check_trainer_arguments(arguments, args)
        if arguments.get("processing_class") is None:
            arguments["processing_class"] = load_tokenizer(arguments["model"], args)
        self._warmup_separator_ids = separator_token_ids(arguments["processing_class"], args.warmup_separator)
        self._context = context_length(model_config(arguments["model"], args))
        super().__init__(*call.args[1:], **call.kwargs)

        keep_4bit_weights_in_place(self.model)
        self.data_record: dict[str, Any] = {}  # where the rows came from; a caller who knows may say
        self._choose_encoding()
        self.model_accepts_loss_kwargs = True  # so that the targets of the accumulated batch are always counted
        self._sampling = SamplingSettings(
            num_warmups=args.num_warmups,
            max_length=args.max_warmup_length,
            end_token_ids=end_token_ids(self.model, self._tokenizer),
            separator_ids=tuple(self._warmup_separator_ids),
            pad_token_id=self._tokenizer.pad_token_id,
            num_beams=args.num_beams,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
        )

    def _choose_encoding(self) -> None:
        """Share each prompt among its branches where that is exact; otherwise say once why not, or refuse."""
        reason = why_not_shareable(self.model)
        checkpointing = self.args.gradient_checkpointing_kwargs or {}
        if self.args.gradient_checkpointing and checkpointing.get("use_reentrant"):
            reason = "reentrant gradient checkpointing loses the gradient that flows through the shared prompt"
        wanted = self.args.prefix_sharing != "false"
        self._shares_prefix = wanted and reason is None
        self._sliding_window = sliding_window(self.model)
        self._branch_overhead = self.args.max_warmup_length + len(self._warmup_separator_ids)
        if self._shares_prefix:
            install(self.model)
        elif wanted:
            self._report_plain_rows(reason)

    @torch.no_grad()
    def _check_sharing(self, model, encoded: SharedPrefix, branches: Branches, predicted: Tensor, logits: Tensor):
        """Raise ValueError where the first batch, scored with shared prompts and with plain rows, differs."""
        self._checked_sharing = True
        rows = PlainRows(model, self.accelerator.unwrap_model(model), encoded.prompt)
        ids = branches.ids[predicted]
        shared, plain = token_logps(logits, ids), token_logps(rows.predictions(branches, predicted), ids)
        is_exact = encoded.layers[0][0].dtype == torch.float32
        tolerance = SHARING_TOLERANCE["float32" if is_exact else "low"]
        if (shared - plain).abs().mean() > tolerance:
            raise ValueError(
                f"Shared prompts give {shared.mean():.5f} nats a token on the first batch, plain rows "
                f"{plain.mean():.5f}, and tokens differ by more than {tolerance} on average. Set prefix_sharing to "
                "false, and please report the model."
            )

    def training_step(self, *positional, **keywords):
        try:
            return super().training_step(*positional, **keywords)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(memory_advice(self.args, self.model)) from error

    def _report_plain_rows(self, reason: str) -> None:
        """Refuse, or say once, that prompts are not shared: of this model, or of rows beyond its sliding window."""
        if self.args.prefix_sharing == "true":
            raise ValueError(f"prefix_sharing=true cannot be had: {reason}. Set prefix_sharing to auto.")
        if not self._said_plain_rows:
            logger.warning("Each prompt is encoded once a warmup, which is slower than once: %s.", reason)
            self._said_plain_rows = True

    # ---- A batch, in one direction ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError(
                "Logits are not returned: an example has one set of them for each warmup. Call `evaluate`, or "
                "`warmup-peft evaluate` for answers."
            )
        prompt, target = split_examples(inputs["input_ids"], inputs["labels"], inputs["attention_mask"])
        encoded = self._encode(model, prompt, target)
        warmups = self._sample(model, encoded)
        scores = self._score(model, encoded, warmups, target)
        self._check_numbers(scores.target_logp_BK)

        loss = warmup_loss(*scores, objective=self.args.objective, beta=self.args.warmup_anchor)
        num_targets = target.mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(num_targets).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # `num_items_in_batch` counts every rank's targets, and DDP averages the gradients over the ranks
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())

        self._count_tokens(inputs)
        self._record_warmups(warmups, scores.kl_BK)
        return loss

    def _encode(self, model, prompt: Tokens, target: Tokens) -> PlainRows | SharedPrefix:
        shares = self._shares_prefix
        if shares and self._sliding_window is not None:
            own_longest = prompt.ids.size(1) + self._branch_overhead + target.ids.size(1)
            # all ranks go one way: otherwise they call the wrapped model unequally often and wait for each other
            longest = self.accelerator.gather(torch.tensor([own_longest], device=prompt.ids.device)).max().item()
            if longest > self._sliding_window:
                shares = False
                self._report_plain_rows(f"rows of {longest} tokens exceed the sliding window, {self._sliding_window}")
        return (SharedPrefix if shares else PlainRows)(model, self.accelerator.unwrap_model(model), prompt)

    def _check_numbers(self, target_logp_BK: Tensor) -> None:
        """Stop at NaN, before it reaches the weights; count targets that no warmup makes possible, and go on."""
        rows = target_logp_BK.isnan().any(1).nonzero().flatten().tolist()
        if rows:
            last = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
            raise FloatingPointError(
                f"The logits are NaN at step {self.state.global_step + 1}, rows {rows} of the batch. Lower "
                f"learning_rate, or train in bfloat16 or float32. Last checkpoint: {last or 'none'}."
            )
        impossible = int(target_logp_BK.isneginf().all(1).sum())
        if impossible:
            logger.warning(
                "Step %d: %d targets are impossible after every warmup; they count nothing.",
                self.state.global_step + 1, impossible,
            )  # fmt: skip

    def _sample(self, model, encoded: PlainRows | SharedPrefix) -> Warmups:
        with self.accelerator.autocast():
            return sample_warmups(self.accelerator.unwrap_model(model), encoded, self._sampling)

    def _score(self, model, encoded: PlainRows | SharedPrefix, warmups: Warmups, target: Tokens) -> Scores:
        """One forward over the branches, with gradient; with an anchor another one, adapter off, without.

        Warmups of an example that coincide are scored once.
        """
        distinct, index_BK = warmups.distinct()
        separator_ids = torch.tensor(self._warmup_separator_ids, device=target.ids.device)
        branches = lay_out_branches(distinct.tokens(), separator_ids, target.repeat_for_branches(distinct.ids.size(1)))
        has_anchor, has_advantage = self.args.warmup_anchor > 0, self.args.objective in NEEDS_WARMUP_LOGP
        num_decisions = distinct.num_decisions * (has_anchor or has_advantage)
        is_decision = prefix_mask(num_decisions, branches.mask.size(-1))
        predicted = branches.is_target | is_decision
        logits = encoded.predictions(branches, predicted)
        if self.args.prefix_sharing_check and not self._checked_sharing and isinstance(encoded, SharedPrefix):
            self._check_sharing(model, encoded, branches, predicted, logits)

        def to_warmups(values_N: Tensor, mask: Tensor) -> Tensor:
            """(B, K) sums over the tokens whose values these are, in row-major order of the mask."""
            return values_N.new_zeros(mask.shape).masked_scatter(mask, values_N).sum(-1).gather(1, index_BK)

        target_logits, target_ids = logits[branches.is_target[predicted]], branches.ids[branches.is_target]
        target_logp_BK = to_warmups(token_logps(target_logits, target_ids), branches.is_target)
        self._record_targets(target_logits.detach(), target_ids, lambda values: to_warmups(values, branches.is_target))
        warmup_logp_BK = kl_BK = None
        decision_logits = logits[is_decision[predicted]]
        if has_advantage:
            drawn_ids = distinct.ids[prefix_mask(num_decisions, distinct.ids.size(-1))]
            warmup_logp_BK = to_warmups(self._sampling.logps(decision_logits, drawn_ids), is_decision)
        if has_anchor:
            unwrapped = self.accelerator.unwrap_model(model)
            with evaluation_mode(unwrapped), adapter_off(unwrapped), self.accelerator.autocast():
                reference_logits = score_after_prompt(unwrapped, encoded.prompt, branches, is_decision)
            kl_BK = to_warmups(divergence(decision_logits, reference_logits), is_decision)
        return Scores(target_logp_BK, warmup_logp_BK, kl_BK)

    # ---- Metrics: TRL's own, and the warmups' ----

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log_metric(self, name: str, numerator: Tensor, denominator: Tensor) -> None:
        """Append a ratio of sums over all ranks."""
        sums = self.accelerator.reduce(torch.stack([numerator.float(), denominator.float()]), reduction="sum")
        self._metrics[self._mode][name].append((sums[0] / sums[1].clamp(min=1)).item())

    @torch.no_grad()
    def _record_targets(self, logits_NV: Tensor, ids_N: Tensor, to_warmups: Callable[[Tensor], Tensor]) -> None:
        """TRL's `entropy` and `mean_token_accuracy` over target tokens, averaged over the warmups."""
        count = to_warmups(torch.ones_like(ids_N)).sum()
        entropy_N = torch.cat([Categorical(logits=rows.float()).entropy() for rows in logits_NV.split(ENTROPY_ROWS)])
        self._log_metric("entropy", to_warmups(entropy_N).sum(), count)
        self._log_metric("mean_token_accuracy", to_warmups((logits_NV.argmax(-1) == ids_N).long()).sum(), count)

    def _count_tokens(self, inputs: dict[str, Tensor]) -> None:
        """TRL's `num_tokens`: tokens of the data seen in training, whatever is generated beside them."""
        if self._mode == "train":
            count = self.accelerator.reduce(inputs["attention_mask"].sum(), reduction="sum")
            self._total_train_tokens += count.item() // self._tp_size
        self._metrics[self._mode]["num_tokens"] = [self._total_train_tokens]

    @torch.no_grad()
    def _record_warmups(self, warmups: Warmups, kl_BK: Tensor | None) -> None:
        count = torch.tensor(warmups.lengths.numel(), device=warmups.lengths.device)
        self._log_metric("warmups/mean_length", warmups.lengths.sum(), count)
        self._log_metric("warmups/stopped", warmups.stopped.sum(), count)
        is_repeated = warmups.same_draws().tril(-1).any(-1)
        self._log_metric("warmups/distinct", (~is_repeated).sum(), count)
        if kl_BK is not None:
            self._log_metric("warmups/kl", kl_BK.sum(), count)

    # ---- Around the training loop ----

    def evaluation_loop(self, *positional, **keywords):
        """Draw the same warmups at every evaluation, and leave the training's random numbers as they are."""
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.args.seed)
            return super().evaluation_loop(*positional, **keywords)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As in `SFTTrainer`; fresh rows go through the `formatting_func` that the trainer was made with."""
        if self._dict_formatting is not None:
            eval_dataset = format_rows(eval_dataset, self._dict_formatting)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        """TRL's preparation, and a count of what its `max_length` costs."""
        if not isinstance(dataset, Dataset):
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        whole_args = copy.copy(args)
        whole_args.max_length, whole_args.shuffle_dataset = None, False
        whole = super()._prepare_dataset(dataset, processing_class, whole_args, packing, formatting_func, dataset_name)
        check_spans(dataset_name, whole)
        kept = super()._prepare_dataset(whole, processing_class, args, packing, None, dataset_name)
        report_lengths(dataset_name, whole, kept, args.max_length)
        check_spans(dataset_name, kept)
        check_context(dataset_name, kept, self._context, args.max_warmup_length + len(self._warmup_separator_ids))
        return kept

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Beside the adapter, what decoding and merging need, so that every saved folder is whole."""
        folder = output_dir or self.args.output_dir
        with own_model_card(folder):
            super()._save(output_dir, state_dict)
            if self.args.should_save:
                self.warmup_config.save(folder)
                self.training_record().save(folder)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """TRL's card would not say how to decode; `_save` writes ours."""

    @property
    def warmup_config(self) -> WarmupConfig:
        return WarmupConfig(self.args.warmup_separator, self._warmup_separator_ids, self.args.max_warmup_length)

    def training_record(self) -> TrainingRecord:
        base = without_peft_wrapper(self.accelerator.unwrap_model(self.model))
        quantization = getattr(base.config, "quantization_config", None)
        lora = next(iter(getattr(self.model, "peft_config", {}).values()), None)
        options = {option.name: getattr(self.args, option.name) for option in dataclasses.fields(WarmupOptions)}
        return TrainingRecord(
            base_model=get_config_model_id(base.config),
            base_revision=getattr(base.config, "_commit_hash", None),
            dtype=str(base.dtype).removeprefix("torch."),
            quantization_config=quantization.to_dict() if hasattr(quantization, "to_dict") else quantization,
            settings={
                **options,
                "learning_rate": self.args.learning_rate,
                "steps": self.state.global_step,
                "batch_size": self.args.train_batch_size
                * self.args.gradient_accumulation_steps
                * self.accelerator.num_processes,
                "lora_r": getattr(lora, "r", None),
                "seed": self.args.seed,
            },
            data=self.data_record,
            versions={name: version(name) for name in ("warmup_peft", "trl", "transformers", "peft", "torch")},
        )


class Scores(NamedTuple):
    """(B, K) each, in nats: log P(y|x,c,s), log P(c|x) where the objective asks for it, and the anchor's KL."""

    target_logp_BK: Tensor
    warmup_logp_BK: Tensor | None
    kl_BK: Tensor | None


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """`disable_adapter`, which on its way back would unfreeze what its user froze."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with model.disable_adapter():
        yield
    for parameter in frozen:
        parameter.requires_grad_(False)


def as_warmup_config(args: TrainingArguments | None, model: str | PreTrainedModel) -> WarmupSFTConfig:
    """Like `SFTTrainer`, take no settings, plain `TrainingArguments` or an `SFTConfig` too."""
    if isinstance(args, WarmupSFTConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return WarmupSFTConfig(f"{name.split('/')[-1]}-WarmupSFT")
    values = args.to_dict()
    tokens = {name: getattr(args, name) for name in values if name.endswith("_token")}  # to_dict hides them all
    return WarmupSFTConfig(**{**values, **tokens})


def apply_dict_formatting(arguments: dict[str, Any]) -> Callable | None:
    """Apply a `formatting_func` that returns `prompt` and `completion` to the data sets, and return it.

    Raises:
        ValueError: it returns text.
    """
    formatting_func: Callable | None = arguments.get("formatting_func")
    dataset = arguments.get("train_dataset")
    sample = next(iter(dataset), None) if dataset is not None else None
    if formatting_func is None or sample is None or "input_ids" in sample:
        return None
    if not isinstance(formatting_func(sample), dict):
        raise ValueError(
            "formatting_func returns text, which does not show where the prompt ends and the target begins. Let it "
            "return {'prompt': ..., 'completion': ...}."
        )
    arguments["formatting_func"] = None
    for name in ("train_dataset", "eval_dataset"):
        if arguments.get(name) is not None:
            arguments[name] = format_rows(arguments[name], formatting_func)
    return formatting_func


def format_rows(data: Any, formatting_func: Callable) -> Any:
    """A data set, or a dictionary of them, whose rows are what `formatting_func` makes of them."""
    if isinstance(data, dict):
        return {name: format_rows(each, formatting_func) for name, each in data.items()}
    if data is None or isinstance(data, str) or "input_ids" in data.column_names:
        return data
    return data.map(formatting_func, remove_columns=data.column_names)


def load_tokenizer(model: str | PreTrainedModel, args: WarmupSFTConfig):
    """As `SFTTrainer` would, but before the model."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)


def report_lengths(name: str, whole: Dataset, kept: Dataset, max_length: int | None) -> None:
    """Warn, with numbers, of rows that `max_length` cut or dropped.

    Raises:
        ValueError: nothing is left.
    """
    if max_length is None:
        return
    lengths = [len(ids) for ids in whole["input_ids"]]
    dropped = len(whole) - len(kept)
    if not kept:
        raise ValueError(
            f"No row of the {name} dataset is left: all {len(whole)} prompts fill max_length={max_length} tokens by "
            f"themselves (the shortest row has {min(lengths)}). Set max_length higher, or to null."
        )
    cut = sum(length > max_length for length in lengths) - dropped
    if dropped or cut:
        logger.warning(
            "max_length=%d: of %d rows of the %s dataset %d are dropped (no target left) and %d lose the end of their "
            "target. The longest has %d tokens.",
            max_length, len(whole), name, dropped, cut, max(lengths),
        )  # fmt: skip
