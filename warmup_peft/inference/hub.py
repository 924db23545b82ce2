"""Folders that are named by an id on the Hub: found in the cache, or downloaded into it. Writes nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file

from warmup_peft.files import first_line, near_path
from warmup_peft.inference.folder import PUSHED, check_named_folder
from warmup_peft.settings.hub import may_be_on_the_hub, why_unreachable


def local_folder(name: str, revision: str | None = None) -> str:
    """The folder of that name, or the local copy of a repo on the Hub. A folder comes first.

    Without a network (or with HF_HUB_OFFLINE=1) it has to be in the cache. Code of the repo is downloaded, not run.

    Args:
        name: folder, or `<user or organisation>/<name>`.
        revision: branch, tag or commit; by default the repo's main branch.

    Raises:
        ValueError: there is neither a folder nor such a repo, or a revision is given for a folder.
    """
    if check_named_folder(name, revision):
        return name
    check_at_hand(name)
    try:
        return snapshot_download(name, revision=revision, allow_patterns=[*PUSHED, "*.py"])
    except (OSError, HFValidationError) as error:  # the Hub's errors are OSErrors
        at = "" if revision is None else f" at revision {revision}"
        raise ValueError(
            f"The folder {name} does not exist, and there is no such repo on the Hub{at} ({reason_of(error)}). Name "
            "the output_dir of a training or of a merge, or an id on the Hub."
        ) from error


def check_at_hand(name: str, repo_type: Literal["model", "dataset"] = "model", caches: Sequence[Path] = ()) -> None:
    """Check at once that something that is not on this machine can be asked for: the Hub's libraries try for long.

    Costs one request, and none where it is in a cache or where these libraries are switched off.

    Args:
        name: folder, file, or id on the Hub.
        caches: other folders than that of the Hub's cache where it may lie.

    Raises:
        ValueError: it is neither here nor in a cache, and the Hub cannot be reached.
    """
    caches = (Path(constants.HF_HUB_CACHE, f"{repo_type}s--{name.replace('/', '--')}"), *caches)
    if constants.HF_HUB_OFFLINE or not may_be_on_the_hub(name) or any(place.is_dir() for place in caches):
        return
    reason = why_unreachable(constants.ENDPOINT)
    if reason is not None:
        raise ValueError(
            f"{name} is not on this machine, and the Hub cannot be reached ({reason}). Name what is here, or try "
            f"again with a network.{near_path(name)}"
        )


def is_adapter_repo(name: str, revision: str | None = None) -> bool:
    """Whether a repo on the Hub, or its copy in the cache, holds an adapter. Costs one request.

    Raises:
        ValueError: as `check_at_hand`.
    """
    if not may_be_on_the_hub(name):
        return False
    check_at_hand(name)
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except (OSError, HFValidationError):
        return False  # there is no such repo, as whoever loads it says


def check_main_branch(name: str, revision: str | None) -> None:
    """Raise ValueError if the repo's main branch cannot be had: TRL looks up any revision's architecture there."""
    if revision in (None, "main") or not may_be_on_the_hub(name):
        return
    try:
        cached_file(name, CONFIG_NAME, revision=revision)
    except (OSError, HFValidationError):
        return  # nor can the revision, as whoever loads it says
    try:
        cached_file(name, CONFIG_NAME)
    except OSError as error:
        raise ValueError(
            f"TRL looks up the architecture of {name} in its main branch, also to train revision {revision}, and the "
            f"main branch cannot be had ({first_line(error)}). Run: hf download {name} {CONFIG_NAME}; or name the "
            f"folder that `hf download {name} --revision {revision}` prints as model_name_or_path."
        ) from error


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit of a repo on the Hub at which it was just loaded; None for a folder."""
    if not may_be_on_the_hub(name):
        return None
    path = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def reason_of(error: Exception) -> str:
    """Why a repo cannot be had, in few words."""
    known = {
        LocalEntryNotFoundError: "it is not in the cache, and the Hub was not asked or did not answer",
        RepositoryNotFoundError: "or it is private: log in with `hf auth login`",
        RevisionNotFoundError: "the repo has other revisions",
    }
    return next((words for kind, words in known.items() if isinstance(error, kind)), first_line(error))


def with_local_folder(options: Any, field: str = "adapter") -> Any:
    """The same options with a local folder in place of an id on the Hub.

    Args:
        options: dataclass with `revision`.
        field: which of its fields names the folder.

    Raises:
        ValueError: as `local_folder`.
    """
    folder = local_folder(getattr(options, field), options.revision)
    return dataclasses.replace(options, **{field: folder, "revision": None})
