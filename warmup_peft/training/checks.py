"""Refusals before long work: what would train something else than was asked for, and how to fix it."""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, ProcessorMixin

from warmup_peft.evaluation.splits import shows_boundary
from warmup_peft.inference.loading import check_trainable, trusted_code
from warmup_peft.method.model import keeps_initial_weights
from warmup_peft.method.prefix import rope_limit
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.conversations import check_conversations, datasets_of

LOST_WHEN_LOADED = ("pissa_niter_", "corda", "lora_ga")  # random numbers, or statistics of data
LOGITS_HOOKS = ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func")


def check_trainer_arguments(arguments: dict[str, Any], args: WarmupSFTConfig) -> None:
    """Raise ValueError for a call of the trainer that cannot work. Changes nothing.

    Loads nothing but the model's configuration.

    Args:
        arguments: what `SFTTrainer` takes, by name.
        args: the trainer's settings, `warmup_anchor` among them.
    """
    if isinstance(arguments["model"], str):
        check_trainable(arguments["model"], (args.model_init_kwargs or {}).get("revision"))
    for name in LOGITS_HOOKS:
        if arguments.get(name) is not None:
            raise ValueError(
                f"{name} works on the logits of one row an example, which do not exist here: every example is scored "
                f"once for each warmup. Leave {name} out: the trainer logs its own metrics, and `warmup-peft "
                "evaluate` scores answers."
            )
    if isinstance(arguments.get("processing_class"), ProcessorMixin):
        raise ValueError("Vision-language models are not supported. Pass a tokenizer and a text-only model.")
    train_dataset = arguments.get("train_dataset")
    if args.warmup_source == "base" and train_dataset is not None and not isinstance(train_dataset, Dataset):
        raise ValueError(
            "warmup_source base samples warmups for every row before training, but the train dataset is a stream. "
            "Load it without streaming, or set warmup_source to 'policy'."
        )
    for name, dataset in datasets_of(arguments).items():
        check_columns(name, dataset, args)
    check_adapters(adapter_configs(arguments["model"], arguments.get("peft_config")), args)
    check_model_config(model_config(arguments["model"], args))
    check_parallelism(args)
    check_one_device(arguments["model"], args)


def model_config(model: str | PreTrainedModel, args: WarmupSFTConfig) -> PretrainedConfig:
    if not isinstance(model, str):
        return model.config
    revision = (args.model_init_kwargs or {}).get("revision")
    with trusted_code(model):
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=args.trust_remote_code)


