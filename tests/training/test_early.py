"""What the options of a training say before it can be made: for the parts of real settings, too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from folders import write_rows

from warmup_peft.settings.arguments import RunOptions
from warmup_peft.settings.early import check_early
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.training.config import TrainingSettings, read_recipe
from warmup_peft.training.early import check_anchor, check_eval_metrics, check_refused, check_settings, word_of


@pytest.fixture
def both(tmp_path, model_folder):
    """The same options, as the command line knows them early and as a training takes them."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    base = {"model_name_or_path": model_folder, "dataset_name": str(rows), "bf16": False, "report_to": "none"}

    def options(**changes):
        recipe = {**base, "output_dir": str(tmp_path / "run"), **changes}
        words = [word for name, value in recipe.items() if value is not None for word in (f"--{name}", str(value))]
        early = SimpleNamespace(**check_early((RunOptions, WarmupOptions), words))
        return (early,) * 4, TrainingSettings.of(read_recipe({k: v for k, v in recipe.items() if v is not None}))

    return options


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_strategy": "steps"}, "eval_strategy=steps would evaluate on the training rows"),
        ({"eval_generate": 4}, "and eval_strategy is 'no'"),
        ({"num_train_epochs": -1}, "trains nothing"),
        ({"model_name_or_path": "./nowhere"}, "The model folder ./nowhere does not exist"),
        ({"model_name_or_path": None}, "No model is named"),
        ({"dataset_name": None}, "No data is named"),
        ({"test_split_size": 1.0}, "test_split_size=1.0 cannot work"),
        ({"task": "logica"}, "Did you mean 'logiqa'"),
        ({"task_args": "{"}, "is not valid JSON"),
        ({"max_train_samples": 0}, "max_train_samples=0 cannot work"),
    ],
    ids=str,
)
def test_the_same_is_said_early_and_late(both, changes, said):
    early, late = both(**changes)
    for settings in (early, late):
        with pytest.raises(ValueError, match=said):
            check_settings(*settings)


def test_what_works(both):
    early, late = both()
    for settings in (early, late):
        check_settings(*settings)
        check_refused(settings[2])
        check_eval_metrics(settings[2])
        check_anchor(settings[2], settings[3])
        assert word_of(settings[2].save_strategy) == "steps"
