"""What is wrong with a command, as far as its options and the files that they name say: said before torch is imported.

The checks lie where the library makes them too. This module only says which of them a command asks for.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from warmup_peft.cli.prompts import are_given, checked_prompts
from warmup_peft.comparison.arms import asked_arms, check_compare_options
from warmup_peft.evaluation.held_out import HeldOut, check_rows_to_compare_on, check_warmups
from warmup_peft.evaluation.metrics import check_are_known, metric_names
from warmup_peft.evaluation.tasks import BUILT_IN_TASKS, check_task_is_there, task_args_of
from warmup_peft.files import check_writable
from warmup_peft.inference.folder import (
    TrainingRecord,
    WarmupConfig,
    check_can_be_pushed,
    check_is_adapter,
    check_is_no_adapter,
    check_model_folder,
    check_named_folder,
)
from warmup_peft.settings.arguments import (
    BenchArguments,
    CompareOptions,
    EvaluateArguments,
    check_address,
    check_counts,
    check_placing,
    check_sampling,
    check_server,
)
from warmup_peft.settings.bench import ARMS, OURS, SHAPES
from warmup_peft.settings.words import nearest
from warmup_peft.training.checkpoints import check_output_dir, checkpoint_to_resume, seconds_of
from warmup_peft.training.early import (
    check_anchor,
    check_base_is_named,
    check_eval_metrics,
    check_losses_choose,
    check_refused,
    check_settings,
    check_task,
    check_training_counts,
)
from warmup_peft.training.resuming import check_resumed, what_is_finished


def check(command: str, options: Mapping[str, Any]) -> str | None:
    """Check the options of a command. Returns a sentence where nothing is left to do.

    Raises:
        ValueError: bad input.
    """
    if command not in CHECKS or not options:
        return None
    return CHECKS[command](SimpleNamespace(**options))


# ---- Training ----


def check_train(options: Any) -> str | None:
    check_refused(options)
    check_eval_metrics(options)
    check_anchor(options, options)
    check_settings(options, options, options, options)
    if options.output_dir is None:
        return None
    checkpoint = checkpoint_to_resume(options.resume_from_checkpoint, options.output_dir)
    check_output_dir(Path(options.output_dir), options.overwrite_output_dir, resuming=checkpoint is not None)
    if checkpoint is None:
        return None
    check_resumed(checkpoint, options_of_the_run(options))
    return None if options.overwrite_output_dir else what_is_finished(options)


def options_of_the_run(options: Any) -> dict[str, Any]:
    """What a training's record holds, as far as the options say it already."""
    return {**vars(options), "lora_r": options.lora_r if options.use_peft else None}


def check_sft(options: Any) -> None:
    check_refused(options)
    check_losses_choose(options)
    check_settings(options, options, options, options)
    if options.resume_from_checkpoint:
        raise ValueError(
            f"resume_from_checkpoint={options.resume_from_checkpoint} is for `train`; `sft` starts anew. Leave it "
            "out, and add --overwrite_output_dir true to replace a run."
        )
    if options.as_long_as is not None:
        seconds_of(options.as_long_as)
    if options.output_dir is not None:
        check_output_dir(Path(options.output_dir), options.overwrite_output_dir, resuming=False)


def check_sample(options: Any) -> None:
    check_refused(options)
    check_settings(options, options, options, options)
    if options.base_url is not None:
        check_address(options.base_url, options.server_timeout)


def check_compare(options: Any) -> None:
    asked = CompareOptions(**{each.name: getattr(options, each.name) for each in dataclasses.fields(CompareOptions)})
    check_compare_options(asked)
    check_refused(options)
    names = [name for name in vars(options) if name not in vars(asked)]
    asked_arms(asked, options.warmup_anchor, names)
    check_training_counts(options)
    check_base_is_named(options)
    check_task(options, options)
    if options.task in (None, *BUILT_IN_TASKS):
        check_are_known(metric_names(options.eval_metrics))
    check_rows_to_compare_on(options, options)


# ---- An adapter that is there ----


def config_of(folder: str, revision: str | None = None) -> WarmupConfig | None:
    """How the adapter of a local folder decodes; None for an id on the Hub. Raises ValueError if it is neither."""
    return WarmupConfig.load(folder) if check_named_folder(folder, revision) else None


def check_rows(options: Any, folder: str) -> None:
    """Raise ValueError for a task, metrics or rows that are not there."""
    asked = EvaluateArguments(folder, **{name: getattr(options, name) for name in OF_ROWS})
    task_args_of(asked)
    if options.task is not None:
        check_task_is_there(options.task)
    record = TrainingRecord.load(folder)
    if options.dataset_name is not None or record is not None:
        HeldOut.of(asked, {} if record is None else record.data)


