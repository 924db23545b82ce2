"""Adapters and bases that are named by an id on the Hub. Here they lie in a cache of its layout, without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLES
from datasets import Dataset
from folders import argv_of, logiqa_folder, random_adapter, save_adapter, tree
from hub_cache import COMMITS, put_into_cache
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from warmup_peft import WarmupSFTTrainer, evaluate, load_adapter
from warmup_peft.cli.main import main
from warmup_peft.evaluation.data import load_split, stream_split
from warmup_peft.inference.hub import check_at_hand, local_folder, with_local_folder
from warmup_peft.inference.loading import load_tokenizer
from warmup_peft.settings.arguments import GenerateArguments


def test_a_folder_comes_first(adapter, monkeypatch):
    monkeypatch.chdir(adapter.parent.parent)
    name = f"{adapter.parent.name}/{adapter.name}"  # looks like an id
    assert local_folder(name) == name
    with pytest.raises(ValueError, match=r"is a local folder, which has no revisions\. Leave --revision=main out"):
        local_folder(name, "main")


def test_an_id_is_found_in_the_cache_at_its_revision(adapter, cache):
    snapshots = [
        put_into_cache(cache, "me/adapter", adapter, commit, ref) for commit, ref in zip(COMMITS, ("main", "v2"))
    ]
    assert local_folder("me/adapter") == str(snapshots[0])
    assert local_folder("me/adapter", "v2") == str(snapshots[1])
    options = with_local_folder(GenerateArguments("me/adapter", revision=COMMITS[1]))
    assert (options.adapter, options.revision) == (str(snapshots[1]), None)
    with pytest.raises(ValueError, match=r"^The folder me/adapter .* at revision v3 \(it is not in the cache"):
        local_folder("me/adapter", "v3")


def test_the_code_of_a_model_is_fetched_with_it(monkeypatch):
    asked = []
    monkeypatch.setattr("warmup_peft.inference.hub.snapshot_download", lambda *_, **options: asked.append(options))
    local_folder("me/model")
    names = ["config.json", "own.py", "custom_generate/generate.py", "training_args.bin"]
    assert list(filter_repo_objects(names, allow_patterns=asked[0]["allow_patterns"])) == names[:-1]


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "nowhere"])
def test_what_is_no_id_is_a_folder_that_does_not_exist(name):
    with pytest.raises(ValueError, match=rf"^The folder {re.escape(name)} does not exist\."):
        local_folder(name)


def test_a_typing_error_in_a_folder_is_no_id(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^The folder runs/mien does not exist\."):
        local_folder("runs/mien")


@pytest.mark.parametrize("name", ["me/gone", "me/--odd.."])
def test_an_id_that_nobody_has_is_refused(name, cache):
    with pytest.raises(ValueError, match=rf"^The folder {name} .* there is no such repo on the Hub \("):
        local_folder(name)


def test_commands_answer_score_and_merge_from_the_cache_and_leave_it_alone(adapter, cache, tmp_path, capsys, refusal):
    put_into_cache(cache, "me/adapter", adapter, COMMITS[0], "v2")
    data = logiqa_folder(tmp_path / "data")
    before = tree(cache)
    assert main(argv_of("generate", adapter="me/adapter", revision="v2", prompt="Q: one?", max_new_tokens=4)) == 0
    argv = argv_of("evaluate", adapter="me/adapter", revision="v2", dataset_name=data, task="logiqa", max_samples=2)
    assert main([*argv, "--compare_base", "false"]) == 0
    assert "me/adapter is on the Hub, so its scores are not saved" in capsys.readouterr().out
    merged = tmp_path / "merged"
    argv = argv_of("merge", adapter="me/adapter", revision="v2", output_dir=merged, max_samples=0)
    assert main(argv) == 0
    assert (merged / "model.safetensors").is_file()
    assert tree(cache) == before
    capsys.readouterr()
    argv = argv_of("inspect", run="me/adapter", revision="v2", dataset_name=data, task="logiqa")
    assert "its report needs a folder. Add --output_dir" in refusal(*argv)


@pytest.mark.slow
def test_base_and_adapter_of_the_hub_without_a_network(model_folder, tokenizer, lora, tmp_path):
    """A process of its own, whose only knowledge of both is the cache."""
    cache = tmp_path / "home" / "hub"
    put_into_cache(cache, "me/base", Path(model_folder), COMMITS[0])
    adapter = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, "me/base")
    for name in ("adapter_config.json", "warmup_training.json"):
        path = adapter / name
        path.write_text(path.read_text().replace(model_folder, "me/base"))
    put_into_cache(cache, "me/adapter", adapter, COMMITS[1])
    argv = argv_of("generate", adapter="me/adapter", prompt="Q: one?", max_new_tokens=4)
    command = [sys.executable, "-m", "warmup_peft.cli", *argv]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "warmup: " in done.stderr


# ---- What is neither here nor to be had ----


@pytest.fixture
def unreachable(cache, monkeypatch):
    """The libraries are switched on, and no server answers; whoever asks them for a file fails the test."""

    def ask(*_, **__):
        raise AssertionError("the Hub's libraries are asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("warmup_peft.inference.hub.why_unreachable", lambda url: "no network")
    for place in (
        "inference.hub.snapshot_download",
        "inference.loading.AutoTokenizer",
        "evaluation.data.load_dataset",
    ):
        monkeypatch.setattr(f"warmup_peft.{place}", ask)


WAYS = {
    "evaluate": lambda name: evaluate(name, "rows"),
    "load_adapter": load_adapter,
    "tokenizer": load_tokenizer,
    "trainer": lambda name: WarmupSFTTrainer(name, train_dataset=Dataset.from_list(EXAMPLES)),
    "rows": lambda name: load_split(name, "test"),
    "stream": lambda name: stream_split(name, "test"),
}


@pytest.mark.parametrize("way", WAYS)
def test_without_a_network_what_is_not_here_is_said_at_once(unreachable, way):
    with pytest.raises(
        ValueError, match=r"me/mine is not on this machine, and the Hub cannot be reached \(no network"
    ):
        WAYS[way]("me/mine")


def test_a_name_that_is_nearly_there(unreachable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "logiqa").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Did you mean runs/logiqa\?"):
        WarmupSFTTrainer("runs/logqa", train_dataset=Dataset.from_list(EXAMPLES))
    with pytest.raises(ValueError, match=r"The model folder \./runs/logqa does not exist.*Did you mean runs/logiqa"):
        WarmupSFTTrainer("./runs/logqa", train_dataset=Dataset.from_list(EXAMPLES))


def test_the_hub_is_asked_once_and_not_for_what_is_cached_or_local(unreachable, cache, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("warmup_peft.inference.hub.why_unreachable", asked.append)
    for name in (str(tmp_path), "./missing", "a.de,a.en"):
        check_at_hand(name)
    (cache / "models--me--base").mkdir(parents=True)
    check_at_hand("me/base")
    check_at_hand("me/rows", "dataset", [tmp_path])
    assert asked == []
    check_at_hand("me/base", "dataset")
    assert asked == [constants.ENDPOINT]
