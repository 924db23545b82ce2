"""Model cards, whose edits are kept, and what a push uploads. No network: the Hub's client is a fake."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import SEPARATOR, random_adapter, save_adapter, warmup_config
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from warmup_peft.inference.hub import (
    CARD_NAME,
    METRICS_NAME,
    PEFT_TEMPLATE_TITLE,
    files_to_push,
    is_edited,
    own_model_card,
    push_folder,
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


@pytest.mark.parametrize("before", [None, "own", "# Mine\n"])
def test_saving_over_a_folder_keeps_an_edited_card(adapter, model_folder, lora, before):
    if before == "own":
        write_model_card(adapter)
    elif before is not None:
        (adapter / CARD_NAME).write_text(before)
    with own_model_card(adapter):
        random_adapter(model_folder, lora).save_pretrained(adapter)
    if before == "# Mine\n":
        assert card_of(adapter) == before
    else:
        assert "# my-adapter" in card_of(adapter)
        assert not is_edited(card_of(adapter))


# ---- Push ----


class FakeHub:
    """Records what is asked of it. `card` is the README.md on the Hub: text, or the error that fetching it raises."""

    def __init__(self, tmp_path: Path, card: str | Exception):
        self.tmp_path, self.card, self.calls = tmp_path, card, []

    def hf_hub_download(self, repo_id, filename, **_):
        assert filename == CARD_NAME
        if isinstance(self.card, Exception):
            raise self.card
        path = self.tmp_path / "downloaded.md"
        path.write_text(self.card, encoding="utf-8")
        return str(path)

    def create_repo(self, repo_id, **keywords):
        self.calls.append(("create_repo", repo_id, keywords))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **_):
        names = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        self.calls.append(
            ("upload_folder", repo_id, sorted(filter_repo_objects(names, allow_patterns=allow_patterns)))
        )

    @property
    def uploaded(self) -> list[str]:
        (names,) = [names for call, _, names in self.calls if call == "upload_folder"]
        return names


RESPONSE = SimpleNamespace(headers={}, request=None)
NEW_REPO = RepositoryNotFoundError("no such repo", response=RESPONSE)


@pytest.fixture
def pushable(adapter) -> Path:
    write_model_card(adapter)
    (adapter / METRICS_NAME).write_text(json.dumps(SCORES))
    return adapter


PUSHED = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "custom_generate/generate.py",
    "metrics.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "warmup_config.json",
    "warmup_training.json",
]
KEPT_BACK = [
    "training_args.bin",
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    ".env",
    ".cache/huggingface/token",
    "checkpoint-100/adapter_model.safetensors",
    "checkpoint-100/optimizer.pt",
    "runs/Nov20/events.out.tfevents.0",
]


def add_files(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("name", KEPT_BACK)
def test_what_belongs_to_the_training_stays(pushable, name):
    add_files(pushable, [name])
    assert files_to_push(pushable) == PUSHED


def test_merged_folder_can_be_pushed_and_others_cannot(tmp_path, model_folder):
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files_to_push(model_folder))
    with pytest.raises(ValueError, match="is neither an adapter nor a model"):
        files_to_push(tmp_path)


def test_push_is_private_and_uploads_the_listed_files_only(pushable, tmp_path):
    add_files(pushable, KEPT_BACK)
    hub = FakeHub(tmp_path, NEW_REPO)
    plan = push_folder(pushable, "me/it", api=hub)
    assert hub.calls[0] == ("create_repo", "me/it", {"private": True, "exist_ok": True})
    assert hub.uploaded == plan.files
    assert not set(hub.uploaded) & set(KEPT_BACK)
    assert set(PUSHED) <= set(hub.uploaded)
    assert (plan.private, plan.card_kept, plan.url) == (True, False, "https://huggingface.co/me/it")


def test_public_only_when_asked(pushable, tmp_path):
    hub = FakeHub(tmp_path, NEW_REPO)
    assert push_folder(pushable, "me/it", private=False, api=hub).private is False
    assert hub.calls[0] == ("create_repo", "me/it", {"private": False, "exist_ok": True})


def test_edited_card_on_the_hub_is_kept(pushable, tmp_path):
    hub = FakeHub(tmp_path, card_of(pushable).replace("# my-adapter", "# A person's title"))
    plan = push_folder(pushable, "me/it", api=hub)
    assert plan.card_kept
    assert CARD_NAME not in plan.files
    assert hub.uploaded == [name for name in PUSHED if name != CARD_NAME]


@pytest.mark.parametrize(
    "card", [NEW_REPO, RemoteEntryNotFoundError("no card", response=RESPONSE), f"{PEFT_TEMPLATE_TITLE}\n", "own"]
)
def test_other_cards_on_the_hub_are_replaced(pushable, tmp_path, card):
    hub = FakeHub(tmp_path, card_of(pushable) if card == "own" else card)
    assert not push_folder(pushable, "me/it", api=hub).card_kept
    assert CARD_NAME in hub.uploaded


@pytest.mark.parametrize(
    "error",
    [LocalEntryNotFoundError("no connection"), HfHubHTTPError("busy", response=RESPONSE)],
    ids=["no connection", "busy"],
)
def test_nothing_is_uploaded_while_it_is_unknown_whether_the_card_was_edited(pushable, tmp_path, error):
    hub = FakeHub(tmp_path, error)
    with pytest.raises(type(error)):
        push_folder(pushable, "me/it", api=hub)
    assert hub.calls == []


def test_dry_run_asks_the_hub_nothing(pushable, monkeypatch):
    def no_client(*_, **__):
        raise AssertionError("a dry run has no use for a client")

    monkeypatch.setattr("warmup_peft.inference.hub.HfApi", no_client)
    plan = push_folder(pushable, "me/it", dry_run=True)
    assert (plan.files, plan.private, plan.url) == (PUSHED, True, None)


def test_push_refuses_what_is_no_model(tmp_path):
    hub = FakeHub(tmp_path, NEW_REPO)
    with pytest.raises(ValueError, match="is neither an adapter nor a model"):
        push_folder(tmp_path, "me/it", api=hub)
    assert hub.calls == []
