"""What the trackers of `report_to` get, through transformers' own callbacks; stand-ins take the packages' places."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from conftest import EXAMPLES
from datasets import Dataset
from trainers import make_trainer

from warmup_peft.training.trackers import TABLES, markdown_table

COLUMNS = {
    "warmups": ["step", "prompt", "warmup", "R", "w", "A", "target"],
    "answers": ["step", "prompt", "warmup", "answer", "reference", "score"],
}


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for packages that are not installed, which record every call."""
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # so that transformers takes tensorboardX
    found = {
        name: MagicMock(__spec__=ModuleSpec(name, None)) for name in ("wandb", "trackio", "mlflow", "tensorboardX")
    }
    found["mlflow"].__version__ = "3.0.0"
    found["mlflow"].utils.validation.MAX_PARAM_VAL_LENGTH = 6000
    found["mlflow"].utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 100
    config = SimpleNamespace(ConfigError=ValueError)
    for name, package in {**found, "wandb.sdk": found["wandb"], "wandb.sdk.lib.config_util": config}.items():
        monkeypatch.setitem(sys.modules, name, package)
    for name in ("wandb", "trackio"):
        found[name].Table = lambda dataframe: dataframe
    return SimpleNamespace(**found)


@pytest.fixture
def trained(packages, model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, max_steps=2, logging_steps=1, log_warmups=True,
        num_warmups_to_print=1, report_to=["wandb", "trackio", "tensorboard", "mlflow"], eval_strategy="steps",
        eval_steps=2, eval_generate=2, eval_metrics="exact_match", eval_dataset=Dataset.from_list(EXAMPLES[:2]),
    )  # fmt: skip
    trainer.train()
    return packages


def check_tables(tables: list[tuple[str, object]]) -> None:
    """Warmups of both logs and the answers of the evaluation."""
    assert [name for name, _ in tables] == ["warmups", "warmups", "answers"]
    for (name, table), step, rows in zip(tables, (1, 2, 2), (3, 3, 2)):
        assert list(table.columns) == COLUMNS[name]
        assert list(table["step"]) == [step] * rows


def test_every_tracker_that_takes_tables_is_here():
    assert set(TABLES) == {"wandb", "trackio", "tensorboard", "mlflow"}


def test_wandb_trackio_mlflow_and_tensorboard_get_warmups_answers_and_scores(trained):
    for package in (trained.wandb, trained.trackio):
        logged = [call.args[0] for call in package.log.call_args_list]
        check_tables([item for each in logged for item in each.items() if item[0] in COLUMNS])
        assert any("eval/exact_match" in each for each in logged)

    tables = [call.kwargs for call in trained.mlflow.log_table.call_args_list]
    check_tables([(each["artifact_file"].removesuffix(".json"), each["data"]) for each in tables])
    numbers = [call.kwargs for call in trained.mlflow.log_metrics.call_args_list]
    assert [each["step"] for each in numbers if "eval_exact_match" in each["metrics"]] == [2]
    assert [each["step"] for each in numbers if "warmups/mean_length" in each["metrics"]] == [1, 2]

    writer = trained.tensorboardX.SummaryWriter.return_value
    texts = [call.args for call in writer.add_text.call_args_list if call.args[0] in COLUMNS]
    assert [(name, step) for name, _, step in texts] == [("warmups", 1), ("warmups", 2), ("answers", 2)]
    assert texts[0][1].startswith("| step | prompt | warmup | R | w | A | target |\n| --- |")
    assert len(texts[0][1].splitlines()) == 2 + 3
    scalars = {(call.args[0], call.args[2]) for call in writer.add_scalar.call_args_list}
    assert {("eval/exact_match", 2), ("train/warmups/mean_length", 1)} <= scalars


def test_text_stays_text_in_a_table_of_markdown():
    table = markdown_table([{"step": 1, "warmup": "a | <b>\n# `c`", "R": -1.23456}])
    assert table == "| step | warmup | R |\n| --- | --- | --- |\n| 1 | a \\| \\<b\\> \\# \\`c\\` | -1.235 |"
