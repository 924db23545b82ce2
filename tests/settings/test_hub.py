"""Whether the Hub can be reached is asked once, and only where something is not on this machine."""

from __future__ import annotations

import json
import ssl
import urllib.error

import pytest

from warmup_peft.settings import hub
from warmup_peft.settings.hub import OFFLINE, names_in, stay_offline_without_the_hub, why_unreachable


@pytest.fixture
def asked(monkeypatch):
    """The addresses that were asked; nobody answers."""
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is set back
    addresses = []

    def urlopen(request, timeout):
        addresses.append(request.full_url)
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr(hub.urllib.request, "urlopen", urlopen)
    return addresses


def test_without_the_hub_its_libraries_are_switched_off_in_a_sentence(asked, capsys):
    stay_offline_without_the_hub({"model_name_or_path": "gpt2"})
    assert asked == ["https://huggingface.co"]
    assert hub.os.environ["HF_HUB_OFFLINE"] == "1"
    assert capsys.readouterr().err == (
        "The Hub cannot be reached (Name or service not known): only what is on this machine is used.\n"
    )
    stay_offline_without_the_hub({"model_name_or_path": "gpt2"})
    assert len(asked) == 1


def test_the_hub_is_not_asked_where_all_is_local(asked, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    stay_offline_without_the_hub({"model_name_or_path": str(tmp_path), "dataset_name": str(rows)})
    stay_offline_without_the_hub({"model_name_or_path": "./missing", "dataset_name": "train.de,train.en"})
    stay_offline_without_the_hub({"adapter": str(tmp_path), "dataset_name": None})
    stay_offline_without_the_hub({"adapter": str(tmp_path / "mien"), "run": "nowhere"})
    assert asked == []


def test_an_adapter_may_be_on_the_hub(asked):
    stay_offline_without_the_hub({"adapter": "me/adapter"})
    assert len(asked) == 1


def test_data_of_the_harness_may_be_on_the_hub(asked, tmp_path):
    (tmp_path / "own.yaml").touch()
    stay_offline_without_the_hub({"adapter": str(tmp_path), "harness": str(tmp_path / "own.yaml")})
    assert asked == []
    stay_offline_without_the_hub({"adapter": str(tmp_path), "harness": "gsm8k,logiqa2"})
    assert len(asked) == 1


def test_the_names_in_an_adapters_folder(asked, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
    (tmp_path / "warmup_training.json").write_text(json.dumps({"data": {"dataset_name": "me/data"}}))
    assert names_in({"adapter": str(tmp_path), "dataset_name": "a"}) == ["a", "me/base", "me/data"]
    (tmp_path / "warmup_training.json").write_text("[")
    assert names_in({"run": str(tmp_path)}) == ["me/base"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib.error.HTTPError("https://x", 403, "no", {}, None), None),
        (urllib.error.URLError(ssl.SSLError("certificate")), None),
        (urllib.error.URLError("proxy"), "proxy"),
        (TimeoutError("timed out"), "timed out"),
    ],
    ids=str,
)
def test_a_server_that_answers_anything_is_reached(monkeypatch, error, reason):
    def urlopen(request, timeout):
        raise error

    monkeypatch.setattr(hub.urllib.request, "urlopen", urlopen)
    assert why_unreachable("https://x") == reason