def has_transform(dataset: Any) -> bool:
    """Whether rows are made at the moment they are read (`Dataset.with_transform`)."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def check_columns(name: str, dataset: Any, args: WarmupSFTConfig) -> None:
    """The first row must show where the prompt ends."""
    if has_transform(dataset) and not (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        return  # TRL refuses it, in words of its own
    sample = next(iter(dataset), None)
    if sample is None:
        raise ValueError(f"The {name} dataset is empty. Give it at least one row.")
    if "image" in sample or "images" in sample:
        raise ValueError(f"The {name} dataset holds images. Warmups are text: use a text-only dataset.")
    if not shows_boundary(sample):
        raise ValueError(
            f"The {name} dataset (columns {', '.join(sorted(sample))}) does not show where the prompt ends and the "
            "target begins. Give it the columns `prompt` and `completion`; a `formatting_func` may return them as a "
            "dictionary."
        )
    if isinstance(dataset, Dataset):
        for column in ({"prompt", "completion"} & set(sample)) or ():
            for row, value in enumerate(dataset[column], 1):
                if value is None:
                    raise ValueError(
                        f"Row {row} of the {name} dataset has no `{column}`. Fill it in or remove the row."
                    )
    if not args.assistant_only_loss:
        check_conversations(name, dataset)


def adapter_configs(model: str | PreTrainedModel, peft_config: Any) -> list[Any]:
    own = model.peft_config.values() if isinstance(model, PeftModel) else ()
    return [*own, *([] if peft_config is None else [peft_config])]


def check_adapters(configs: list[Any], args: WarmupSFTConfig) -> None:
    if len(configs) > 1:
        raise ValueError(
            f"The model has {len(configs)} adapters, and a saved folder holds one. Merge or delete the others "
            "(PeftModel.merge_and_unload, delete_adapter), and pass a peft_config only with a model that has none."
        )
    for config in configs:
        if getattr(config, "is_prompt_learning", False) or getattr(config, "alora_invocation_tokens", None):
            raise ValueError(
                f"{type(config).__name__} depends on where tokens stand in the row (virtual tokens, invocation "
                "tokens), and warmups move them. Use plain LoRA (peft.LoraConfig)."
            )
        if targets_lm_head(config):
            raise ValueError(
                "An adapter on `lm_head` is not supported by TRL's SFTTrainer nor here. Remove 'lm_head' from "
                "target_modules ('all-linear' leaves it out by itself)."
            )
        init = str(getattr(config, "init_lora_weights", "")).lower()
        if init.startswith(LOST_WHEN_LOADED):
            raise ValueError(
                f"init_lora_weights='{init}' changes the base by what peft cannot compute again from the saved "
                "folder, so the trained adapter would not fit its base. Set init_lora_weights to 'pissa', 'olora' or "
                "true."
            )
    if args.warmup_anchor > 0 and args.warmup_source != "base" and not configs:
        raise ValueError(
            f"warmup_anchor={args.warmup_anchor} compares with the model whose adapter is off, but this model "
            "has no adapter. Pass a peft_config (such as peft.LoraConfig), set warmup_source to base, whose anchor "
            "needs none, or set warmup_anchor to 0."
        )


def targets_lm_head(peft_config: Any) -> bool:
    targets = getattr(peft_config, "target_modules", None) or ()
    if isinstance(targets, str):
        return targets != "all-linear" and re.fullmatch(targets, "lm_head") is not None
    return "lm_head" in targets


def check_model_config(config: PretrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ValueError(
            f"{config.model_type} is an encoder-decoder model; warmups are written by decoder-only models. "
            "Choose a causal language model."
        )


def check_parallelism(args: WarmupSFTConfig) -> None:
    plugin = args.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            "Warmups are written by the model between two training steps, which DeepSpeed ZeRO-3 does not allow here. "
            "Use FSDP2, DDP, DeepSpeed ZeRO-2 or a single GPU with 4-bit weights."
        )
    if is_fsdp(args):
        check_fsdp(args)
    parallelism = args.parallelism_config
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "Context and sequence parallelism cut rows across GPUs, but a warmup needs its whole prompt. "
            "Set cp_size and sp_size to 1."
        )


def is_fsdp(args: WarmupSFTConfig) -> bool:
    """Whether FSDP is asked for, by the settings or by `accelerate launch`."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_fsdp(args: WarmupSFTConfig) -> None:
    """Raise ValueError for what does not work where each rank holds a part of every weight."""
    version = (args.fsdp_plugin_args or {}).get("fsdp_version", os.environ.get("FSDP_VERSION", 1))
    if int(version) != 2:
        raise ValueError(
            "Warmups are written by the model between two training steps, which FSDP1 does not allow here. Set "
            "fsdp_version to 2 in accelerate's configuration."
        )
    if args.use_cpu:
        raise ValueError(
            "accelerate shards no weights on a CPU: every rank would train a whole copy. Set use_cpu to false, or "
            "leave FSDP out."
        )
    for name, is_set, instead in (
        ("num_beams", args.num_beams > 1, "1"),
        ("eval_generate", args.eval_generate > 0, "0, and evaluate the saved adapter"),
        ("use_vllm", args.use_vllm, "false"),
    ):
        if is_set:
            raise ValueError(f"{name} does not work with FSDP, whose ranks must run in step. Set {name} to {instead}.")


def check_sharding(model: nn.Module) -> None:
    """Raise ValueError for a model whose ranks would not call it equally often, or whose base would be lost."""
    kind = model.config.model_type
    if rope_limit(model) is not None:
        raise ValueError(
            f"{kind} turns positions by the length of the row (RoPE of the kind longrope or dynamic), so long rows "
            "are encoded one at a time, which FSDP does not allow. Use DDP or a single GPU with 4-bit weights."
        )
    if keeps_initial_weights(model):
        raise ValueError(
            "This adapter changes its base, so the anchor and warmup_source base need a copy of the initial weights, "
            "which FSDP does not allow. Set warmup_anchor to 0 and warmup_source to 'policy', or take plain LoRA."
        )


