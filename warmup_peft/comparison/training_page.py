"""`TrainingPage`: a training's curves and warmups as a file on this machine, without any service.

Needs matplotlib and jinja2, of warmup_peft[compare].
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.utils.logging import get_logger

from warmup_peft.files import first_line, write_together
from warmup_peft.inference.folder import CURVES_NAME, PAGE_NAME
from warmup_peft.settings.engine import EngineOptions
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.monitor import SAMPLES

logger = get_logger(__name__)

PACKAGES = ("matplotlib", "jinja2", "markupsafe")
TRLS_SETTINGS = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")


class TrainingPage(TrainerCallback):
    """Writes `training.html` into `output_dir` at every save and at the end: over steps, the loss, what warmups gain,
    their length, overlap and KL, scores of `eval_generate`, and warmups. It opens from disk, in light and in dark.

    Beside it lie the same curves as `training.png`, which the model card shows. For `trainer.add_callback`;
    `warmup-peft train` adds one. Each file is whole, or as it was before, wherever the process ends.
    What cannot be written is said and does not end the training.

    Raises:
        ImportError: matplotlib or jinja2 is missing.
    """

    def __init__(self):
        if reason := why_no_page():
            raise ImportError(reason)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        try:
            write_page(args, state)
        except Exception as error:  # a picture must not cost a training
            logger.warning(f"{PAGE_NAME} could not be written: {first_line(error)}")

    on_train_end = on_save


def why_no_page() -> str | None:
    """A sentence that says which packages it needs; None where they are there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"A page of curves and warmups ({PAGE_NAME}) needs {', '.join(missing)}: pip install 'warmup_peft[compare]'"


def write_page(args: WarmupSFTConfig, state: TrainerState) -> None:
    from warmup_peft.comparison.report.training_report import TrainingRun, to_html, to_png  # slow to import

    folder = Path(args.output_dir)
    run = TrainingRun(
        name=folder.resolve().name,
        step=state.global_step,
        max_steps=state.max_steps,
        history=state.log_history,
        samples=[(log["step"], log[SAMPLES]) for log in state.log_history if SAMPLES in log],
        settings=shown_settings(args),
    )
    png = to_png(run)
    write_together({PAGE_NAME: to_html(run), **({} if png is None else {CURVES_NAME: png})}, folder)


def shown_settings(args: WarmupSFTConfig) -> dict[str, Any]:
    """The settings on the page: those that are not at their default first, and those of vLLM only where it samples."""
    engine = {option.name: option.default for option in dataclasses.fields(EngineOptions)}
    defaults = {option.name: option.default for option in dataclasses.fields(args)}
    names = [option.name for option in dataclasses.fields(WarmupOptions) if option.name not in engine]
    names = sorted([*TRLS_SETTINGS, *names], key=lambda name: getattr(args, name) == defaults[name])
    return {name: getattr(args, name) for name in [*names, *(engine if args.use_vllm else ())]}
