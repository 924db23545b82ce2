"""What is to be scored: which rows, by which task and after which warmups, as options and a training's record say.

Reads no rows. Loads neither `datasets` nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmup_peft.evaluation.splits import check_data_is_named, check_is_there, has_split, is_one_split, is_same_source
from warmup_peft.evaluation.tasks import BUILT_IN_TASKS, PROMPT_COMPLETION, TASK_NEEDS_ALL_ROWS, Task
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.settings.arguments import EvaluateArguments, RunOptions
from warmup_peft.settings.shipped import RECIPES, is_shipped
from warmup_peft.settings.words import nearest

REPLACED = ("shuffled", "dots", "none")  # values of --warmups beside `own` and PLAIN
PLAIN = "plain"
TRAIN_SPLIT = "train"


@dataclass(frozen=True)
class HeldOut:
    """The rows to score on, before they are read.

    Attributes:
        name, split: of the data; `wanted` is the split that was asked for, where a local folder lacks it.
        task: a task, or its name.
        share: of the rows that the training held out, where they are one file.
        is_own: whether the training was on the same data.
    """

    name: str
    split: str
    wanted: str
    task: str | Task
    share: float
    is_own: bool

    @classmethod
    def of(cls, options: EvaluateArguments, data: dict[str, Any]) -> HeldOut:
        """As the options say, and the training's record where they say nothing.

        Args:
            data: the training's record in the adapter's folder. Anybody may have written it, so a task file that it
                names is not run, unless it comes with this package.

        Raises:
            ValueError: no data is named, or data that are not there or that were trained on, or only the record names
                the task's file.
        """
        name = options.dataset_name or data.get("dataset_name")
        task = options.task or recorded_task(data)
        if name is None:
            raise ValueError(
                "--dataset_name is not given, and the adapter's folder does not say what it was trained on (a "
                "script's rows have no name). Name a file, a folder or an id on the Hub whose rows were not trained "
                "on."
            )
        own = is_same_source(name, data.get("dataset_name"))
        share = data.get("test_split_size", 0.0) if own else 0.0
        if own and is_one_split(name) and share == 0:
            raise ValueError(f"The adapter was trained on all rows of {name}. Name other rows with --dataset_name.")
        wanted = options.dataset_test_split or data.get("dataset_test_split") or "test"
        split = split_to_score(name, wanted)
        check_is_there(name, split)
        return cls(name, split, wanted, task, share, own)


def recorded_task(data: dict[str, Any]) -> str:
    """The task in a training's record that comes with this package; `prompt_completion` if it had none.

    Raises:
        ValueError: the record names another file.
    """
    task = data.get("task") or PROMPT_COMPLETION
    if isinstance(task, str) and is_shipped(task):
        return str(RECIPES.parent / task)
    if str(task) not in BUILT_IN_TASKS:
        raise ValueError(
            f"The adapter was trained with the task {task}, and a Python file that only the adapter's folder names is "
            "not run. If you trust that file, name it with --task path/to/task.py."
        )
    return task


def recorded_task_args(task: str | Task, data: dict[str, Any]) -> dict[str, Any]:
    """The training's `task_args` if the task is the training's. Its file may have moved to another folder since."""
    if isinstance(task, Task):
        return {}
    recorded, task_args = str(data.get("task") or PROMPT_COMPLETION), data.get("task_args") or {}
    if not isinstance(task_args, dict):
        raise ValueError(f"The training's record has task_args={task_args}, and they should be names with values.")
    parts = Path(recorded).parts
    if task == recorded or (task not in BUILT_IN_TASKS and Path(task).resolve().parts[-len(parts) :] == parts):
        return task_args
    if task_args:
        print(f"{task} is not the training's task ({recorded}), so its task_args ({task_args}) are not used.")
    return {}


def split_to_score(name: str, wanted: str) -> str:
    """The requested split, or the validation split if a local folder lacks the requested one."""
    return "validation" if not has_split(name, wanted) and has_split(name, "validation") else wanted


def check_rows_to_compare_on(script_args: Any, options: RunOptions) -> tuple[str, str]:
    """The data of a comparison and their split to score on. Raises ValueError if there can be none."""
    if script_args.dataset_streaming:
        raise ValueError(TASK_NEEDS_ALL_ROWS)
    name = script_args.dataset_name
    check_data_is_named(name)
    if is_one_split(name) and options.test_split_size == 0:
        raise ValueError(f"{name} has no rows to compare on. Keep some out of training with --test_split_size 0.1.")
    split = split_to_score(name, script_args.dataset_test_split)
    check_is_there(name, split)
    return name, split


def check_warmups(options: EvaluateArguments, config: WarmupConfig, sft: WarmupConfig | None) -> None:
    """Raise ValueError for what cannot stand in a warmup's place, and for an SFT folder that is none.

    Args:
        config, sft: of the adapter, and of the one that `options.sft` names.
    """
    known = ("own", PLAIN, *REPLACED)
    for name in options.warmups.split(","):
        if name not in known:
            meant = nearest(name, known, f"Choose from {', '.join(known)}.")
            raise ValueError(f"--warmups has '{name}'. {meant}")
    if PLAIN in options.warmups.split(",") and not config.writes_separator:
        raise ValueError(
            f"--warmups plain asks for answers in one plain call, and {options.adapter} was not trained with "
            "learn_separator. Leave it out."
        )
    if sft is not None and sft.max_warmup_length:
        raise ValueError(f"sft={options.sft} answers after a warmup. Name a folder that `warmup-peft sft` made.")
