"""`TrainingPage` in a training of a tiny model: when it writes, what is in it, and what it must not cost."""

from __future__ import annotations

import logging

import pytest
from conftest import EXAMPLES
from datasets import Dataset
from pages import Page
from trainers import make_trainer

from warmup_peft import WarmupSFTConfig
from warmup_peft.comparison.training_page import TrainingPage, shown_settings, why_no_page, write_page
from warmup_peft.inference.folder import CURVES_NAME, PAGE_NAME


@pytest.fixture
def trainer(model_folder, tokenizer, lora, tmp_path):
    return make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, max_steps=3, logging_steps=1, save_strategy="steps",
        save_steps=2, warmup_gain_steps=1, eval_dataset=Dataset.from_list(EXAMPLES[:2]), eval_strategy="steps",
        eval_steps=2,
    )  # fmt: skip


def test_it_writes_at_every_save_and_at_the_end_what_the_training_logged(trainer, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(
        "warmup_peft.comparison.training_page.write_page", lambda _, state: steps.append(state.global_step)
    )
    trainer.add_callback(TrainingPage())
    trainer.train()
    assert steps == [2, 3, 3]  # transformers saves at the last step, too
    write_page(trainer.args, trainer.state)
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_file()} == {PAGE_NAME, CURVES_NAME}
    page = Page((tmp_path / "run" / PAGE_NAME).read_text(encoding="utf-8"))
    for part in ("3 steps, all done.", "over a shuffled warmup", "loss, on validation rows", "what follows three?"):
        assert part in page.text
    assert [text for text in page.texts if text.startswith("Step ")] == ["Step 3", "Step 2", "Step 1"]
    assert len(page.all("img")) == 4  # no KL without an anchor


def test_what_cannot_be_drawn_does_not_end_a_training(trainer, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr("warmup_peft.comparison.training_page.write_page", fail)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer.add_callback(TrainingPage())
    trainer.train()
    assert trainer.state.global_step == 3
    assert "training.html could not be written: no font" in caplog.text


def test_what_it_needs(monkeypatch):
    assert why_no_page() is None
    monkeypatch.setattr("warmup_peft.comparison.training_page.PACKAGES", ("no_such_package", "jinja2"))
    assert why_no_page() == (
        "A page of curves and warmups (training.html) needs no_such_package: pip install 'warmup_peft[compare]'"
    )
    with pytest.raises(ImportError, match="needs no_such_package"):
        TrainingPage()


def test_settings_that_were_set_come_first_and_vllm_only_where_it_samples(tmp_path):
    args = WarmupSFTConfig(str(tmp_path), bf16=False, report_to="none", num_warmups=2, seed=7, learning_rate=1e-3)
    names = list(shown_settings(args))
    assert set(names[:4]) == {"num_warmups", "seed", "learning_rate", "objective"}  # the last one has been resolved
    assert not any("vllm" in name for name in names)
    args.use_vllm = True
    assert list(shown_settings(args))[len(names) :][:2] == ["use_vllm", "vllm_mode"]
