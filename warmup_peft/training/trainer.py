"""`WarmupSFTTrainer`: SFT whose target follows warmups that the model wrote itself.

Wiring only: encode -> sample -> score -> objective. The arithmetic is in `warmup_peft.method`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.distributions import Categorical
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils.logging import get_logger
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id

from warmup_peft.export.custom_generate import export_decoding
from warmup_peft.export.model_card import write_model_card
from warmup_peft.files import replacing_files
from warmup_peft.inference.folder import CARD_NAME, TrainingRecord, WarmupConfig
from warmup_peft.inference.generation import end_token_ids, separator_token_ids
from warmup_peft.inference.loading import context_length, put_adapter_first
from warmup_peft.inference.quantization import keep_4bit_weights_in_place, save_as_it_is
from warmup_peft.method.branches import (
    Branches,
    Tokens,
    Warmups,
    lay_out_branches,
    no_warmups,
    prefix_mask,
    split_examples,
    sums_where,
)
from warmup_peft.method.encoding import Encoded, PromptEncoder
from warmup_peft.method.objective import (
    NEEDS_GAIN,
    NEEDS_WARMUP_LOGP,
    Scores,
    credit_of,
    divergence,
    token_logps,
    warmup_loss,
)
from warmup_peft.method.sampling import NaNLogitsError, SamplingSettings, WarmupSampler
from warmup_peft.method.scoring import evaluation_mode, random_numbers_from, without_peft_wrapper
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.training.checkpoints import adapters_load_as_saved, checkpoint_to_resume, last_checkpoint
from warmup_peft.training.checks import (
    adapter_configs,
    check_context,
    check_spans,
    check_targets,
    check_trainer_arguments,
    memory_advice,
    model_config,
)
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.dataset import (
    apply_dict_formatting,
    as_warmup_config,
    base_fingerprint,
    format_rows,
    load_tokenizer,
    name_the_base,
    own_settings,
    prompts_of,
    report_lengths,
)
from warmup_peft.training.monitor import Ratios, WarmupMonitor
from warmup_peft.training.pool import DrawFunction, WarmupPool
from warmup_peft.training.pushing import PushesListedFiles
from warmup_peft.training.sources import BaseModel, adapter_off, fill_pool

logger = get_logger(__name__)

ENTROPY_ROWS = 256  # at a time: a float32 copy of all target logits would cost as much as the step
VERIFREE_VANISHES = -60  # nats; no float32 gradient is left of exp(R) below


class WarmupSFTTrainer(PushesListedFiles, SFTTrainer):
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
    loss_is_scaled_for_ga = True  # divided by the targets of the whole accumulated batch, see compute_loss

    @functools.wraps(SFTTrainer.__init__)
    def __init__(self, *positional, **keywords):
        call = inspect.signature(SFTTrainer.__init__).bind(self, *positional, **keywords)
        arguments = call.arguments
        arguments["peft_config"] = copy.deepcopy(arguments.get("peft_config"))  # TRL writes into it
        adapters = adapter_configs(arguments["model"], arguments["peft_config"])
        args = own_settings(as_warmup_config(arguments.get("args"), arguments["model"]), adapters)
        arguments["args"] = args
        self._dict_formatting = apply_dict_formatting(arguments)
        check_trainer_arguments(arguments, args)
        if arguments.get("processing_class") is None:
            arguments["processing_class"] = load_tokenizer(arguments["model"], args)
        self._warmup_separator_ids = separator_token_ids(arguments["processing_class"], args.warmup_separator)
        self._branch_overhead = args.max_warmup_length + len(self._warmup_separator_ids)
        self._context = context_length(model_config(arguments["model"], args))
        super().__init__(*call.args[1:], **call.kwargs)

        keep_4bit_weights_in_place(self.model)
        save_as_it_is(without_peft_wrapper(self.model))
        name_the_base(self.model)
        self.data_record: dict[str, Any] = {}  # where the rows came from; a caller who knows may say
        self._encoder = PromptEncoder(
            self.model,
            self.args.prefix_sharing,
            reason=why_checkpointing_forbids(self.args),
            largest=self._largest_of_all_ranks,
            is_mixed=self.args.bf16 or self.args.fp16,
        )
        self.model_accepts_loss_kwargs = True  # so that the targets of the accumulated batch are always counted
        self.sampling = SamplingSettings(
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
        self._sampler = WarmupSampler()
        self._monitor = WarmupMonitor(args, self._tokenizer)
        self._pool: WarmupPool | None = None
        self._base_fingerprint: str | None = None

    def _largest_of_all_ranks(self, value: int) -> int:
        if self.accelerator.num_processes == 1:
            return value
        return int(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device)).max())

    def training_step(self, *positional, **keywords):
        try:
            return super().training_step(*positional, **keywords)
        except torch.OutOfMemoryError as error:
            if self.args.auto_find_batch_size:  # which looks for the original's words
                raise
            raise torch.OutOfMemoryError(memory_advice(self.args, self.model)) from error

    # ---- A batch, in one direction ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError(
                "Logits are not returned: an example has one set of them for each warmup. Call `evaluate`, or "
                "`warmup-peft evaluate` for answers."
            )
        prompt, target = split_examples(inputs["input_ids"], inputs["labels"], inputs["attention_mask"])
        encoded = self._encode(model, prompt, target)
        warmups = self._leave_some_out(self._sample(model, encoded))
        scores = self._score(model, encoded, warmups, target)
        self._check_numbers(scores)
        method = {"objective": self.args.objective, "beta": self.args.warmup_anchor}
        credit = credit_of(
            scores,
            **method,
            normalize_advantages=self.args.normalize_advantages,
            advantage_clip=self.args.advantage_clip,
        )

        loss = warmup_loss(scores, credit, **method)
        num_targets = target.mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(num_targets).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # `num_items_in_batch` counts every rank's targets, and DDP averages the gradients over the ranks
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())

        self._count_tokens(inputs)
        self._record(encoded, warmups, target, scores, credit)
        return loss

    def _encode(self, model, prompt: Tokens, target: Tokens) -> Encoded:
        return self._encoder(model, prompt, self._branch_overhead + target.ids.size(1))

    def _check_numbers(self, scores: Scores) -> None:
        """Stop at NaN, before it reaches the weights; count targets that no warmup makes possible, and go on."""
        is_nan = torch.stack([x.isnan().any(1) for x in scores if x is not None]).any(0)
        if is_nan.any():
            self._stop_at_nan(is_nan.nonzero().flatten().tolist())
        impossible = int(scores.target_logp_BK.isneginf().all(1).sum())
        if impossible:
            logger.warning(
                "Step %d: %d targets are impossible after every warmup; they count nothing.",
                self.state.global_step + 1, impossible,
            )  # fmt: skip
        if self.args.objective == "verifree" and scores.target_logp_BK.max() < VERIFREE_VANISHES:
            logger.warning_once(
                "verifree weighs by probabilities, and those of the batch's targets are all below exp(%d): nothing is "
                "learnt from them. Choose another objective for long targets.",
                VERIFREE_VANISHES,
            )

    def _stop_at_nan(self, rows: list[int]) -> None:
        raise FloatingPointError(
            f"The logits are NaN at step {self.state.global_step + 1}, rows {rows} of the batch. Lower learning_rate, "
            f"or train in bfloat16 or float32. Last checkpoint: {last_checkpoint(self.args.output_dir) or 'none'}."
        )

    def _sample(self, model, encoded: Encoded) -> Warmups:
        """Training warmups of `warmup_source`; in evaluation always the model's own."""
        if self._draws_from_pool:
            return self._pool.sample(
                encoded.prompt,
                self.args.num_warmups,
                seed=self.args.seed,
                epoch=int(self.state.epoch or 0),
                pad_token_id=self._tokenizer.pad_token_id,
            )
        try:
            with self.accelerator.autocast():
                return self._sampler(self.accelerator.unwrap_model(model), encoded, self.sampling)
        except NaNLogitsError as error:
            self._stop_at_nan(error.rows)

    @property
    def _draws_from_pool(self) -> bool:
        return self.args.warmup_source == "base" and self._mode == "train"

    def _leave_some_out(self, warmups: Warmups) -> Warmups:
        if self.args.warmup_dropout == 0 or self._mode == "eval":
            return warmups
        return warmups.emptied(torch.rand(warmups.lengths.shape, device=warmups.ids.device) < self.args.warmup_dropout)

    def _lay_out(self, warmups: Warmups, target: Tokens) -> Branches:
        separator_ids = torch.tensor(self._warmup_separator_ids, device=target.ids.device)
        return lay_out_branches(warmups.tokens(), separator_ids, target.repeat_for_branches(warmups.ids.size(1)))

    def _score(self, model, encoded: Encoded, warmups: Warmups, target: Tokens) -> Scores:
        """One forward over the branches, with gradient; the anchor of own draws takes a second, adapter off, without.

        Warmups of an example that coincide are scored once.
        """
        distinct, index_BK = warmups.distinct()
        branches = self._lay_out(distinct, target)
        needs_anchor = self.args.warmup_anchor > 0 and (self._draws_from_pool or isinstance(self.model, PeftModel))
        needs_advantage = self.args.objective in NEEDS_WARMUP_LOGP
        num_decisions = distinct.num_decisions * (needs_anchor or needs_advantage)
        is_decision = prefix_mask(num_decisions, branches.mask.size(-1))
        predicted = branches.is_target | is_decision
        logits = encoded.predictions(branches, predicted)

        def to_warmups(values_N: Tensor, mask: Tensor) -> Tensor:
            """(B, K) sums over the tokens whose values these are, in row-major order of the mask."""
            return sums_where(mask, values_N).gather(1, index_BK)

        target_logits, target_ids = logits[branches.is_target[predicted]], branches.ids[branches.is_target]
        target_logp_N = token_logps(target_logits, target_ids)
        self._record_targets(target_logits.detach(), target_ids, lambda values: to_warmups(values, branches.is_target))
        warmup_logp_BK = kl_BK = gain_BK = None
        decision_logits = logits[is_decision[predicted]]
        if needs_advantage or (needs_anchor and self._draws_from_pool):
            drawn_ids = distinct.ids[prefix_mask(num_decisions, distinct.ids.size(-1))]
            warmup_logp_BK = to_warmups(self.sampling.logps(decision_logits, drawn_ids), is_decision)
        drawn_logp_BK = warmups.logp if self._draws_from_pool else None
        if needs_anchor and self._draws_from_pool:
            kl_BK = drawn_logp_BK - warmup_logp_BK
        elif needs_anchor:
            reference_logits = self._reference_logits(encoded, branches, is_decision)
            kl_BK = to_warmups(divergence(decision_logits, reference_logits), is_decision)
        if self.args.objective in NEEDS_GAIN:
            probability_BK = to_warmups(target_logp_N.detach().exp(), branches.is_target)
            alone_B1 = self._target_sums(encoded, no_warmups(encoded.prompt), target, torch.exp)
            gain_BK = (probability_BK - alone_B1) / target.mask.sum(1, keepdim=True).clamp(min=1)
        target_logp_BK = to_warmups(target_logp_N, branches.is_target)
        return Scores(target_logp_BK, warmup_logp_BK, kl_BK, drawn_logp_BK, gain_BK)

    def _reference_logits(self, encoded: Encoded, branches: Branches, predicted: Tensor) -> Tensor:
        """(N, V) of the model with its adapter off, without gradient."""
        model = self.accelerator.unwrap_model(self.model)
        with evaluation_mode(model), adapter_off(model), self.accelerator.autocast():
            return encoded.again(model).predictions(branches, predicted)

    @torch.no_grad()
    def _target_sums(
        self,
        encoded: Encoded,
        warmups: Warmups,
        target: Tokens,
        of: Callable[[Tensor], Tensor] = lambda logps: logps,
    ) -> Tensor:
        """(B, K) sums over the target's tokens after these warmups, `of` their log-probabilities, without gradient."""
        branches = self._lay_out(warmups, target)
        logits = encoded.predictions(branches, branches.is_target)
        return sums_where(branches.is_target, of(token_logps(logits, branches.ids[branches.is_target])))

    # ---- Metrics: TRL's own, and the warmups' ----

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log_ratios(self, ratios: Ratios) -> None:
        """Append ratios of sums over all ranks; what was counted nowhere is left out."""
        sums = torch.stack([x.float() for pair in ratios.values() for x in pair])
        sums = self.accelerator.reduce(sums, reduction="sum").view(-1, 2).tolist()
        for name, (numerator, denominator) in zip(ratios, sums):
            if denominator:
                self._metrics[self._mode][name].append(numerator / denominator)

    @torch.no_grad()
    def _record_targets(self, logits_NV: Tensor, ids_N: Tensor, to_warmups: Callable[[Tensor], Tensor]) -> None:
        """TRL's `entropy` and `mean_token_accuracy` over target tokens, averaged over the warmups."""
        count = to_warmups(torch.ones_like(ids_N)).sum()
        entropy_N = torch.cat([Categorical(logits=rows.float()).entropy() for rows in logits_NV.split(ENTROPY_ROWS)])
        is_right_N = (logits_NV.argmax(-1) == ids_N).long()
        self._log_ratios(
            {
                "entropy": (to_warmups(entropy_N).sum(), count),
                "mean_token_accuracy": (to_warmups(is_right_N).sum(), count),
            }
        )

    def _count_tokens(self, inputs: dict[str, Tensor]) -> None:
        """TRL's `num_tokens`: tokens of the data seen in training, whatever is generated beside them."""
        if self._mode == "train":
            count = self.accelerator.reduce(inputs["attention_mask"].sum(), reduction="sum")
            self._total_train_tokens += count.item() // self._tp_size
        self._metrics[self._mode]["num_tokens"] = [self._total_train_tokens]

    def _record(self, encoded, warmups: Warmups, target: Tokens, scores: Scores, credit) -> None:
        ratios = self._monitor.ratios(encoded.prompt, warmups, target, scores, credit)
        every = self.args.warmup_gain_steps
        if every and (self._mode == "eval" or self.state.global_step % every == 0):
            ratios |= self._monitor.gains(
                encoded.prompt, warmups, scores, lambda instead: self._target_sums(encoded, instead, target)
            )
        self._log_ratios(ratios)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's; then the table of `log_warmups`, and a warning where warmups have collapsed."""
        super().log(logs, start_time)
        if self._mode == "train" and self.is_world_process_zero():
            self._monitor.warn(logs, self.state.global_step / max(self.state.max_steps, 1))
            self._monitor.show(self.state.global_step)

    # ---- The pool: warmups drawn once, before training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional, **keywords):
        """As in `SFTTrainer`; with `warmup_source="base"` the warmups that are missing are drawn first.

        Args:
            resume_from_checkpoint: True is the last checkpoint that is whole.

        Raises:
            ValueError: a checkpoint that is not there, or not whole; and what `draw_warmups` raises.
        """
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if self.args.warmup_source == "base":
            self.draw_warmups()
        return super().train(checkpoint, *positional, **keywords)

    def draw_warmups(self, draw: DrawFunction | None = None) -> WarmupPool:
        """Draw M warmups for each training prompt from the model with its adapter off, where they are not there yet.

        Args:
            draw: who draws instead of this model: prompts (token ids of each) and a seed -> `Warmups` (B, M). Its
                first draws are compared with this model.

        Raises:
            ValueError: a pool of another model, tokenizer or law, a file that was cut short, draws of another model,
                a base model all of whose warmups are empty or equal, or missing warmups of a whole model that this
                trainer has trained since it started.
        """
        base = self._base(num_warmups=self.args.warmup_pool_size)
        fingerprint = base_fingerprint(base.model)
        if self._base_fingerprint is None:
            self._base_fingerprint = fingerprint
        draw = None if draw is None else base.checking(draw)
        prompts = list(prompts_of(self.train_dataset))
        law = base.law(self._base_fingerprint, self._tokenizer)
        has_moved = fingerprint != self._base_fingerprint
        self._pool = fill_pool(base, prompts, law, self.args, self.accelerator, draw, has_moved=has_moved)
        return self._pool

    def _base(self, **changes: Any) -> BaseModel:
        sampling = dataclasses.replace(self.sampling, **changes)
        return BaseModel(self.accelerator.unwrap_model(self.model), sampling, self.accelerator.autocast)

    # ---- Checkpoints: the state that says how far the run is comes last, so who finds it finds a whole one ----

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)  # of one that is written again
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """The last that other ranks write."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with adapters_load_as_saved(self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with adapters_load_as_saved(self.model):
            super()._load_best_model()

    def _run_epoch(self, *positional, **keywords):
        """Nothing where a run goes on that had done all its steps: `Trainer` would do one more in mid-epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*positional, **keywords)

    # ---- Around the training loop ----

    def evaluation_loop(self, *positional, **keywords):
        """Draw the same warmups at every evaluation."""
        with random_numbers_from(self.args.seed, self.accelerator.device):
            return super().evaluation_loop(*positional, **keywords)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As in `SFTTrainer`; fresh rows go through the `formatting_func` that the trainer was made with."""
        if self._dict_formatting is not None:
            eval_dataset = format_rows(eval_dataset, self._dict_formatting)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        """TRL's preparation, and a count of what its `max_length` costs."""
        self.completion_only_loss = True  # also of tokenized rows, where TRL would leave a `completion_mask` unread
        if not isinstance(dataset, Dataset):
            return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        whole_args = copy.copy(args)
        whole_args.max_length, whole_args.shuffle_dataset = None, False
        whole = super()._prepare_dataset(dataset, processing_class, whole_args, packing, formatting_func, dataset_name)
        check_spans(dataset_name, whole)
        kept = super()._prepare_dataset(whole, processing_class, args, packing, None, dataset_name)
        report_lengths(dataset_name, whole, kept, args)
        check_spans(dataset_name, kept)
        check_targets(dataset_name, kept)
        check_context(dataset_name, kept, self._context, self._branch_overhead)
        return kept

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Beside the adapter, what decoding and merging need, so that every saved folder is whole.

        Where something cannot be written, the folder's files stay as they were.
        """
        folder = Path(output_dir or self.args.output_dir)
        with replacing_files(folder) as staging:
            super()._save(str(staging), state_dict)
            if self.args.should_save:
                put_adapter_first(staging, self.model)
                self.warmup_config.save(staging)
                export_decoding(staging)
                self.training_record().save(staging)
            (staging / CARD_NAME).unlink(missing_ok=True)  # peft's template
        if self.args.should_save:
            write_model_card(folder)

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """TRL's card would not say how to decode; `_save` writes ours."""

    @property
    def warmup_config(self) -> WarmupConfig:
        return WarmupConfig(
            self.args.warmup_separator,
            self._warmup_separator_ids,
            self.args.max_warmup_length,
            list(self.sampling.end_token_ids),
        )

    def training_record(self) -> TrainingRecord:
        base = without_peft_wrapper(self.accelerator.unwrap_model(self.model))
        quantization = getattr(base.config, "quantization_config", None)
        lora = next(iter(getattr(self.model, "peft_config", {}).values()), None)
        options = {option.name: getattr(self.args, option.name) for option in dataclasses.fields(WarmupOptions)}
        return TrainingRecord(
            base_model=get_config_model_id(base.config),
            base_revision=getattr(base.config, "_commit_hash", None),
            dtype=str(base.dtype).removeprefix("torch."),
            num_embeddings=base.get_input_embeddings().weight.size(0),
            quantization_config=quantization.to_dict() if hasattr(quantization, "to_dict") else quantization,
            settings={
                **options,
                "learning_rate": self.args.learning_rate,
                "steps": self.state.global_step,
                "batch_size": self._train_batch_size  # what auto_find_batch_size has come to
                * self.args.gradient_accumulation_steps
                * self.accelerator.num_processes,
                "lora_r": getattr(lora, "r", None),
                "seed": self.args.seed,
            },
            data=self.data_record,
            versions={name: version(name) for name in ("warmup_peft", "trl", "transformers", "peft", "torch")},
        )


def why_checkpointing_forbids(args: WarmupSFTConfig) -> str | None:
    """In words, why prompts cannot be shared with this gradient checkpointing; None where they can."""
    if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        return "reentrant gradient checkpointing loses the gradient that flows through the shared prompt"
    return None
