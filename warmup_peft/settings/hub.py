"""Whether the Hugging Face Hub is needed, and can be reached: asked once, where its libraries try each file six times.

They read HF_HUB_OFFLINE when they are imported, so this comes before. Loads neither torch nor these libraries.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmup_peft.files import read_json

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
PROBE_SECONDS = 5
FOLDERS = {  # files of an adapter's folder -> where they name a model or a data set
    "adapter_config.json": ("base_model_name_or_path",),
    "warmup_training.json": ("data", "dataset_name"),
}


def stay_offline_without_the_hub(options: Mapping[str, Any]) -> None:
    """Switch the Hub's libraries off, and say so, where a model or data set is not here and the Hub cannot be reached.

    What they downloaded before still loads; what is missing is an error at once.

    Args:
        options: of the command.
    """
    if any(os.environ.get(name) for name in OFFLINE) or not any(map(may_be_on_the_hub, names_in(options))):
        return
    reason = why_unreachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if reason is not None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        print(f"The Hub cannot be reached ({reason}): only what is on this machine is used.", file=sys.stderr)


def names_in(options: Mapping[str, Any]) -> list[str]:
    """The models, adapters, data sets and the harness' tasks that the options name; what an adapter's folder names."""
    names = [options.get(name) for name in ("model_name_or_path", "dataset_name")]
    names += (options.get("harness") or "").split(",")  # of a task's data only the task knows the name
    for folder in (options.get(name) for name in ("adapter", "run", "sft")):
        if folder:
            names += [value_in(Path(folder, file), keys) for file, keys in FOLDERS.items()]
            names.append(folder if "/" in folder and not Path(folder).parent.is_dir() else None)
    return [name for name in names if isinstance(name, str) and name]


def value_in(path: Path, keys: tuple[str, ...]) -> Any:
    try:
        value = read_json(path)
        for key in keys:
            value = value[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whoever needs the file says what is wrong with it
    return value


def may_be_on_the_hub(name: str) -> bool:
    return not (Path(name).exists() or name.startswith((".", "/", "~")) or "," in name)


def why_unreachable(url: str) -> str | None:
    """Why no server answers; None where one does, whatever it answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None
    except urllib.error.URLError as error:  # another list of certificates may work for the Hub's libraries
        return None if isinstance(error.reason, ssl.SSLError) else str(getattr(error.reason, "strerror", error.reason))
    except OSError as error:
        return str(error)
