"""From settings to a trainer: what is refused before anything is loaded, and what is left as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from folders import argv_of, assert_serves, logiqa_folder, logits, train_argv, with_code_of_its_own
from hub_cache import COMMITS, put_into_cache
from trainings import same_weights
from transformers import AutoModelForCausalLM

from warmup_peft import merge_adapter
from warmup_peft.cli.main import main
from warmup_peft.inference.loading import Loading, check_trainable, load_folder
from warmup_peft.training.build import FLASH_ATTENTION, build_sft_trainer, build_trainer, check_attention
from warmup_peft.training.config import TrainingSettings, parse_training
from warmup_peft.training.early import check_settings
from warmup_peft.training.saving import training_record


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
    check_settings(*settings())


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
        check_settings(*settings(**options))


def test_sft_has_no_score_of_written_answers(settings):
    given = settings(eval_strategy="epoch", eval_generate="4", metric_for_best_model="exact_match")
    with pytest.raises(ValueError, match=r"SFT's own trainer writes no answers\. Add --metric_for_best_model loss"):
        build_sft_trainer(given)


def test_a_folder_that_is_written_and_read(settings, model_folder):
    given = settings()
    given.training.output_dir = model_folder
    with pytest.raises(ValueError, match="is the base model's own folder"):
        check_settings(*given)


def test_evaluation_on_a_single_file_needs_rows_of_its_own(settings, tmp_path):
    given = settings(eval_strategy="epoch", test_split_size="0.5")
    check_settings(*given)
    given.script.dataset_name = str(tmp_path / "data" / "train.jsonl")
    check_settings(*given)
    given.run.test_split_size = 0.0
    with pytest.raises(ValueError, match=r"would evaluate on the training rows: .*--test_split_size 0.1"):
        check_settings(*given)


@pytest.mark.parametrize(("part", "name"), [("model", "model_name_or_path"), ("script", "dataset_name")])
def test_a_model_and_data_have_to_be_named(settings, part, name):
    given = settings()
    setattr(getattr(given, part), name, None)
    with pytest.raises(ValueError, match=f"Set --{name} to"):
        check_settings(*given)


def test_attention_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(FLASH_ATTENTION, "flash_attention_2", lambda: False)
    with pytest.raises(
        ValueError, match=r"^attn_implementation=flash_attention_2 needs the package flash-attn.* sdpa"
    ):
        check_attention("flash_attention_2")
    monkeypatch.setitem(FLASH_ATTENTION, "flash_attention_2", lambda: True)
    check_attention("flash_attention_2")


# ---- Bases with code of their own ----


@pytest.fixture
def own_code(model_folder, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return with_code_of_its_own(Path(shutil.copytree(model_folder, tmp_path / "own")))


@pytest.mark.parametrize("build", [build_trainer, build_sft_trainer])
def test_code_of_the_base_runs_in_training_only_if_the_user_says_so(settings, own_code, build):
    given = settings()
    given.model.model_name_or_path = str(own_code)
    with pytest.raises(ValueError, match=r"own brings Python code of its own, which was not run\. Read it, and add"):
        build(given)
    assert not (own_code / "ran").exists()
    given.training.trust_remote_code = True
    assert type(build(given).model.get_base_model()).__name__ == "OwnForCausalLM"
    assert (own_code / "ran").exists()


@pytest.mark.slow
def test_a_base_with_code_of_its_own_is_trained_resumed_scored_merged_and_served(own_code, tmp_path):
    data, run, again, merged = (tmp_path / name for name in ("data", "run", "again", "merged"))
    options = dict(task="logiqa", save_strategy="steps", save_steps=1, trust_remote_code="true")
    assert main(train_argv(own_code, logiqa_folder(data), run, **options)) == 0
    shutil.copytree(run / "checkpoint-1", again / "checkpoint-1")
    assert main(train_argv(own_code, data, again, **options, resume_from_checkpoint="true")) == 0
    assert same_weights(run, again)
    assert main(argv_of("evaluate", adapter=run, trust_remote_code="true", max_new_tokens=2, max_samples=4)) == 0
    assert merge_adapter(run, merged, trust_remote_code=True).relative_logit_error < 1e-5
    loaded = load_folder(run, Loading(trust_remote_code=True))
    (own_code / "own.py").unlink()  # the merged folder has a copy
    assert_serves(loaded, merged)


# ---- Bases that are named by an id on the Hub ----


@pytest.fixture
def two_revisions(cache, model_folder, tokenizer, tmp_path) -> Path:
    """A base whose branch v2 has other weights than its main branch. Gives the folder of what v2 holds."""
    folder = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.lm_head.weight.data.neg_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    put_into_cache(cache, "me/base", Path(model_folder), COMMITS[0])
    put_into_cache(cache, "me/base", folder, COMMITS[1], "v2")
    return folder


@pytest.mark.parametrize("build", [build_trainer, build_sft_trainer])
def test_the_commit_of_a_base_of_the_hub_is_recorded(settings, two_revisions, build):
    given = settings(model_revision="v2")
    given.model.model_name_or_path = "me/base"
    record = training_record(build(given))
    assert (record.base_model, record.base_revision) == ("me/base", COMMITS[1])


@pytest.mark.slow
def test_a_base_of_the_hub_is_trained_resumed_used_and_merged_at_its_revision(two_revisions, tmp_path):
    data, run, again = logiqa_folder(tmp_path / "data"), tmp_path / "run", tmp_path / "again"
    options = dict(task="logiqa", model_revision="v2", save_strategy="steps", save_steps=1)
    assert main(train_argv("me/base", data, run, **options)) == 0
    shutil.copytree(run / "checkpoint-1", again / "checkpoint-1")
    assert main(train_argv("me/base", data, again, **options, resume_from_checkpoint="true")) == 0
    assert same_weights(run, again)
    loaded = load_folder(run)
    base = AutoModelForCausalLM.from_pretrained(two_revisions)
    with loaded.model.disable_adapter():
        assert torch.equal(logits(loaded.model), logits(base))
    assert merge_adapter(run, tmp_path / "merged").relative_logit_error < 1e-5
    assert_serves(loaded, tmp_path / "merged")


@pytest.mark.parametrize("build", [build_trainer, build_sft_trainer])
def test_an_adapter_of_the_hub_is_no_base(settings, cache, adapter, build):
    put_into_cache(cache, "me/adapter", adapter, COMMITS[0])
    given = settings()
    given.model.model_name_or_path = "me/adapter"
    with pytest.raises(ValueError, match=r"^The base model me/adapter is an adapter itself\. Merge it first"):
        build(given)


def test_a_revision_whose_main_branch_is_not_at_hand(settings, cache, model_folder):
    put_into_cache(cache, "me/base", Path(model_folder), COMMITS[0], "v2")
    given = settings(model_revision="v2")
    given.model.model_name_or_path = "me/base"
    with pytest.raises(ValueError, match=r"main branch cannot be had .*Run: hf download me/base config\.json"):
        build_trainer(given)
    put_into_cache(cache, "me/base", Path(model_folder), COMMITS[1])
    check_trainable("me/base", "v2")
