"""From settings to a trainer: what is refused before anything is loaded, and what is left as it is."""

from __future__ import annotations

import pytest
from folders import logiqa_folder, train_argv

from warmup_peft.training.build import FLASH_ATTENTION, build_sft_trainer, build_trainer, check_settings
from warmup_peft.training.config import TrainingSettings, parse_training


@pytest.fixture
def settings(model_folder, tmp_path):
    """Of a training that would work; options may be changed."""
    data = logiqa_folder(tmp_path / "data")

    def build(**options) -> TrainingSettings:
        return parse_training(train_argv(model_folder, data, tmp_path / "run", task="logiqa", **options)[1:])

    return build


@pytest.mark.parametrize("build", [build_trainer, build_sft_trainer])
def test_building_a_trainer_changes_none_of_its_options(settings, build):
    given = settings(model_init_kwargs='{"use_cache": false}')
    before = [str(vars(options)) for options in given]
    trainer = build(given)
    assert [str(vars(options)) for options in given] == before
    if build is build_trainer:
        assert trainer.args.model_init_kwargs["dtype"] == "float32"


def test_settings_that_work_pass(settings):
    check_settings(settings())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_train_samples": "0"}, "max_train_samples=0 cannot work"),
        ({"per_device_train_batch_size": "0"}, "per_device_train_batch_size=0 cannot work"),
        ({"max_steps": "-1", "num_train_epochs": "0"}, "num_train_epochs=0.0 trains nothing"),
        ({"max_steps": "-1", "dataset_streaming": "true"}, "A stream does not say how many rows"),
    ],
)
def test_settings_that_cannot_work(settings, options, said):
    with pytest.raises(ValueError, match=said):
        check_settings(settings(**options))


def test_sft_has_no_score_of_written_answers(settings):
    given = settings(eval_strategy="epoch", eval_generate="4", metric_for_best_model="exact_match")
    with pytest.raises(ValueError, match=r"SFT's own trainer writes no answers\. Add --metric_for_best_model loss"):
        build_sft_trainer(given)


def test_a_folder_that_is_written_and_read(settings, model_folder):
    given = settings()
    given.training.output_dir = model_folder
    with pytest.raises(ValueError, match="is the base model's own folder"):
        check_settings(given)


def test_evaluation_on_a_single_file_needs_rows_of_its_own(settings, tmp_path):
    given = settings(eval_strategy="epoch", test_split_size="0.5")
    check_settings(given)
    given.script.dataset_name = str(tmp_path / "data" / "train.jsonl")
    check_settings(given)
    given.run.test_split_size = 0.0
    with pytest.raises(ValueError, match=r"would evaluate on the training rows: .*--test_split_size 0.1"):
        check_settings(given)


@pytest.mark.parametrize(("part", "name"), [("model", "model_name_or_path"), ("script", "dataset_name")])
def test_a_model_and_data_have_to_be_named(settings, part, name):
    given = settings()
    setattr(getattr(given, part), name, None)
    with pytest.raises(ValueError, match=f"Set --{name} to"):
        check_settings(given)


def test_attention_that_is_not_installed(settings, monkeypatch):
    given = settings(attn_implementation="flash_attention_2")
    monkeypatch.setitem(FLASH_ATTENTION, "flash_attention_2", lambda: False)
    with pytest.raises(
        ValueError, match=r"^attn_implementation=flash_attention_2 needs the package flash-attn.* sdpa"
    ):
        check_settings(given)
    monkeypatch.setitem(FLASH_ATTENTION, "flash_attention_2", lambda: True)
    check_settings(given)
