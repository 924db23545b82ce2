"""Model cards, whose edits are kept, and what a push uploads. No network: the Hub's client is a fake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import SEPARATOR, random_adapter, save_adapter, warmup_config
from huggingface_hub import ModelCard

from warmup_peft.inference.hub import (
    CARD_NAME,
    METRICS_NAME,
    PEFT_TEMPLATE_TITLE,
    is_edited,
    write_model_card,
)
from warmup_peft.inference.loading import TrainingRecord

SCORES = {
    "base": {"accuracy": 0.25, "macro_f1": 0.125, "n": 8},
    "warmup": {"accuracy": 0.5, "macro_f1": 0.4321, "n": 8},
    "settings": {"seed": 0},
}


@pytest.fixture
def adapter(tmp_path, model_folder, tokenizer, lora) -> Path:
    return save_adapter(tmp_path / "my-adapter", random_adapter(model_folder, lora), tokenizer, model_folder)


def card_of(folder: Path) -> str:
    return (folder / CARD_NAME).read_text(encoding="utf-8")


# ---- Model cards ----


def test_card_says_how_to_decode(adapter, tokenizer):
    assert write_model_card(adapter) == adapter / CARD_NAME
    card = card_of(adapter)
    ids = ", ".join(map(str, warmup_config(tokenizer).warmup_separator_ids))
    assert "\n# my-adapter\n" in card
    assert f"at most 5 tokens, then the separator `{SEPARATOR}` (ids {ids})" in card
    assert f"torch.tensor([[{ids}]])" in card
    assert "AutoPeftModelForCausalLM" in card
    assert "| warmup_anchor | 0.3 |" in card
    assert not is_edited(card)


def test_card_hides_local_paths(adapter, model_folder):
    record = TrainingRecord.load(adapter)
    record.data = {"dataset_name": "/home/someone/secret/rows.jsonl"}
    record.save(adapter)
    write_model_card(adapter)
    assert str(Path(model_folder).parent) not in card_of(adapter)
    assert "/home/someone" not in card_of(adapter)
    assert "rows.jsonl (local)" in card_of(adapter)
    assert ModelCard.load(adapter / CARD_NAME).data.base_model is None


def test_cards_metadata_names_public_base_and_data(adapter):
    record = TrainingRecord("some/base", "abc123", data={"dataset_name": "some/data"})
    record.save(adapter)
    write_model_card(adapter)
    data = ModelCard.load(adapter / CARD_NAME).data
    assert (data.base_model, data.datasets, data.library_name) == ("some/base", ["some/data"], "peft")
    assert {"lora", "warmup-sft"} <= set(data.tags)
    assert "| Base revision | `abc123` |" in card_of(adapter)


def test_own_card_is_rewritten_with_the_scores(adapter):
    write_model_card(adapter)
    first = card_of(adapter)
    (adapter / METRICS_NAME).write_text(json.dumps(SCORES))
    write_model_card(adapter)
    assert first != card_of(adapter)
    assert "| base | 0.250 | 0.125 | 8 |" in card_of(adapter)
    assert "| warmup | 0.500 | 0.432 | 8 |" in card_of(adapter)
    assert not is_edited(card_of(adapter))
    write_model_card(adapter)
    assert card_of(adapter).count("written by warmup_peft") == 1


EDITS = {
    "inside": lambda card: card.replace("# my-adapter", "# My better title"),
    "before": lambda card: card.replace("library_name: peft", "library_name: peft\nlicense: mit"),
    "after": lambda card: card + "\n## Limits\n\nA person wrote this.\n",
    "seal gone": lambda card: card[: card.index("<!--")],
    "anew": lambda _: "# Mine\n",
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_card_is_kept(adapter, edit):
    write_model_card(adapter)
    edited = EDITS[edit](card_of(adapter))
    (adapter / CARD_NAME).write_text(edited, encoding="utf-8")
    assert is_edited(edited)
    write_model_card(adapter)
    assert card_of(adapter) == edited


def test_white_space_at_the_end_is_no_edit(adapter):
    write_model_card(adapter)
    assert not is_edited(card_of(adapter) + "\n")
    assert not is_edited(card_of(adapter).rstrip())


def test_pefts_template_is_nobodys(adapter, model_folder, lora):
    random_adapter(model_folder, lora).save_pretrained(adapter)
    assert PEFT_TEMPLATE_TITLE in card_of(adapter)
    write_model_card(adapter)
    assert PEFT_TEMPLATE_TITLE not in card_of(adapter)
    assert "# my-adapter" in card_of(adapter)
