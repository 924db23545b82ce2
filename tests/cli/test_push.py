"""`warmup-peft push`: what it lists, and what it passes on."""

from __future__ import annotations

import pytest
from folders import random_adapter, save_adapter

from warmup_peft.cli.main import main
from warmup_peft.export.push import PushPlan


def test_push_refuses_what_is_no_model(refusal, tmp_path):
    said = refusal("push", "--folder", str(tmp_path), "--repo_id", "me/it")
    assert "is neither an adapter nor a model" in said


def test_push_dry_run_lists_the_files(capsys, tmp_path, model_folder, tokenizer, lora):
    folder = save_adapter(tmp_path / "it", random_adapter(model_folder, lora), tokenizer, model_folder)
    (folder / "training_args.bin").write_bytes(b"x")
    capsys.readouterr()
    assert main(["push", "--folder", str(folder), "--repo_id", "me/it", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Would upload to me/it (private if it is new):\n")
    size = (folder / "adapter_model.safetensors").stat().st_size
    assert f"  adapter_model.safetensors  {size:,} bytes\n" in out
    assert "training_args.bin" not in out
    assert f"Its base, {model_folder}, is a folder of this machine" in out


@pytest.mark.parametrize(("flags", "private"), [([], True), (["--private", "false"], False)])
def test_push_passes_on_what_was_asked(capsys, monkeypatch, tmp_path, flags, private):
    asked, folder = [], str(tmp_path)
    (tmp_path / "config.json").write_text("{}")

    def push_folder(folder, repo_id, **keywords):
        asked.append((folder, repo_id, keywords))
        return PushPlan(repo_id, private, [], card_kept=True, url="https://huggingface.co/me/it")

    monkeypatch.setattr("warmup_peft.cli.push.push_folder", push_folder)
    assert main(["push", "--folder", folder, "--repo_id", "me/it", *flags]) == 0
    assert asked == [(folder, "me/it", {"private": private, "create_pr": False, "dry_run": False})]
    out = capsys.readouterr().out
    assert "Uploaded" in out
    assert "card on the Hub was edited" in out
