"""`push_to_hub=True`: what TRL's own uploads hold, at every strategy. No network: the Hub's client is a fake."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
from conftest import EXAMPLES
from datasets import Dataset
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.inference.folder import CARD_NAME, CURVES_NAME, RUN_FILES, SCORES, TRAINING_STATE

ADAPTER = {CARD_NAME, "tokenizer.json", "tokenizer_config.json", *RUN_FILES} - {*SCORES, *TRAINING_STATE, CURVES_NAME}
WEIGHTS = "adapter_model.safetensors"
MODEL = {name for name in ADAPTER if not name.startswith("adapter_")} | {
    "config.json",
    "generation_config.json",
    "model.safetensors",
}


class FakeHub:
    """Stands for every `HfApi`. `uploads` has a dictionary (path in the repo -> bytes) for each upload."""

    def __init__(self, monkeypatch):
        self.uploads: list[dict[str, bytes]] = []
        self.options: list[dict] = []
        self.card: str | None = None
        self.error: Exception | None = None
        hub = self

        def upload_folder(api, *, folder_path, path_in_repo=None, allow_patterns=None, ignore_patterns=None,
                          run_as_future=False, **options):  # fmt: skip
            if run_as_future:
                return api.run_as_future(
                    upload_folder, api, folder_path=folder_path, path_in_repo=path_in_repo,
                    allow_patterns=allow_patterns, ignore_patterns=ignore_patterns, **options,
                )  # fmt: skip
            if hub.error is not None:
                raise hub.error
            paths = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
            sent = filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
            hub.uploads.append(
                {str(PurePosixPath(path_in_repo or "", p)): Path(folder_path, p).read_bytes() for p in sent}
            )
            hub.options.append(options)
            return SimpleNamespace(commit_url=f"commit {len(hub.uploads)}")

        def hf_hub_download(api, repo_id, filename, **_):
            if hub.card is None or filename != "README.md":
                raise RepositoryNotFoundError("none", response=SimpleNamespace(headers={}, request=None))
            return hub.card

        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
        monkeypatch.setattr(HfApi, "hf_hub_download", hf_hub_download)
        monkeypatch.setattr(HfApi, "create_repo", lambda api, name, **_: SimpleNamespace(repo_id=f"me/{name}"))

    @property
    def files(self) -> dict[str, bytes]:
        """What the repo holds in the end."""
        return {name: content for upload in self.uploads for name, content in upload.items()}


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    return FakeHub(monkeypatch)


@pytest.fixture
def build(model_folder, tmp_path, tokenizer, lora):
    def make(peft_config=lora, **settings) -> WarmupSFTTrainer:
        settings = {
            "push_to_hub": True, "hub_always_push": True, "max_steps": 2, "save_strategy": "steps", "save_steps": 1,
            "per_device_train_batch_size": 2, "warmup_source": "base", "warmup_pool_size": 2, "num_warmups": 2,
            "max_warmup_length": 4, "learning_rate": 0.01, "bf16": False, "report_to": "none", "disable_tqdm": True,
            "gradient_checkpointing": False, **settings,
        }  # fmt: skip
        trainer = WarmupSFTTrainer(
            model_folder,
            WarmupSFTConfig(str(tmp_path / "run"), **settings),
            train_dataset=Dataset.from_list(EXAMPLES),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trainer.data_record = {"dataset_name": str(tmp_path / "rows.jsonl")}
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "notes.txt").write_text("mine")
        return trainer

    return make


def check_uploads(hub: FakeHub, folders: set[str], secrets: list[str], whole: set[str] = ADAPTER) -> None:
    """Whole adapters in these folders of the repo, nothing else, and no local path in them."""
    assert set(hub.files) == {str(PurePosixPath(folder, name)) for folder in folders for name in whole}
    for upload in hub.uploads:
        for name, content in upload.items():
            for secret in secrets:
                assert secret.encode() not in content, (name, secret)


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("end", {""}),
        ("every_save", {""}),
        ("checkpoint", {"", "last-checkpoint"}),
        ("all_checkpoints", {"", "checkpoint-1", "checkpoint-2"}),
    ],
)
def test_only_listed_files_go_up(hub, build, tmp_path, model_folder, strategy, folders):
    trainer = build(hub_strategy=strategy)
    trainer.train()
    assert (tmp_path / "run" / "warmup_pool").is_dir()
    assert (len(hub.uploads) == 0) == (strategy == "end")
    trainer.save_model()
    check_uploads(hub, folders, [str(tmp_path), str(Path(model_folder).parent), str(Path.home())])
    roots = [upload[WEIGHTS] for upload in hub.uploads if WEIGHTS in upload]
    steps = [(tmp_path / "run" / f"checkpoint-{step}" / WEIGHTS).read_bytes() for step in (1, 2)]
    assert steps[0] != steps[1]
    assert roots == [*(steps if strategy != "end" else ()), steps[1]]  # each upload has the weights of its step
    for step in (1, 2) if strategy == "all_checkpoints" else ():
        assert hub.files[f"checkpoint-{step}/{WEIGHTS}"] == steps[step - 1]
    if strategy == "checkpoint":
        assert hub.files[f"last-checkpoint/{WEIGHTS}"] == steps[1]
    record = json.loads(hub.files["warmup_training.json"])
    assert record["data"]["dataset_name"] == "rows.jsonl"
    assert "# run\n" in hub.files["README.md"].decode()


@pytest.mark.parametrize("blocking", [True, False])
def test_push_to_hub_by_hand(hub, build, tmp_path, model_folder, blocking):
    trainer = build(push_to_hub=False, save_strategy="no", hub_revision="dev", hub_model_id="other")
    trainer.train()
    assert hub.uploads == []
    commit = trainer.push_to_hub("It is done", blocking=blocking, tags=["mine"], dataset_name="x")
    assert isinstance(commit, Future) != blocking
    assert (commit if blocking else commit.result()).commit_url == "commit 1"
    check_uploads(hub, {""}, [str(tmp_path), str(Path(model_folder).parent)])
    (options,) = hub.options
    assert (options["repo_id"], options["revision"], options["commit_message"]) == ("me/other", "dev", "It is done")


def test_a_whole_model_goes_up_in_the_same_way(hub, build, tmp_path, model_folder):
    trainer = build(peft_config=None, hub_strategy="checkpoint", max_steps=1)
    trainer.train()
    trainer.save_model()
    check_uploads(hub, {"", "last-checkpoint"}, [str(tmp_path), str(Path(model_folder).parent)], MODEL)


def test_a_card_that_was_edited_on_the_hub_stays(hub, build, tmp_path):
    trainer = build(hub_strategy="every_save")
    hub.card = str(tmp_path / "card.md")
    Path(hub.card).write_text("# A person's card\n")
    trainer.train()
    trainer.save_model()
    assert set(hub.files) == ADAPTER - {"README.md"}


def test_an_upload_that_fails_is_said_and_the_training_goes_on(hub, build, caplog):
    hub.error = OSError("the Hub is gone")
    trainer = build(hub_strategy="every_save")
    trainer.train()
    assert trainer.state.global_step == 2
    assert "was not uploaded to me/run: the Hub is gone" in caplog.text


def test_what_resuming_needs_stays_and_that_is_said(hub, build, caplog, tmp_path):
    trainer = build(hub_strategy="all_checkpoints", max_steps=1)
    trainer.train()
    assert "What resuming needs beside it" in caplog.text
    assert (tmp_path / "run" / "checkpoint-1" / "optimizer.pt").is_file()
