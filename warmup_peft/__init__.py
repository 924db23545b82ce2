"""Warmup generations for TRL: a model generates a few tokens before it answers, and learns which ones help."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmup_peft.comparison.compare import compare
    from warmup_peft.comparison.inspection import inspect_warmups
    from warmup_peft.comparison.training_page import TrainingPage
    from warmup_peft.evaluation.evaluate import evaluate
    from warmup_peft.evaluation.metric import Metric
    from warmup_peft.evaluation.tasks import Question, Task
    from warmup_peft.export.merge import merge_adapter
    from warmup_peft.inference.decoding import warmup_generate
    from warmup_peft.inference.loading import load_adapter
    from warmup_peft.training.config import WarmupSFTConfig
    from warmup_peft.training.sample import sample_warmups
    from warmup_peft.training.trainer import WarmupSFTTrainer

__version__ = "0.1.0"
__all__ = [
    "Metric",
    "Question",
    "Task",
    "TrainingPage",
    "WarmupSFTConfig",
    "WarmupSFTTrainer",
    "compare",
    "evaluate",
    "inspect_warmups",
    "load_adapter",
    "merge_adapter",
    "sample_warmups",
    "warmup_generate",
]

_HOMES = {
    "Metric": "warmup_peft.evaluation.metric",
    "Question": "warmup_peft.evaluation.tasks",
    "Task": "warmup_peft.evaluation.tasks",
    "TrainingPage": "warmup_peft.comparison.training_page",
    "WarmupSFTConfig": "warmup_peft.training.config",
    "WarmupSFTTrainer": "warmup_peft.training.trainer",
    "compare": "warmup_peft.comparison.compare",
    "evaluate": "warmup_peft.evaluation.evaluate",
    "inspect_warmups": "warmup_peft.comparison.inspection",
    "load_adapter": "warmup_peft.inference.loading",
    "merge_adapter": "warmup_peft.export.merge",
    "sample_warmups": "warmup_peft.training.sample",
    "warmup_generate": "warmup_peft.inference.decoding",
}


def __getattr__(name: str):
    """Import a public name when it is first used. `import warmup_peft` itself imports neither torch nor trl."""
    if name not in _HOMES:
        raise AttributeError(f"module 'warmup_peft' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ImportError as error:
        from warmup_peft.settings.versions import with_fix

        raise with_fix(error) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
