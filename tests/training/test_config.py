"""`WarmupSFTConfig`: the method's defaults, and TRL's settings that would change the objective."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from warmup_peft import WarmupSFTConfig
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.training import config as module
from warmup_peft.training.config import TrainingSettings, choose_learning_rate, parse_training, say_notes
from warmup_peft.training.early import REFUSED_SETTINGS


def config(**settings) -> WarmupSFTConfig:
    return WarmupSFTConfig(**{"output_dir": "unused", "bf16": False, "report_to": "none", **settings})


def test_config_has_the_same_defaults():
    ours, options = config(), WarmupOptions()
    options.check_warmup_options()
    assert {name: getattr(ours, name) for name in vars(options)} == vars(options)


@pytest.mark.parametrize("field", REFUSED_SETTINGS)
def test_trl_settings_that_change_the_objective_are_refused(field):
    value = 0.1 if field == "label_smoothing_factor" else True
    with pytest.raises(ValueError, match=f"^{field}={value} does not work with warmups.*Set {field} to"):
        config(**{field: value})


def test_packing_and_label_smoothing_are_among_them():
    assert {"packing", "eval_packing", "padding_free", "label_smoothing_factor"} <= set(REFUSED_SETTINGS)


def test_dft_is_refused():
    with pytest.raises(ValueError, match=r"^loss_type='dft'.*Set loss_type to 'nll'"):
        config(loss_type="dft")


def test_training_on_the_prompt_is_refused():
    with pytest.raises(ValueError, match=r"^completion_only_loss=False.*set it to true"):
        config(completion_only_loss=False)
    assert config(completion_only_loss=True).completion_only_loss is True


def test_mixtures_of_data_sets_are_refused(tmp_path):
    """TRL's own script reads them; a mixture that is made before is one data set."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("datasets:\n- path: one\n- path: other\n")
    with pytest.raises(ValueError, match=r"recipe.yaml has an unknown key 'datasets'\. Did you mean 'dataset_"):
        parse_training(["--config", str(recipe)])


# ---- What is missing on this machine ----


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"report_to": "dvclive"},
            "report_to=dvclive needs the package dvclive.*pip install dvclive; or set report_to",
        ),
        ({"report_to": ["azure_ml"]}, "report_to=azure_ml needs the package azureml-core"),
        ({"report_to": "wanbd"}, "report_to=wanbd is no tracker that transformers knows. Choose from .*wandb"),
        ({"deepspeed": "ds.json"}, "deepspeed=ds.json needs the package deepspeed.* pip install deepspeed; or leave"),
    ],
    ids=str,
)
def test_packages_that_are_not_installed(monkeypatch, settings, said):
    monkeypatch.setattr(module, "get_available_reporting_integrations", lambda: ["wandb"])
    with pytest.raises(ValueError, match=f"^{said}"):
        config(**settings)


def test_a_tracker_that_is_installed(monkeypatch):
    monkeypatch.setattr(module, "get_available_reporting_integrations", lambda: ["wandb"])
    assert config(report_to="wandb").report_to == ["wandb"]


def test_strategies_that_differ_are_named_as_the_user_writes_them():
    with pytest.raises(ValueError, match=r"eval_strategy is 'epoch' and save_strategy is 'steps'\. Set both"):
        config(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="steps")
    config(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")


@pytest.mark.parametrize(
    ("has_gpu", "use_cpu", "is_on", "reason"),
    [
        (False, False, False, "this machine has no GPU that computes in bfloat16"),
        (False, True, False, "use_cpu is set"),
        (True, True, False, "use_cpu is set"),
        (True, False, True, None),
    ],
)
def test_bfloat16_where_the_machine_has_it(monkeypatch, has_gpu, use_cpu, is_on, reason):
    monkeypatch.setattr(module, "is_torch_bf16_gpu_available", lambda: has_gpu)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: has_gpu)
    args = config(bf16=None, use_cpu=use_cpu)
    assert args.bf16 is is_on
    said = args.notes
    assert [text.partition(": ")[0] for text in said] == ([] if reason is None else [f"bf16 is not set, and {reason}"])


def test_processes_that_would_train_alone_are_refused(monkeypatch):
    args = config()
    monkeypatch.setenv("WORLD_SIZE", "2")
    module.check_processes(args)  # a cluster's own number, and nothing was launched
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"^2 processes were started, and there are no GPUs.* set use_cpu to true"):
        module.check_processes(args)
    module.check_processes(SimpleNamespace(world_size=2))
    monkeypatch.setenv("WORLD_SIZE", "1")
    module.check_processes(args)


def test_what_is_set_stays(monkeypatch):
    monkeypatch.setattr(module, "is_torch_bf16_gpu_available", lambda: False)
    asked = config(bf16=True, use_cpu=True)
    assert asked.bf16 is True  # transformers computes in bfloat16 on the CPU where asked to
    assert config(bf16=False).bf16 is False
    assert asked.notes == config(bf16=False).notes == []
    with pytest.raises(ValueError, match=r"^bf16=True needs a GPU .* has none\. Leave bf16 out or set it to false"):
        config(bf16=True)


# ---- Defaults that depend on whether an adapter is trained ----


@pytest.mark.parametrize(("has_adapter", "rate"), [(True, 2e-4), (False, 2e-5)])
def test_the_learning_rate_where_none_is_set(has_adapter, rate):
    args = config()
    choose_learning_rate(args, has_adapter)
    said = args.notes
    assert args.learning_rate == rate
    assert bool(said) == has_adapter
    assert not said or said[0].startswith("learning_rate is not set: 0.0002, as is usual for adapters (TRL's default")


def test_a_learning_rate_that_is_set_stays(monkeypatch):
    monkeypatch.setattr(module.logger, "warning_once", lambda said: pytest.fail(said))
    args = config(learning_rate=2e-5)
    choose_learning_rate(args, has_adapter=True)
    assert args.learning_rate == 2e-5


def settings_of(*words: str) -> TrainingSettings:
    return parse_training(["--output_dir", "unused", "--bf16", "false", "--report_to", "none", *words])


def test_defaults_of_the_command_line():
    given = settings_of("--use_peft", "true")
    assert (given.training.learning_rate, given.model.lora_dropout) == (2e-4, 0.0)
    given = settings_of("--use_peft", "true", "--learning_rate", "1e-3", "--lora_dropout", "0.05")
    assert (given.training.learning_rate, given.model.lora_dropout) == (1e-3, 0.05)
    assert settings_of().training.learning_rate == 2e-5


def test_hindsight_that_lasts_to_the_end_is_noted(tmp_path):
    args = WarmupSFTConfig(str(tmp_path), max_steps=7, hindsight_steps=7, report_to="none")
    assert any(note.startswith("All 7 steps are within hindsight_steps=7") for note in args.notes)


def test_notes_are_said_once(monkeypatch):
    said = []
    monkeypatch.setattr(module.logger, "warning_once", said.append)
    args = config(bf16=False)
    choose_learning_rate(args, has_adapter=True)
    choose_learning_rate(args, has_adapter=True)
    say_notes(args)
    assert len(said) == 1
