"""What cannot work in a training, as far as its options and the files that they name say. Loads no torch.

The functions take any objects that have the options: the parts of `TrainingSettings`, or what the command line knows
before these can be made (`warmup_peft.settings.early`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from warmup_peft.evaluation.metrics import METRICS, check_metrics, metric_names
from warmup_peft.evaluation.splits import (
    check_columns,
    check_data_is_named,
    check_is_there,
    check_streams,
    check_test_split_size,
    columns_of,
    is_one_split,
)
from warmup_peft.evaluation.tasks import PROMPT_COMPLETION, TASK_NEEDS_ALL_ROWS, check_task_is_there, task_args_of
from warmup_peft.inference.folder import check_is_no_adapter, check_model_folder
from warmup_peft.settings.arguments import RunOptions, check_counts

NOT_COMPILED = (
    "The passes over prompts, warmups and targets change their shapes from batch to batch, and each shape is compiled "
    "anew: on a CPU no step ended within 200 seconds. Set {} to {}."
)
REFUSED_SETTINGS = {
    "packing": "Packed rows hold several examples, but a warmup stands between one prompt and one target. Set "
    "packing to false.",
    "eval_packing": "Packed rows hold several examples, but a warmup stands between one prompt and one target. Set "
    "eval_packing to false.",
    "padding_free": "Rows laid end to end leave no room for warmups. Set padding_free to false.",
    "label_smoothing_factor": "The objective is a likelihood; smoothed labels would train something else. Set "
    "label_smoothing_factor to 0.",
    "neftune_noise_alpha": "Warmups and the anchor's reference would be sampled without the noise of the training. "
    "Set neftune_noise_alpha to null.",
    "torch_compile": NOT_COMPILED.format("torch_compile", "false"),
    "torch_compile_backend": NOT_COMPILED.format("torch_compile_backend", "null"),
    "torch_compile_mode": NOT_COMPILED.format("torch_compile_mode", "null"),
    "batch_eval_metrics": "It feeds logits to compute_metrics, and the logits depend on the warmup. Set "
    "batch_eval_metrics to false.",
}


# ---- TRL's options ----


def check_refused(args: Any) -> None:
    """Raise ValueError for an option of TRL's that does not work with warmups, or not with the others."""
    for name, fix in REFUSED_SETTINGS.items():
        if getattr(args, name):
            raise ValueError(f"{name}={getattr(args, name)} does not work with warmups. {fix}")
    if args.loss_type != "nll":
        raise ValueError(
            f"loss_type='{args.loss_type}' does not work with warmups: it reweights a plain likelihood. "
            "Set loss_type to 'nll'."
        )
    if args.completion_only_loss is False:
        raise ValueError(
            "completion_only_loss=False trains on the prompt too, but only the target after a warmup is "
            "supervised. Leave completion_only_loss out or set it to true."
        )
    if args.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"deepspeed={args.deepspeed} needs the package deepspeed, which is not installed. Run: pip install "
            "deepspeed; or leave it out."
        )
    evaluated, saved = word_of(args.eval_strategy), word_of(args.save_strategy)
    if args.load_best_model_at_end and saved not in (evaluated, "best"):
        raise ValueError(
            f"load_best_model_at_end needs a checkpoint at every evaluation, but eval_strategy is '{evaluated}' "
            f"and save_strategy is '{saved}'. Set both to 'steps', or both to 'epoch'."
        )


def word_of(strategy: Any) -> str:
    """A strategy as it is written in a recipe; transformers makes a member of an Enum of it."""
    return str(getattr(strategy, "value", strategy))


def check_training_counts(args: Any) -> None:
    """Raise ValueError for numbers that transformers would refuse late, or not at all."""
    check_counts(
        args,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=1,
        max_length=1,
        dataloader_num_workers=0,
        seed=0,
    )
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise ValueError(f"num_train_epochs={args.num_train_epochs} trains nothing. Set it above 0, or set max_steps.")


