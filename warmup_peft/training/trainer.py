"""`WarmupSFTTrainer`: SFT whose target follows warmups that the model wrote itself.

Wiring only: encode -> sample -> score -> objective. The arithmetic is in `warmup_peft.method`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import get_logger
from trl import SFTTrainer

from warmup_peft.inference.generation import end_token_ids
from warmup_peft.inference.hub import commit_of
from warmup_peft.inference.loading import check_is_there, context_length, switches_off
from warmup_peft.inference.quantization import keep_4bit_weights_in_place, save_as_it_is
from warmup_peft.method.branches import Branches, Tokens, Warmups, split_examples
from warmup_peft.method.encoding import Encoded, PromptEncoder
from warmup_peft.method.importance import RatioBounds, corrected, with_source
from warmup_peft.method.model import (
    adapter_off,
    evaluation_mode,
    keep_initial_weights,
    random_numbers_from,
    without_peft_wrapper,
)
from warmup_peft.method.objective import Credit, Scores, credit_of, hindsight_credit, over_length, warmup_loss
from warmup_peft.method.predictions import Predictions
from warmup_peft.method.sampling import NaNLogitsError, SamplingSettings
from warmup_peft.method.scoring import score_warmups, target_logps
from warmup_peft.settings.traits import OBJECTIVE_TRAITS
from warmup_peft.settings.versions import check_overridden
from warmup_peft.training.checkpoints import checkpoint_to_resume, last_checkpoint
from warmup_peft.training.checks import (
    adapter_configs,
    check_context,
    check_one_device,
    check_sharding,
    check_spans,
    check_targets,
    check_trainer_arguments,
    checked_stream,
    is_fsdp,
    memory_advice,
    model_config,
)
from warmup_peft.training.config import WarmupSFTConfig, say_notes
from warmup_peft.training.conversations import (
    as_thinking_rows,
    format_of_rows,
    with_one_answer,
    with_opening,
    with_texts,
)
from warmup_peft.training.dataset import (
    apply_dict_formatting,
    as_warmup_config,
    format_rows,
    load_tokenizer,
    name_the_base,
    own_settings,
    record_of_rows,
    report_lengths,
)
from warmup_peft.training.engine import EngineSampler, check_engine
from warmup_peft.training.eval_generation import check_eval_generation, scores_of_answers
from warmup_peft.training.monitor import Ratios, WarmupMonitor, keep_samples
from warmup_peft.training.pool import SampleFunction, WarmupPool
from warmup_peft.training.pushing import PushesListedFiles
from warmup_peft.training.resuming import check_resumed, settings_in
from warmup_peft.training.saving import SavesWholeFolders, training_record
from warmup_peft.training.sources import (
    SOURCES,
    Base,
    DataWarmups,
    Policy,
    largest_of,
    random_numbers_of_rank,
    sampling_settings,
)
from warmup_peft.training.trackers import send_table

logger = get_logger(__name__)

STANDS_IN_FOR = (  # private methods of the base classes, which may move in any release
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_rng_state",
    "_prepare_dataset",
    "_push_from_checkpoint",
    "_run_epoch",
    "_save",
    "_save_checkpoint",
    "_save_rng_state",
)
VERIFREE_VANISHES = -60  # nats; no float32 gradient is left of exp(R) below


class WarmupSFTTrainer(SavesWholeFolders, PushesListedFiles, SFTTrainer):
    """TRL's `SFTTrainer`, except that the target's likelihood is taken after prompt, warmup and separator.

    For each example the model, as it is now, writes `args.num_warmups` short sequences after the prompt; the loss is
    the mean over them of the target's negative log-likelihood (and, with `args.warmup_anchor`, a divergence that keeps
    the warmups where the model without its adapter would have them). Equations: `warmup_peft.method.objective`;
    source: "Warmup Generations", arXiv 2502.12304.

    Takes exactly what `SFTTrainer` takes. The data must show where the prompt ends: `prompt` and `completion` columns,
    plain or conversational, or labels that are -100 on the prompt. `formatting_func` may return such a dictionary.

    To change what warmups are or how they are scored, override `sample_warmups` or `score_warmups`.

    Attributes:
        source: where the warmups of the training come from, see `warmup_peft.training.sources`.
        encoder: encodes the prompts of a batch.
        data_record: where the rows came from, for the model card; a caller who knows may set it.
        base_revision: commit of a base that was named by its id on the Hub; a caller who loaded one may set it, so
            that the adapter is put on the same weights again.

    Raises:
        ValueError: for what would train something else than asked for, before a model is loaded. It says how to fix
            it.
    """

    _tag_names = ["trl", "sft", "warmup-sft"]
    _name = "Warmup SFT"
    _paper = {
        "title": "Warmup Generations: A Task-Agnostic Approach for Guiding Sequence-to-Sequence Learning with "
        "Unsupervised Initial State Generation",
        "id": "2502.12304",
    }
    loss_is_scaled_for_ga = True  # divided by the targets of the whole accumulated batch, see compute_loss

    @functools.wraps(SFTTrainer.__init__)  # type: ignore[misc]
    def __init__(self, *positional, **keywords):
        call = inspect.signature(SFTTrainer.__init__).bind(self, *positional, **keywords)
        arguments = call.arguments
        if isinstance(arguments["model"], str):
            check_is_there(arguments["model"])
        arguments["peft_config"] = copy.deepcopy(arguments.get("peft_config"))  # TRL writes into it
        adapters = adapter_configs(arguments["model"], arguments["peft_config"])
        args = own_settings(as_warmup_config(arguments.get("args"), arguments["model"]), adapters)
        arguments["args"] = args
        data_record = record_of_rows(arguments.get("train_dataset"))
        self._dict_formatting = apply_dict_formatting(arguments)
        check_trainer_arguments(arguments, args)
        check_eval_generation(args)
        if arguments.get("processing_class") is None:
            arguments["processing_class"] = load_tokenizer(arguments["model"], args)
        self.warmup_format = format_of_rows(arguments, args)
        self._branch_overhead = args.max_warmup_length + len(self.warmup_format.separator_ids)
        self._context = context_length(model_config(arguments["model"], args))
        quantization = arguments.get("quantization_config") or (args.model_init_kwargs or {}).get(
            "quantization_config"
        )
        check_engine(args, model_config(arguments["model"], args), quantization)
        named = arguments["model"] if isinstance(arguments["model"], str) else None
        super().__init__(*call.args[1:], **call.kwargs)

        self.base_revision = named and commit_of(named, (args.model_init_kwargs or {}).get("revision"))
        self._prepare_model()
        self.model_accepts_loss_kwargs = True  # so that the targets of the accumulated batch are always counted
        self.data_record: dict[str, Any] = data_record
        self.encoder = PromptEncoder(
            self.model,
            self.args.prefix_sharing,
            reason=why_plain_rows(self.args) or self._why_balancing_forbids(),
            balances=self.aux_loss_enabled,
            largest=largest_of(self.accelerator),
            is_mixed=self.args.bf16 or self.args.fp16,
            num_opening=len(self.warmup_format.opening_ids) * args.learn_separator,
        )
        self._start_sources()
        self._ratio_bounds = RatioBounds(
            args.vllm_importance_sampling_clip_min,
            args.vllm_importance_sampling_clip_max,
            masks=args.vllm_importance_sampling_mode == "sequence_mask",
        )
        self._data_warmups = DataWarmups(self.train_dataset, self.sampling) if args.warmup_from_data else None
        self._monitor = WarmupMonitor(args, self._tokenizer, functools.partial(send_table, self))
        say_notes(args)

    def _prepare_model(self) -> None:
        """Check the model that TRL has made, and make it save and switch back to its base as the method needs it."""
        check_one_device(self.model, self.args)  # TRL may have put a model that was named on one of several GPUs
        keep_4bit_weights_in_place(self.model)
        save_as_it_is(without_peft_wrapper(self.model))
        name_the_base(self.model)
        if self.aux_loss_enabled:  # asked for where rows are scored, not in every forward
            without_peft_wrapper(self.model).config.get_text_config().output_router_logits = False
        needs_base = self.args.warmup_anchor > 0 or self.args.warmup_source == "base"
        if needs_base and isinstance(self.model, PeftModel) and not switches_off(self.model):
            keep_initial_weights(self.model)
        if is_fsdp(self.args):
            check_sharding(self.model)

    def _start_sources(self) -> None:
        """Set where the warmups of training and evaluation come from, and start the engine where one samples them."""
        end_tokens = end_token_ids(self.model, self._tokenizer)
        sampling = sampling_settings(self.args, self.warmup_format, end_tokens, self._tokenizer.pad_token_id)
        arguments = (self.args, sampling, self.accelerator, self._tokenizer)
        self.source = SOURCES[self.args.warmup_source](*arguments)
        self._eval_source = Policy(*arguments) if self.source.is_off_policy else self.source
        if self.args.use_vllm and not self.source.is_off_policy:
            from warmup_peft.training.vllm_engine import start_engine  # imports vLLM

            engine = start_engine(self.model, *arguments)
            self.source.sampler = EngineSampler(engine, lambda: self.state.global_step)

    @property
    def sampling(self) -> SamplingSettings:
        """The distribution that the model's own warmups are sampled from."""
        return self.source.sampling

    @sampling.setter
    def sampling(self, sampling: SamplingSettings) -> None:
        self.source.sampling = self._eval_source.sampling = sampling

    def training_step(self, *positional, **keywords):
        try:
            return super().training_step(*positional, **keywords)
        except torch.OutOfMemoryError as error:
            if self.args.auto_find_batch_size:  # which looks for the original's words
                raise
            raise torch.OutOfMemoryError(memory_advice(self.args, self.model)) from error

    def _why_balancing_forbids(self) -> str | None:
        if not self.aux_loss_enabled:
            return None
        return (
            f"the load-balancing loss of its experts (router_aux_loss_coef={self.router_aux_loss_coef}) is that of "
            "whole rows; router_aux_loss_coef 0 goes without it"
        )

    # ---- A batch, in one direction ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs:
            raise ValueError(
                "Logits are not returned: an example has one set of them for each warmup. Call `evaluate`, or "
                "`warmup-peft evaluate` for answers."
            )
        prompt, target = split_examples(inputs["input_ids"], inputs["labels"], inputs["attention_mask"])
        encoded = self.encoder(model, prompt, room=self._branch_overhead + target.ids.size(1))
        warmups = self.sample_warmups(model, encoded)
        scores = self.score_warmups(encoded, warmups, target)
        if self.args.mask_truncated_warmups:
            scores = scores._replace(counts_BK=~warmups.truncated)
        self._check_numbers(scores)
        weighed, credit = self._weigh(warmups, target, scores)
        loss = warmup_loss(weighed, credit, objective=self.args.objective, beta=self.args.warmup_anchor)
        num_targets = target.mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(num_targets).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # `num_items_in_batch` counts every rank's targets, and DDP averages the gradients over the ranks
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if self.aux_loss_enabled:
            # a mean over the batch's tokens, so its mean over accumulated batches and ranks is wanted, as in TRL
            steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * encoded.aux_loss / steps
            aux_loss = self.accelerator.gather_for_metrics(encoded.aux_loss.detach()).mean().item()
            self._metrics[self._mode]["aux_loss"].append(aux_loss)

        self._count_tokens(inputs)
        self.record_metrics(encoded, warmups, target, scores, credit)
        return loss

    def sample_warmups(self, model, encoded: Encoded) -> Warmups:
        """(B, K) warmups of `warmup_source`, some of them left out by `warmup_dropout`; in evaluation always whole.

        With `warmup_from_data` the first of them is the row's own thought.

        With `warmup_source="base"` an evaluation samples the model's own.

        Args:
            model: as it is called in training.
            encoded: the B prompts.
        """
        source = self._eval_source if self._mode == "eval" else self.source
        with random_numbers_of_rank(self.accelerator):
            try:
                warmups = source.sample(
                    self.accelerator.unwrap_model(model), encoded, epoch=int(self.state.epoch or 0)
                )
            except NaNLogitsError as error:
                self._stop_at_nan(error.rows)
            if self._data_warmups is not None and self._mode == "train":
                warmups = self._data_warmups.put_first(warmups, encoded.prompt)
            if self.args.warmup_dropout == 0 or self._mode == "eval":
                return warmups
            left_out = torch.rand(warmups.lengths.shape, device=warmups.ids.device) < self.args.warmup_dropout
            return warmups.emptied(left_out)

    def score_warmups(self, encoded: Encoded, warmups: Warmups, target: Tokens) -> Scores:
        """What the objective needs of (B, K) warmups, with gradient where one flows.

        Args:
            encoded: the B prompts.
            warmups: of `sample_warmups`.
            target: (B, Y), padded on the right.
        """
        is_off_policy = self.source.is_off_policy and self._mode == "train"
        traits = OBJECTIVE_TRAITS[self.args.objective]
        return score_warmups(
            encoded,
            warmups,
            target,
            self.sampling,
            with_warmup_logp=traits.has_advantage,
            with_kl=self.args.warmup_anchor > 0 and (is_off_policy or isinstance(self.model, PeftModel)),
            kl_from_reference=not traits.is_penalised,
            with_gain=traits.needs_gain,
            source_logp_BK=warmups.logp if is_off_policy else None,
            reference=lambda *asked: self._reference(encoded, *asked),
        )

    def _weigh(self, warmups: Warmups, target: Tokens, scores: Scores) -> tuple[Scores, Credit]:
        """The batch's scores and credit, corrected for the engine that sampled its warmups where one did."""
        log_ratio_BK, objective = warmups.log_ratio, self.args.objective
        if log_ratio_BK is None or not self.args.vllm_importance_sampling_correction:
            return scores, self._credit(warmups, target, scores)
        scores = with_source(scores, log_ratio_BK, objective)
        return corrected(scores, self._credit(warmups, target, scores), log_ratio_BK, objective, self._ratio_bounds)

    def _credit(self, warmups: Warmups, target: Tokens, scores: Scores) -> Credit:
        if self._has_hindsight:
            found_BK = self._monitor.shares_found(warmups, target)
            return hindsight_credit(scores.target_logp_BK, found_BK, scores.counts_BK)
        weight_BK, advantage_BK = credit_of(
            scores,
            objective=self.args.objective,
            beta=self.args.warmup_anchor,
            normalize_advantages=self.args.normalize_advantages,
            advantage_clip=self.args.advantage_clip,
        )
        num_decisions_BK = warmups.num_decisions * (1 if scores.counts_BK is None else scores.counts_BK)
        loss_type, max_length = self.args.warmup_loss_type, self.args.max_warmup_length
        return weight_BK, over_length(advantage_BK, loss_type, num_decisions_BK, max_length)

    def _reference(self, encoded: Encoded, branches: Branches, predicted: Tensor) -> Predictions:
        """Predictions of the model with its adapter off, without gradient."""
        with self._as_reference() as model:
            return encoded.again(model).predictions(branches, predicted).within(self._as_reference)  # type: ignore[union-attr]

    @contextmanager
    def _as_reference(self) -> Iterator[PreTrainedModel | PeftModel]:
        model = self.accelerator.unwrap_model(self.model)
        with evaluation_mode(model), adapter_off(model), self.accelerator.autocast():
            yield model

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

    # ---- Metrics: TRL's own, and the warmups' ----

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _has_hindsight(self) -> bool:
        return self._mode == "train" and self.state.global_step < self.args.hindsight_steps

    def _log_ratios(self, ratios: Ratios) -> None:
        """Append ratios of sums over all ranks; what was counted nowhere is left out."""
        sums = torch.stack([x.float() for pair in ratios.values() for x in pair])
        sums = self.accelerator.reduce(sums, reduction="sum").view(-1, 2).tolist()
        for name, (numerator, denominator) in zip(ratios, sums):
            if denominator:
                self._metrics[self._mode][name].append(numerator / denominator)

    def _count_tokens(self, inputs: dict[str, Tensor]) -> None:
        """TRL's `num_tokens`: tokens of the data seen in training, whatever is generated beside them."""
        if self._mode == "train":
            count = self.accelerator.reduce(inputs["attention_mask"].sum(), reduction="sum")
            self._total_train_tokens += count.item() // self._tp_size
        self._metrics[self._mode]["num_tokens"] = [self._total_train_tokens]

    def record_metrics(
        self, encoded: Encoded, warmups: Warmups, target: Tokens, scores: Scores, credit: Credit
    ) -> None:
        """TRL's metrics of the batch and those of its warmups, to be averaged until the next log."""
        ratios = self._monitor.ratios(encoded.prompt, warmups, target, scores, credit)
        if self._has_hindsight:
            weight_BK, _ = credit
            ratios["warmups/hindsight"] = ((weight_BK.sum(1) > 0).sum(), torch.ones_like(weight_BK[:, 0]).sum())
        if warmups.log_ratio is not None:
            ratio_BK = self._ratio_bounds.ratio(warmups.log_ratio)
            ratios["sampling/importance_sampling_ratio/mean"] = (ratio_BK.sum(), torch.ones_like(ratio_BK).sum())
            ratios["warmups/engine_difference"] = (warmups.log_ratio.abs().sum(), warmups.num_decisions.sum())
        every = self.args.warmup_gain_steps
        if every and (self._mode == "eval" or self.state.global_step % every == 0):

            def score(instead: Warmups) -> Tensor:
                return target_logps(encoded, instead, target, self.sampling.separator_ids)

            ratios |= self._monitor.gains(encoded.prompt, warmups, scores, score)
        self._log_ratios(ratios)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's; then the table of `log_warmups`, and a warning where warmups have collapsed."""
        super().log(logs, start_time)
        if self._mode == "train" and self.is_world_process_zero():
            self._monitor.warn(logs, self.state.global_step / max(self.state.max_steps, 1))
            rows = self._monitor.last_rows()
            keep_samples(self.state.log_history, rows)
            if rows and self.args.log_warmups:
                self._monitor.show(rows, self.state.global_step)

    # ---- Around the training loop ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional, **keywords):
        """As in `SFTTrainer`; with `warmup_source="base"` the warmups that are missing are sampled first.

        Args:
            resume_from_checkpoint: True is the last checkpoint that is whole.

        Raises:
            ValueError: a checkpoint that is not there, or not whole, or of a run with settings that a run keeps (see
                `warmup_peft.training.resuming`); and what `fill_warmup_pool` raises.
        """
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None:
            changed = check_resumed(checkpoint, settings_in(training_record(self)))
            if changed and self.is_world_process_zero():
                logger.warning(changed)
        if self.args.warmup_source == "base":
            self.fill_warmup_pool()
        return super().train(checkpoint, *positional, **keywords)

    def fill_warmup_pool(self, sample: SampleFunction | None = None) -> WarmupPool:
        """Sample M warmups from the model with its adapter off for each training prompt that has none yet.

        Args:
            sample: an external sampler instead of this model: prompts (token ids of each) and a seed -> `Warmups`
                (B, M). Its first batch is compared with this model.

        Raises:
            ValueError: `warmup_source` is not `base`; a pool of another model, tokenizer or distribution, a file that
                was cut short, samples of another model, a base model all of whose warmups are empty or equal, or
                missing warmups of a whole model that this trainer has trained since it started.
        """
        if not isinstance(self.source, Base):
            raise ValueError(f"warmup_source={self.args.warmup_source} keeps no pool. Set warmup_source to 'base'.")
        return self.source.fill(self.accelerator.unwrap_model(self.model), self.train_dataset, sample)

    def _run_epoch(self, *positional, **keywords):
        """Nothing where a run goes on that had done all its steps: `Trainer` would do one more in mid-epoch."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*positional, **keywords)

    def evaluation_loop(self, dataloader, *positional, metric_key_prefix="eval", **keywords):
        """Sample the same warmups at every evaluation, and score the answers of `eval_generate`."""
        keywords["metric_key_prefix"] = metric_key_prefix
        with random_numbers_from(self.args.seed, self.accelerator.device):
            output = super().evaluation_loop(dataloader, *positional, **keywords)
            if self.args.eval_generate:
                scores = scores_of_answers(self, self._monitor, dataloader.dataset, metric_key_prefix)
                output.metrics.update(scores)
            return output

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As in `SFTTrainer`; fresh rows go through the `formatting_func` that the trainer was made with."""
        if self._dict_formatting is not None:
            eval_dataset = format_rows(eval_dataset, self._dict_formatting)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        """TRL's preparation, and a count of what its `max_length` costs."""
        self.completion_only_loss = True  # also of tokenized rows, where TRL would leave a `completion_mask` unread
        dataset = with_texts(with_one_answer(dataset, args))
        if self.warmup_format.thinking is not None:
            dataset = as_thinking_rows(
                dataset,
                processing_class,
                self.warmup_format,
                num_proc=args.dataset_num_proc,
                keeps_thoughts=args.warmup_from_data,
            )
        if not isinstance(dataset, Dataset):
            rows = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
            rows = with_opening(rows, self.warmup_format.opening_ids)
            return checked_stream(dataset_name, rows, self._context, self._branch_overhead)
        whole_args = copy.copy(args)
        whole_args.max_length, whole_args.shuffle_dataset = None, False
        whole = super()._prepare_dataset(dataset, processing_class, whole_args, packing, formatting_func, dataset_name)
        check_spans(dataset_name, whole)
        whole = with_opening(whole, self.warmup_format.opening_ids)
        kept = super()._prepare_dataset(whole, processing_class, args, packing, None, dataset_name)
        report_lengths(dataset_name, whole, kept, args, len(self.warmup_format.opening_ids))
        check_spans(dataset_name, kept)
        check_targets(dataset_name, kept)
        check_context(dataset_name, kept, self._context, self._branch_overhead)
        return kept


def why_plain_rows(args: WarmupSFTConfig) -> str | None:
    """In words, why prompts cannot be shared with these settings; None where they can."""
    if is_fsdp(args):
        return "FSDP frees a layer's weights when its forward is over, and a shared prompt's gradient needs them later"
    if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        return "reentrant gradient checkpointing loses the gradient that flows through the shared prompt"
    return None


check_overridden(WarmupSFTTrainer, SFTTrainer, STANDS_IN_FOR, "trl", "transformers")
