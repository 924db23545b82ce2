"""Going on from a checkpoint with other options than before: what is refused, and what is said. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmup_peft.files import read_json
from warmup_peft.inference.folder import TRAINER_STATE_NAME, TrainingRecord, looks_local

# A run keeps these: its weights are made for them, or its record would not say how they were trained. The learning
# rate is kept by the checkpoint's optimizer, whatever is asked for.
KEPT = (
    "model_name_or_path", "lora_r", "objective", "warmup_source", "warmup_opening", "warmup_separator",
    "learn_separator", "learning_rate",
)  # fmt: skip
# These may change, and what is learned changes with them.
TOLD = (
    "num_warmups", "max_warmup_length", "warmup_anchor", "warmup_sampling", "warmup_num_beams", "temperature", "top_k",
    "top_p", "min_p", "normalize_advantages", "advantage_clip", "warmup_loss_type", "mask_truncated_warmups",
    "hindsight_steps", "warmup_dropout", "warmup_from_data", "warmup_pool_size", "batch_size", "seed", "dataset_name",
    "task", "train_rows",
)  # fmt: skip
NOTHING = object()


def settings_in(record: TrainingRecord) -> dict[str, Any]:
    """What a training's record says of its settings, under the names of options."""
    return {**record.data, **record.settings, "model_name_or_path": record.base_model}


def check_resumed(checkpoint: str | Path, now: Mapping[str, Any]) -> str | None:
    """A sentence that says which settings differ from those of the checkpoint; None if none does.

    Args:
        now: settings by the names of options, those of `settings_in` or fewer. One that is None is not compared, as
            its value is not known yet, but for `lora_r`, which None says that no adapter is trained.

    Raises:
        ValueError: one that a run keeps to its end differs.
    """
    record = TrainingRecord.load(checkpoint)
    if record is None:
        return None
    before = settings_in(record)
    if kept := differences(KEPT, before, now):
        back = " ".join(f"--{name} {value}" for name, (value, _) in kept.items() if name != "lora_r" or value)
        raise ValueError(
            f"The run of {checkpoint} cannot go on with other settings: {in_words(kept)}. Set them back "
            f"({back or '--use_peft false'}), or start a new run in another --output_dir."
        )
    told = differences(TOLD, before, now)
    return f"The run goes on with other settings than before: {in_words(told)}." if told else None


def differences(
    names: tuple[str, ...], before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Name -> value before and now, of those that are known of both and differ."""
    found = {}
    for name in names:
        old, new = before.get(name, NOTHING), now.get(name, NOTHING)
        is_known = old is not NOTHING and new is not NOTHING and (name == "lora_r" or None not in (old, new))
        if is_known and not is_same(name, old, new):
            found[name] = (old, new)
    return found


def is_same(name: str, old: Any, new: Any) -> bool:
    """Whether both values mean the same. A folder may have moved since, with all that is in it."""
    if name in ("model_name_or_path", "dataset_name", "task") and (looks_local(str(old)) or looks_local(str(new))):
        return Path(str(old)).name == Path(str(new)).name
    return old == new


def in_words(found: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in found.items())


def what_is_finished(args: Any) -> str | None:
    """A sentence that says how to train longer, if the run in `output_dir` has done all its steps; None otherwise.

    Args:
        args: `output_dir`, `max_steps` and `num_train_epochs`, which may be more than the run's.
    """
    try:
        state = read_json(Path(args.output_dir, TRAINER_STATE_NAME))  # written at the end
        steps, epochs = int(state["global_step"]), float(state["epoch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    option = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    done = steps if option == "max_steps" else epochs
    if done < getattr(args, option) - 1e-6:
        return None
    return (
        f"The run in {args.output_dir} is finished ({steps} steps) and stays as it is. To train it longer, raise "
        f"--{option} above {done:g}; to train again from the checkpoint, add --overwrite_output_dir true."
    )