OF_ROWS = ("dataset_name", "dataset_config", "dataset_test_split", "task", "task_args")


def check_evaluate(options: Any) -> None:
    check_counts(options, batch_size=1, max_samples=1, max_new_tokens=0, num_examples=0, num_warmups=1)
    check_placing(options)
    config = config_of(options.adapter, options.revision)
    sft = None if options.sft is None else config_of(options.sft)
    if options.harness is not None:
        if importlib.util.find_spec("lm_eval") is None:
            raise ImportError("--harness needs lm-evaluation-harness. Run: pip install 'warmup_peft[eval]'")
        return
    if options.metrics is not None and options.task in (None, *BUILT_IN_TASKS):
        check_are_known(metric_names(options.metrics))
    if config is not None:
        check_warmups(options, config, sft)
        check_rows(options, options.adapter)


def check_inspect(options: Any) -> None:
    check_counts(options, batch_size=1, max_samples=1, num_examples=0)
    check_placing(options)
    config = config_of(options.run, options.revision)
    if config is not None:
        check_writable(Path(options.output_dir or options.run), "--output_dir")
        check_rows(options, options.run)


def check_generate(options: Any) -> None:
    check_counts(options, batch_size=1)
    check_sampling(options)
    check_placing(options)
    check_server(options)
    if are_given(options):
        checked_prompts(options)
    config_of(options.adapter, options.revision)


def check_chat(options: Any) -> None:
    check_sampling(options)
    check_placing(options)
    config_of(options.adapter, options.revision)


def check_merge(options: Any) -> None:
    check_counts(options, max_samples=0)
    if options.task is not None:
        check_task_is_there(options.task)
    if check_named_folder(options.adapter, options.revision):
        check_is_adapter(options.adapter)


def check_push(options: Any) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repo_id):
        raise ValueError(
            f"repo_id={options.repo_id} does not name a repo and its owner. Write <user or organisation>/<name>, as "
            f"in me/{Path(options.repo_id).name or 'mine'}; `hf auth whoami` prints your user name."
        )
    check_can_be_pushed(options.folder)


# ---- Measuring ----


def check_base(name: str | None) -> None:
    if name is not None:
        check_model_folder(name)
        check_is_no_adapter(name)


def check_shape(shape: str) -> None:
    if shape not in SHAPES:
        meant = nearest(shape, SHAPES, f"Choose one of {', '.join(SHAPES)}.")
        raise ValueError(f"shape={shape} is unknown. {meant}")


def check_bench(options: BenchArguments) -> None:
    """Raise ValueError for options that cannot work, or not together."""
    check_base(options.model_name_or_path)
    if options.model_name_or_path is None:
        check_shape(options.shape)
    if options.predict:
        if not set(options.arms) <= set(ARMS) or all(ARMS[name] is None for name in options.arms):
            raise ValueError(f"arms={options.arms} cannot be predicted. Choose of {', '.join(OURS)}.")
    elif not set(options.arms) <= set(ARMS) or (options.steps and "sft" not in options.arms):
        raise ValueError(f"arms={options.arms} cannot be compared. Choose sft and others of {', '.join(ARMS)}.")
    check_counts(options, prompt_length=1, target_length=1, max_warmup_length=1, num_warmups=1, batch_size=1, steps=0)
    if options.card_memory is not None and not 0 < options.card_memory < float("inf"):
        raise ValueError(f"card_memory={options.card_memory:g} cannot work. Set it to the card's GB, as in 24.")
    if options.card_memory is not None and not options.predict:
        raise ValueError("card_memory is for predictions. Add --predict true, or leave it out.")
    if options.output_file is not None and not Path(options.output_file).parent.is_dir():
        raise ValueError(f"The folder of output_file={options.output_file} does not exist. Create it first.")


def check_doctor(options: Any) -> None:
    check_base(options.model_name_or_path)
    if options.model_name_or_path is None and options.shape is not None:
        check_shape(options.shape)


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "train": check_train,
    "sft": check_sft,
    "sample": check_sample,
    "compare": check_compare,
    "evaluate": check_evaluate,
    "inspect": check_inspect,
    "generate": check_generate,
    "chat": check_chat,
    "merge": check_merge,
    "push": check_push,
    "bench": check_bench,
    "doctor": check_doctor,
}
