"""Upload an adapter or a merged model to the Hub: only the files that belong to it, and without local paths.

`warmup-peft push` and `WarmupSFTTrainer.push_to_hub` both use this. Does not import trl.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from warmup_peft.export.custom_generate import decoding_source
from warmup_peft.export.model_card import data_on_the_hub, is_edited, license_in, write_model_card
from warmup_peft.files import read_text, write_text
from warmup_peft.inference.folder import (
    ADAPTER_CONFIG_NAME,
    CARD_NAME,
    DECODING_NAME,
    MAY_NAME_PLACES,
    PUSHED,
    SCORES,
    TOKENIZER_CONFIG,
    TrainingRecord,
    WarmupConfig,
    check_can_be_pushed,
    looks_local,
)
from warmup_peft.inference.scores import scores_are_stale
from warmup_peft.settings.hub import value_in

NAMES_A_PLACE = (
    "base_model",
    "base_model_name_or_path",
    "_name_or_path",
    "name_or_path",
    "dataset_name",
    "warmup_pool",
)


@dataclass(frozen=True)
class PushPlan:
    """What a push uploads. `card_kept`: the card on the Hub was edited and is kept. `commit`: the Hub's answer."""

    repo_id: str
    private: bool
    files: list[str]
    card_kept: bool = False
    url: str | None = None
    commit: CommitInfo | None = None


def files_to_push(folder: str | Path) -> list[str]:
    """Names of the files that are uploaded: safetensors weights, tokenizer, configurations, card, current scores.

    Raises:
        ValueError: the folder holds neither an adapter nor a model.
    """
    folder = Path(folder)
    check_can_be_pushed(folder)
    names, code = sorted(path.name for path in folder.iterdir() if path.is_file()), own_code(folder)
    names = [name for name in names if name in code or any(fnmatch.fnmatch(name, pattern) for pattern in PUSHED)]
    stale = [name for name in SCORES if scores_are_stale(folder, name)]
    names = [name for name in names if name not in stale]
    return sorted(names + [DECODING_NAME] * WarmupConfig.is_in(folder))


def own_code(folder: Path) -> set[str]:
    """Names of the Python files that the folder's model, configuration or tokenizer consists of (`auto_map`)."""
    maps = (value_in(folder / name, ("auto_map",)) or {} for name in ("config.json", TOKENIZER_CONFIG))
    values = [value for each in maps for value in each.values()]
    classes = [name for value in values for name in (value if isinstance(value, list) else [value]) if name]
    files = {folder / f"{name.partition('.')[0]}.py" for name in classes if "--" not in name}  # else in another repo
    files = {file for file in files if file.is_file()}
    return {Path(path).name for file in files for path in (file, *get_relative_import_files(file))}


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = True,
    create_pr: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
    commit_message: str = "Upload with warmup_peft",
    revision: str | None = None,
    path_in_repo: str | None = None,
) -> PushPlan:
    """Upload the folder of an adapter or a merged model to the Hub.

    Local paths in its JSON files are reduced to their last part, and the revision of the base model is added if known.

    Args:
        private: whether a new repo is private; None for the owner's default. An existing repo keeps its setting.
        create_pr: open a pull request instead of changing the repo.
        dry_run: only list the files, without any request to the Hub.
        api: client to use; by default `HfApi()`.
        commit_message, revision: of the upload; the default revision is the main branch.
        path_in_repo: folder of the repo to upload into; by default its root.

    Raises:
        ValueError: the folder holds neither an adapter nor a model, or the Hub has no such names.
    """
    validate_repo_id(repo_id)
    files = files_to_push(folder)
    if dry_run:
        with staged(Path(folder), files):
            return PushPlan(repo_id, private, files)
    api = api or HfApi()
    card = CARD_NAME if path_in_repo is None else f"{path_in_repo}/{CARD_NAME}"
    card_kept = hub_card_is_edited(api, repo_id, card, revision)
    if card_kept:
        files = [name for name in files if name != CARD_NAME]
    else:
        record = TrainingRecord.load(folder) or TrainingRecord(base_model="")
        write_model_card(
            folder,
            license=license_on_the_hub(api.model_info, None if looks_local(record.base_model) else record.base_model),
            data_license=license_on_the_hub(api.dataset_info, data_on_the_hub(record.data)),
        )
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    with staged(Path(folder), files) as staging:
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(staging),
            path_in_repo=path_in_repo,
            allow_patterns=files,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return PushPlan(repo_id, private, files, card_kept, str(getattr(commit, "pr_url", None) or url), commit)


@contextmanager
def staged(folder: Path, files: list[str]) -> Iterator[Path]:
    """A temporary folder with these files as they are uploaded."""
    with tempfile.TemporaryDirectory(prefix="warmup-push-") as room:
        for name in files:
            source, target = folder / name, Path(room, name)
            target.parent.mkdir(exist_ok=True)
            if name == DECODING_NAME:
                write_text(target, decoding_source(WarmupConfig.load(folder)))
            elif name in MAY_NAME_PLACES:
                write_public_json(source, target, folder)
            elif source.suffix == ".safetensors":
                link_or_copy(source, target)
            else:
                shutil.copy(source, target)
        yield Path(room)


def link_or_copy(source: Path, target: Path) -> None:
    """A link, since weights are gigabytes; a copy where links are not allowed, as on most Windows machines."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def write_public_json(source: Path, target: Path, folder: Path) -> None:
    """Copy a JSON file without its local paths. If it has none, the copy is identical."""
    text = read_text(source)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{source} is not valid JSON ({error}). Fix it, or copy it again from the training."
        ) from error
    public = without_places(content)
    if source.name == ADAPTER_CONFIG_NAME:
        record = TrainingRecord.load(folder)
        if record is not None and record.base_revision and not public.get("revision"):
            public["revision"] = record.base_revision
    write_text(target, text if public == content else json.dumps(public, indent=2) + "\n")


def without_places(value: Any, key: str = "") -> Any:
    """Reduce paths to their last part: absolute ones everywhere, relative ones in the fields of NAMES_A_PLACE."""
    if isinstance(value, dict):
        return {name: without_places(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [without_places(each, key) for each in value]
    if not isinstance(value, str) or key == "warmup_separator":
        return value
    if re.match(r"(\w+:)?(//)?(/|~/|[A-Za-z]:\\)[^/\\]+[/\\]", value) or (key in NAMES_A_PLACE and looks_local(value)):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def license_on_the_hub(info_of: Callable[[str], Any], name: str | None) -> str | None:
    """License in a card on the Hub; None without a name, or if the Hub does not answer.

    Args:
        info_of: `HfApi.model_info` or `HfApi.dataset_info`.
    """
    if not name:
        return None
    try:
        return license_in(info_of(name).card_data)
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def hub_card_is_edited(api: HfApi, repo_id: str, card: str, revision: str | None) -> bool:
    try:
        path = api.hf_hub_download(repo_id, card, revision=revision)
    except (RemoteEntryNotFoundError, RepositoryNotFoundError):
        return False
    return is_edited(read_text(Path(path)))