def check_one_device(model: str | PreTrainedModel, args: WarmupSFTConfig) -> None:
    """Refuse what transformers would wrap into DataParallel; a model that is spread over several devices is not."""
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    if not isinstance(model, str) and args.n_gpu > 1 and len(places) < 2:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, and transformers would run the model in copies (DataParallel), "
            "which do not sample warmups. Set CUDA_VISIBLE_DEVICES=0, or start one process for each GPU with "
            "`accelerate launch`, or with warmup-peft train --accelerate_config multi_gpu."
        )


def why_no_span(labels: list[int]) -> str | None:
    """In words, why these labels are not one prompt followed by one target; None if they are, or have no target."""
    supervised = [label != -100 for label in labels]
    if supervised and supervised[0]:
        return "has no prompt before its target. Give it a non-empty prompt."
    starts = sum(now and not before for before, now in itertools.pairwise(supervised))
    if starts > 1:
        return (
            f"has {starts} supervised spans (several assistant turns?), but a warmup stands before one target. Split "
            "it into one row for each answer, as prompt and completion."
        )
    return None


def check_spans(name: str, dataset: Dataset) -> None:
    """Every prepared row must be one prompt followed by one target.

    Raises:
        ValueError: naming the first row that is not.
    """
    for row, labels in enumerate(dataset["labels"], 1):
        reason = why_no_span(labels)
        if reason:
            raise ValueError(f"Row {row} of the {name} dataset {reason}")


def checked_stream(name: str, stream: IterableDataset, context: int | None, extra_tokens: int) -> IterableDataset:
    """Prepared rows, each looked at when it comes: what the other checks see before the training.

    Args:
        context: of the model, in tokens.
        extra_tokens: what warmup and separator take at most.
    """

    def check(row: dict[str, Any], number: int) -> dict[str, Any]:
        reason = why_no_span(row["labels"])
        if reason is None and all(label == -100 for label in row["labels"]):
            reason = "has no target: all of its labels are -100. Remove it."
        if reason is None and context is not None and len(row["input_ids"]) + extra_tokens > context:
            reason = (
                f"has {len(row['input_ids'])} tokens; with warmup and separator ({extra_tokens}) that is more than "
                f"the model's context of {context}. Set max_length lower."
            )
        if reason:
            raise ValueError(f"Row {number + 1} of the {name} stream {reason}")
        return row

    return stream.map(check, with_indices=True)


def check_targets(name: str, dataset: Dataset) -> None:
    """Every row must have a target.

    Raises:
        ValueError: naming the first row that has none.
    """
    for row, labels in enumerate(dataset["labels"], 1):
        if all(label == -100 for label in labels):
            raise ValueError(f"Row {row} of the {name} dataset has no target: all of its labels are -100. Remove it.")


def check_context(name: str, dataset: Dataset, context: int | None, extra_tokens: int) -> None:
    """The longest row, its warmup and its separator must fit the model's context.

    Raises:
        ValueError: naming that row and its length in tokens.
    """
    lengths = [len(ids) for ids in dataset["input_ids"]]
    row = max(range(len(lengths)), key=lengths.__getitem__)
    if context is not None and lengths[row] + extra_tokens > context:
        count = sum(length + extra_tokens > context for length in lengths)
        raise ValueError(
            f"Row {row + 1} of the {name} dataset has {lengths[row]} tokens; with warmup and separator "
            f"({extra_tokens}) that is more than the model's context of {context}, as it is for {count} of "
            f"{len(lengths)} rows. "
            + (
                f"Set max_length to {context - extra_tokens} or less."
                if context > extra_tokens
                else "Set max_warmup_length lower."
            )
        )


def memory_advice(args: WarmupSFTConfig, model: nn.Module) -> str:
    """What to change when memory ran out in the middle of a step, and what each change would save."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
    advice = []
    if args.per_device_train_batch_size > 1:
        advice.append(
            f"halve per_device_train_batch_size={args.per_device_train_batch_size} and double "
            "gradient_accumulation_steps (half of the activations, the same gradient)"
        )
    if not args.gradient_checkpointing:
        advice.append("set gradient_checkpointing (all activations but one layer's, for about a third more time)")
    if args.num_warmups > 1:
        advice.append(f"lower num_warmups={args.num_warmups} (the branches' share falls in proportion)")
    if not getattr(model, "is_loaded_in_4bit", False):
        advice.append(f"set load_in_4bit (weights of {weights:.1f} GiB now; a 16-bit model takes a third in 4 bit)")
    return f"Out of memory in the middle of a step. In this order: {'; '.join(advice)}."
