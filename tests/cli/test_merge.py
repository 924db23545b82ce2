"""`warmup-peft merge`: what it writes, and what it refuses."""

from __future__ import annotations

import pytest
from folders import random_adapter, save_adapter

from warmup_peft.cli.main import BAD_INPUT, main


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [("adapter_model.safetensors", "cut", "adapter_model.safetensors cannot be read"),
     ("adapter_config.json", "{}", "names no base_model_name_or_path"),
     ("adapter_config.json", "{", "adapter_config.json cannot be read")],
)  # fmt: skip
def test_a_broken_adapter_is_not_merged(tmp_path, model_folder, tokenizer, lora, capsys, file, content, words):
    adapter = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)
    (adapter / file).write_text(content)
    capsys.readouterr()
    assert main(["merge", "--adapter", str(adapter), "--output_dir", str(tmp_path / "merged")]) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
