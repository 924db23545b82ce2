"""What a push uploads, and what it hides. No network: the Hub's client is a fake that looks at what it gets."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import SCORES, card_of, random_adapter, save_adapter
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from warmup_peft.export.merge import merge_adapter
from warmup_peft.export.model_card import PEFT_TEMPLATE_TITLE, write_model_card
from warmup_peft.export.push import files_to_push, push_folder, staged, without_places
from warmup_peft.inference.folder import (
    CARD_NAME,
    CURVES_NAME,
    HARNESS_NAME,
    METRICS_NAME,
    RUN_FILES,
    TRAINING_STATE,
    TrainingRecord,
)
from warmup_peft.inference.scores import save_scores


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

    def model_info(self, repo_id):
        self.calls.append(("model_info", repo_id, {}))
        return SimpleNamespace(card_data=SimpleNamespace(license="llama3.2"))

    def dataset_info(self, repo_id):
        self.calls.append(("dataset_info", repo_id, {}))
        return SimpleNamespace(card_data=SimpleNamespace(license=["cc-by-nc-sa-4.0", "mit"]))

    def create_repo(self, repo_id, **keywords):
        self.calls.append(("create_repo", repo_id, keywords))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, create_pr, **_):
        self.create_pr = create_pr
        self.contents = {p.name: p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()}
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
def pushable(tmp_path, model_folder, tokenizer, lora) -> Path:
    adapter = save_adapter(tmp_path / "my-adapter", random_adapter(model_folder, lora), tokenizer, model_folder)
    (adapter / CURVES_NAME).write_bytes(b"png")
    write_model_card(adapter)
    save_scores(adapter, METRICS_NAME, SCORES)
    return adapter


EXPECTED = sorted({CARD_NAME, "tokenizer.json", "tokenizer_config.json", *RUN_FILES} - {HARNESS_NAME, *TRAINING_STATE})
KEPT_BACK = [
    "notes.txt",
    "secrets.json",
    ".token.txt",
    "optimizer.safetensors",
    "training_args.bin",
    "trainer_state.json",
    "training.html",
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
    assert files_to_push(pushable) == EXPECTED


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
    assert set(EXPECTED) <= set(hub.uploaded)
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
    assert hub.uploaded == [name for name in EXPECTED if name != CARD_NAME]


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

    monkeypatch.setattr("warmup_peft.export.push.HfApi", no_client)
    plan = push_folder(pushable, "me/it", dry_run=True)
    assert (plan.files, plan.private, plan.url) == (EXPECTED, True, None)


def test_push_refuses_what_is_no_model(tmp_path):
    hub = FakeHub(tmp_path, NEW_REPO)
    with pytest.raises(ValueError, match="is neither an adapter nor a model"):
        push_folder(tmp_path, "me/it", api=hub)
    assert hub.calls == []


def test_the_code_of_a_model_goes_up_with_it_and_no_other(tmp_path):
    own = {"AutoConfig": "own.OwnConfig", "AutoModel": "elsewhere/repo--other.Other"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["words.Words", None]}}))
    (tmp_path / "own.py").write_text("from .layers import Layer\n")
    for name in ("layers", "words", "other", "notes"):
        (tmp_path / f"{name}.py").write_text("")
    code = [name for name in files_to_push(tmp_path) if name.endswith(".py")]
    assert code == ["layers.py", "own.py", "words.py"]


def test_nothing_uploaded_tells_where_it_was_made(pushable, tmp_path, model_folder):
    """Paths, user and machine, in every file that goes up; the folders themselves stay as they are."""
    record = TrainingRecord.load(pushable)
    record.data = {"dataset_name": str(tmp_path / "rows.jsonl")}
    record.settings = {"warmup_pool": str(tmp_path / "pool"), "warmup_separator": " / "}
    record.base_revision = "abc123"
    record.save(pushable)
    save_scores(pushable, METRICS_NAME, {"settings": {"data": f"{tmp_path}/x, split test"}})
    write_model_card(pushable)
    merge_adapter(pushable, tmp_path / "merged")
    secrets = [str(tmp_path), str(Path(model_folder).parent), str(Path.home()), f"/{getpass.getuser()}/"]
    secrets += [socket.gethostname()] if len(socket.gethostname()) > 4 else []  # shorter ones occur anywhere
    for folder in (pushable, tmp_path / "merged"):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        hub = FakeHub(tmp_path, NEW_REPO)
        push_folder(folder, "me/it", api=hub)
        for name, content in hub.contents.items():
            for secret in secrets:
                assert secret.encode() not in content, (name, secret)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    adapter_hub = FakeHub(tmp_path, NEW_REPO)
    push_folder(pushable, "me/it", api=adapter_hub)
    config = json.loads(adapter_hub.contents["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (Path(model_folder).name, "abc123")
    public = json.loads(adapter_hub.contents["warmup_training.json"])
    assert public["settings"] == {"warmup_pool": "pool", "warmup_separator": " / "}
    assert public["data"] == {"dataset_name": "rows.jsonl"}


def test_names_of_the_hub_stay_as_they_are():
    content = {
        "base_model": "meta-llama/Llama-3.2-1B",
        "dataset_name": "datatune/LogiQA2.0",
        "x": ["/", "a/b", 3, None],
    }
    assert without_places(content) == content


def test_weights_go_up_as_they_are(pushable, tmp_path):
    hub = FakeHub(tmp_path, NEW_REPO)
    push_folder(pushable, "me/it", api=hub)
    name = "adapter_model.safetensors"
    assert hub.contents[name] == (pushable / name).read_bytes()
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in hub.contents)


@pytest.mark.parametrize("name", [METRICS_NAME, HARNESS_NAME])
def test_scores_of_other_weights_stay(pushable, name):
    save_scores(pushable, name, SCORES)
    assert name in files_to_push(pushable)
    with (pushable / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")  # as a second training would
    assert name not in files_to_push(pushable)


@pytest.mark.parametrize("create_pr", [True, False])
def test_a_pull_request_when_asked(pushable, tmp_path, create_pr):
    hub = FakeHub(tmp_path, NEW_REPO)
    push_folder(pushable, "me/it", create_pr=create_pr, api=hub)
    assert hub.create_pr is create_pr


def test_the_license_is_the_bases(pushable, tmp_path):
    """Of a base on the Hub it is asked for when the adapter goes up; of a local one its card says it."""
    record = TrainingRecord.load(pushable)
    TrainingRecord("some/base", data={"source": "some/data, split train"}, settings=record.settings).save(pushable)
    hub = FakeHub(tmp_path, NEW_REPO)
    push_folder(pushable, "me/it", api=hub)
    card = hub.contents["README.md"].decode()
    assert "license: llama3.2" in card
    assert "| License | llama3.2, inherited from the base |" in card
    assert "| License of the data | cc-by-nc-sa-4.0, mit |" in card
    assert [(call, name) for call, name, _ in hub.calls if call.endswith("_info")] == [
        ("model_info", "some/base"), ("dataset_info", "some/data"),
    ]  # fmt: skip

    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    TrainingRecord(str(base)).save(pushable)
    write_model_card(pushable)
    assert "license: apache-2.0" in card_of(pushable)


def test_tokenizer_files_go_up_byte_for_byte(pushable, tmp_path):
    """Their strings look like paths without being any."""
    path = pushable / "tokenizer.json"
    content = json.loads(path.read_text())
    content["merges_that_look_like_paths"] = [["~~", "~~"], ["/../../", "../"], ["/></div", "/home/x/y"]]
    path.write_text(json.dumps(content))
    hub = FakeHub(tmp_path, NEW_REPO)
    push_folder(pushable, "me/it", api=hub)
    assert hub.contents["tokenizer.json"] == path.read_bytes()


@pytest.mark.parametrize(
    ("value", "public"),
    [
        ("/home/me/rows.jsonl", "rows.jsonl"),
        ("file:///home/me/x", "x"),
        ("json:/home/me/x", "x"),
        ("C:\\Users\\me\\x", "x"),
        ("~/models/base/", "base"),
        ("https://arxiv.org/abs/2502.12304", "https://arxiv.org/abs/2502.12304"),
        ("/", "/"),
        ("~~", "~~"),
    ],
)
def test_paths_of_every_kind_lose_their_folders(value, public):
    assert without_places({"anything": [value]}) == {"anything": [public]}


def test_a_broken_file_is_named_before_anything_goes_up(pushable, tmp_path):
    (pushable / "metrics.json").write_text("{")
    hub = FakeHub(tmp_path, NEW_REPO)
    with pytest.raises(ValueError, match="is not valid JSON"):
        push_folder(pushable, "me/it", dry_run=True, api=hub)


def test_a_base_inside_an_installed_package_is_named_by_its_last_part(adapter, tmp_path):
    """As a recipe of the package names it, wherever it is installed."""
    recipes = "/opt/env/lib/python3.11/site-packages/warmup_peft/recipes/logiqa"
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"{recipes}/relay/base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    data = {"dataset_name": f"{recipes}/relay", "dataset_test_split": "test", "task": f"{recipes}/task.py"}
    TrainingRecord(base_model=f"{recipes}/relay/base", data=data).save(adapter)
    scores = {"warmup": {"accuracy": 0.5, "n": 8}, "settings": {"data": f"{recipes}/relay, split test"}}
    save_scores(adapter, METRICS_NAME, scores)
    write_model_card(adapter)
    with staged(adapter, files_to_push(adapter)) as place:
        texts = {path.name: path.read_text() for path in place.rglob("*") if path.suffix in (".json", ".md", ".py")}
    assert {"README.md", "adapter_config.json", "metrics.json"} <= texts.keys()
    assert {name for name, text in texts.items() if "site-packages" in text} == set()
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "base"


def test_a_name_that_the_hub_cannot_have_is_refused_in_a_dry_run(adapter):
    with pytest.raises(ValueError, match="me/my repo"):
        push_folder(adapter, "me/my repo", dry_run=True)
