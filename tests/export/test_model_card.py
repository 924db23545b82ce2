"""Model cards, whose edits are kept, and what a push uploads. No network: the Hub's client is a fake."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import SCORES, SEPARATOR, card_of, random_adapter, save_adapter, warmup_config
from huggingface_hub import ModelCard

from warmup_peft.export.model_card import PEFT_TEMPLATE_TITLE, is_edited, write_model_card
from warmup_peft.files import replacing_files
from warmup_peft.inference.folder import CARD_NAME, CURVES_NAME, METRICS_NAME, TrainingRecord, WarmupConfig
from warmup_peft.inference.scores import save_scores

pytestmark = pytest.mark.usefixtures("pefts_card")


@pytest.fixture
def adapter(tmp_path, model_folder, tokenizer, lora) -> Path:
    return save_adapter(tmp_path / "my-adapter", random_adapter(model_folder, lora), tokenizer, model_folder)


def save_again(model, folder: Path) -> None:
    """As the trainer does."""
    with replacing_files(folder) as staging:
        model.save_pretrained(staging)
        (staging / CARD_NAME).unlink()
    write_model_card(folder)


# ---- Model cards ----


def test_card_says_how_to_decode(adapter, tokenizer):
    assert write_model_card(adapter) == adapter / CARD_NAME
    card = card_of(adapter)
    ids = ", ".join(map(str, warmup_config(tokenizer).warmup_separator_ids))
    assert "\n# my-adapter\n" in card
    assert f"at most 5 tokens, then the separator `{SEPARATOR}` (ids {ids})" in card
    assert f"separator, end_tokens = [{ids}], []" in card
    assert "AutoPeftModelForCausalLM" in card
    assert "| warmup_anchor | 0.3 |" in card
    assert not is_edited(card)


@pytest.mark.parametrize("is_merged", [True, False])
def test_card_of_a_model_that_writes_its_separator(adapter, tokenizer, is_merged):
    config = WarmupConfig("</think>\n\n", [7, 8], 5, [7], "<think>\n", [6], True, True, {"enable_thinking": True})
    config.save(adapter)
    if is_merged:
        (adapter / "adapter_config.json").unlink()
    write_model_card(adapter)
    card = card_of(adapter)
    assert (
        "| Warmup | after the opening `<think>\\n`, at most 5 tokens, then the separator `</think>\\n\\n` (ids 7, 8), "
        "which the model writes by itself |" in card
    )
    first, then, last = (
        card.index(words) for words in ("no code of this repo, in one call:", "terminal", "trust the")
    )
    assert first < then < last
    assert "max_new_tokens=72" in card  # 1 + 5 + 2 around the answer's 64
    assert card.count("return_tensors=\"pt\", **{'enable_thinking': True}") == 2
    assert "What stands before `</think>` in the text is the warmup" in card
    assert ("after `warmup-peft merge`" in card) != is_merged
    assert "warmup-peft chat --adapter" in card
    assert "two calls" not in card


def test_card_of_an_opening_of_ones_own(adapter):
    WarmupConfig(" || ", [7, 8], 5, [7], "<w>", [5, 6]).save(adapter)
    write_model_card(adapter)
    card = card_of(adapter)
    assert "ids = torch.cat([ids, torch.tensor([[5, 6]])], dim=1)" in card
    first, then, last = (
        card.index(words) for words in ("In one call, with", "terminal", "in two calls (the separator's")
    )
    assert first < then < last
    assert "apply_chat_template" not in card
    assert "warmup-peft chat" not in card


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
    save_scores(adapter, METRICS_NAME, SCORES)
    write_model_card(adapter)
    assert first != card_of(adapter)
    assert "| base, answering directly | 0.250 | 0.125 | 8 |" in card_of(adapter)
    assert "| adapter, after its warmup | 0.500 | 0.432 | 8 |" in card_of(adapter)
    assert not is_edited(card_of(adapter))
    write_model_card(adapter)
    assert card_of(adapter).count("written by warmup_peft") == 1


def test_the_card_shows_no_scores_of_other_weights(adapter, model_folder, lora):
    save_scores(adapter, METRICS_NAME, SCORES)
    save_again(random_adapter(model_folder, lora), adapter)  # the same weights once more
    assert "| adapter, after its warmup | 0.500 | 0.432 | 8 |" in card_of(adapter)
    other = random_adapter(model_folder, lora)
    other.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.data[0, 0] += 1e-6
    save_again(other, adapter)
    assert "0.432" not in card_of(adapter)
    assert "held-out data" not in card_of(adapter)


def test_an_arm_may_lack_a_score(adapter):
    scores = {"base": {"accuracy": 0.25, "n": 8}, "warmup": {"accuracy": 0.5, "bleu": 0.125, "n": 8}}
    save_scores(adapter, METRICS_NAME, scores)
    write_model_card(adapter)
    assert "| held-out data | accuracy | bleu | rows |" in card_of(adapter)
    assert "| base, answering directly | 0.250 | – | 8 |" in card_of(adapter)
    assert "| adapter, after its warmup | 0.500 | 0.125 | 8 |" in card_of(adapter)


def test_the_hub_reads_the_scores_of_the_model_itself(adapter):
    """As huggingface_hub reads the card back; whether they are percent is nowhere said, so they are not."""
    record = TrainingRecord("some/base", data={"dataset_name": "some/data"})
    record.save(adapter)
    scores = {**SCORES, "settings": {"data": "some/data, split test"}}
    scores["warmup"] = {**scores["warmup"], "perplexity": float("inf"), "generations_that_are_options": 0.5}
    save_scores(adapter, METRICS_NAME, scores)
    write_model_card(adapter)
    data = ModelCard.load(adapter / CARD_NAME).data
    found = [(each.metric_type, each.metric_value, each.metric_name) for each in data.eval_results]
    assert found == [
        ("accuracy", 0.5, "accuracy after its own warmup, 8 rows"),
        ("f1", 0.4321, "macro f1 after its own warmup, 8 rows"),
    ]
    assert data.model_name == "my-adapter"
    assert {
        (each.dataset_type, each.dataset_name, each.dataset_split, each.task_type) for each in data.eval_results
    } == {("some/data", "some/data", "test", "text-generation")}


def test_scores_on_local_rows_name_no_path(adapter, tmp_path):
    save_scores(adapter, METRICS_NAME, {**SCORES, "settings": {"data": f"{tmp_path}/secret/rows.jsonl"}})
    write_model_card(adapter)
    (one, _) = ModelCard.load(adapter / CARD_NAME).data.eval_results
    assert (one.dataset_type, one.dataset_name, one.dataset_split) == ("local", "rows.jsonl (local)", None)


def test_the_curves_are_shown_where_they_lie_in_the_folder(adapter):
    write_model_card(adapter)
    assert "](training.png)" not in card_of(adapter)
    (adapter / CURVES_NAME).write_bytes(b"png")
    write_model_card(adapter)
    assert "over the steps of the training](training.png)" in card_of(adapter)


@pytest.mark.parametrize(
    ("data", "given", "shown"),
    [
        ({"dataset_name": "some/data", "license": "mit"}, None, "mit"),
        ({"dataset_name": "some/data", "license": "mit"}, "cc-by-4.0", "cc-by-4.0"),
        ({"dataset_name": "folder/train.jsonl"}, None, "odc-by, mit"),
        ({"dataset_name": "folder"}, None, "odc-by, mit"),
        ({"dataset_name": "some/data"}, None, None),
        ({"source": "rows of a script"}, None, None),
    ],
)
def test_the_license_of_the_data(adapter, tmp_path, monkeypatch, data, given, shown):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("---\nlicense: [odc-by, mit]\n---\n# Rows\n")
    (tmp_path / "folder" / "train.jsonl").write_text("{}")
    TrainingRecord("some/base", data=data).save(adapter)
    write_model_card(adapter, data_license=given)
    assert (f"| License of the data | {shown} |" in card_of(adapter)) == (shown is not None)
    assert ("License of the data" in card_of(adapter)) == (shown is not None)


def test_the_exact_versions_are_there(adapter):
    TrainingRecord("some/base", versions={"trl": "1.16.0", "torch": "2.13.0+cu126"}).save(adapter)
    write_model_card(adapter)
    assert "| Versions | trl 1.16.0, torch 2.13.0+cu126 |" in card_of(adapter)


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


@pytest.mark.parametrize("before", [None, "own", "# Mine\n"])
def test_saving_over_a_folder_keeps_an_edited_card(adapter, model_folder, lora, before):
    if before == "own":
        write_model_card(adapter)
    elif before is not None:
        (adapter / CARD_NAME).write_text(before)
    save_again(random_adapter(model_folder, lora), adapter)
    if before == "# Mine\n":
        assert card_of(adapter) == before
    else:
        assert "# my-adapter" in card_of(adapter)
        assert not is_edited(card_of(adapter))


def test_the_card_says_what_the_rows_of_a_script_are(adapter):
    record = TrainingRecord.load(adapter)
    record.data = {"source": "me/mine, split train", "train_rows": 80, "fingerprint": "ab12"}
    record.save(adapter)
    write_model_card(adapter)
    assert "| Data | me/mine, split train; 80 rows, fingerprint `ab12` |" in card_of(adapter)
