"""`WarmupSFTConfig`: the method's defaults, and TRL's settings that would change the objective."""

from __future__ import annotations

import pytest

from warmup_peft import WarmupSFTConfig
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.training.config import REFUSED_SETTINGS, parse_training


def config(**settings) -> WarmupSFTConfig:
    return WarmupSFTConfig(**{"output_dir": "unused", "bf16": False, "report_to": "none", **settings})


def test_config_has_the_same_defaults():
    ours, options = config(), WarmupOptions()
    options.check_warmup_options()
    assert {name: getattr(ours, name) for name in vars(options)} == vars(options)


@pytest.mark.parametrize("field", REFUSED_SETTINGS)
def test_trl_settings_that_change_the_objective_are_refused(field):
    value = 0.1 if field in ("label_smoothing_factor", "router_aux_loss_coef") else True
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
    with pytest.raises(ValueError, match=r"recipe.yaml has an unknown key 'datasets'\. Did you mean dataset_"):
        parse_training(["--config", str(recipe)])