def check_eval_metrics(args: Any) -> None:
    """Raise ValueError for a metric of `eval_generate` that cannot be logged, or a best model by one that is not."""
    best = (args.metric_for_best_model or "").removeprefix("eval_")
    if args.eval_generate == 0:
        if best in METRICS:
            raise ValueError(
                f"metric_for_best_model={best} is a score of written answers. Set eval_generate to the number of rows "
                "to answer at every evaluation, such as 64."
            )
        return
    names = metric_names(args.eval_metrics)
    check_metrics(names, is_multiple_choice=False)
    if best in METRICS and best not in names:
        raise ValueError(f"metric_for_best_model={best} is not among eval_metrics={args.eval_metrics}. Add it there.")


def check_losses_choose(args: Any) -> None:
    """Raise ValueError where SFT's own trainer is to choose its best model by answers, which it does not write."""
    best = (args.metric_for_best_model or "").removeprefix("eval_")
    if best in METRICS:
        raise ValueError(
            f"metric_for_best_model={best} is a score of eval_generate, and SFT's own trainer writes no answers. Add "
            "--metric_for_best_model loss."
        )


# ---- Model, data and task ----


def check_settings(script: Any, run: RunOptions, args: Any, model: Any) -> None:
    """Raise ValueError for settings that cannot work together, or that name a model or data that are not there."""
    check_base_is_named(model)
    check_data_is_named(script.dataset_name)
    check_counts(run, max_train_samples=1)
    check_test_split_size(run.test_split_size)
    check_training_counts(args)
    if args.output_dir and Path(args.output_dir).resolve() == Path(model.model_name_or_path).resolve():
        raise ValueError(f"output_dir={args.output_dir} is the base model's own folder. Choose another --output_dir.")
    if script.dataset_streaming and args.max_steps <= 0:
        raise ValueError("A stream does not say how many rows it has. Set max_steps, or leave dataset_streaming out.")
    evaluated = word_of(args.eval_strategy)
    if args.eval_generate and evaluated == "no":
        raise ValueError(
            f"eval_generate={args.eval_generate} writes answers at every evaluation, and eval_strategy is 'no'. Set "
            "eval_strategy to steps or epoch, or eval_generate to 0."
        )
    if evaluated != "no" and is_one_split(script.dataset_name) and run.test_split_size == 0:
        raise ValueError(
            f"eval_strategy={evaluated} would evaluate on the training rows: "
            f"{script.dataset_name} has no other ones. Keep some out of training with --test_split_size 0.1."
        )
    check_task(script, run)
    check_data(script, run, evaluated)


def check_data(script: Any, run: RunOptions, evaluated: str) -> None:
    """Raise ValueError for data that are not there, or whose rows nobody can read."""
    splits = [script.dataset_train_split, *([script.dataset_test_split] if evaluated != "no" else [])]
    for split in splits:
        if script.dataset_streaming:
            check_streams(script.dataset_name)
            continue
        check_is_there(script.dataset_name, split)
        if run.task in (None, PROMPT_COMPLETION) and (columns := columns_of(script.dataset_name, split)):
            check_columns(script.dataset_name, columns)


def check_base_is_named(model: Any) -> None:
    """Raise ValueError where no base model is named, or a folder that is not there, or an adapter's."""
    if model.model_name_or_path is None:
        raise ValueError("No model is named. Set --model_name_or_path to a folder or a Hub id.")
    check_model_folder(model.model_name_or_path)
    check_is_no_adapter(model.model_name_or_path)


def check_task(script: Any, run: RunOptions) -> None:
    """Raise ValueError for a task that is not there or cannot read a stream, or arguments that are no JSON object."""
    task_args_of(run)
    if run.task in (None, PROMPT_COMPLETION):
        return
    check_task_is_there(str(run.task))
    if script.dataset_streaming:
        raise ValueError(TASK_NEEDS_ALL_ROWS)


def check_anchor(args: Any, model: Any) -> None:
    """Raise ValueError for an anchor to a model whose adapter is off, where no adapter is trained."""
    if args.warmup_anchor and args.warmup_source != "base" and not model.use_peft:
        raise ValueError(
            f"warmup_anchor={args.warmup_anchor} compares with the model whose adapter is off, and no adapter is "
            "trained. Set use_peft to true, or warmup_source to base, whose anchor needs none, or warmup_anchor to 0."
        )
