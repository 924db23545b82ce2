"""What the tests of the tiny worlds share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")
LARGEST_BASE = 3 * 2**20


def run_script(script: Path, *arguments: str) -> None:
    command = [sys.executable, str(script), *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=240)


def read_splits(folder: Path) -> dict[str, list[dict]]:
    files = {name: (folder / f"{name}.jsonl").read_text(encoding="utf-8") for name in SPLITS}
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}


def check_data(folder: Path, made_again: Path) -> None:
    """The files are byte for byte what `make_data.py` makes, and small."""
    run_script(folder / "make_data.py", "--folder", str(made_again))
    for name in SPLITS:
        assert (made_again / f"{name}.jsonl").read_bytes() == (folder / f"{name}.jsonl").read_bytes(), name
    assert sum((folder / f"{name}.jsonl").stat().st_size for name in SPLITS) < 1_500_000


def check_base(folder: Path) -> None:
    """Sizes that 4 bit needs, weights in bfloat16, a tokenizer that takes any text, little on the disk."""
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    head_width = config.head_dim * config.num_key_value_heads
    for size in (config.hidden_size, config.intermediate_size, config.vocab_size, head_width):
        assert size % 64 == 0
    assert config.vocab_size == len(tokenizer)
    assert config.tie_word_embeddings
    assert str(config.dtype).endswith("bfloat16")
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST_BASE
    text = "Odd “characters” — naïve, 中文, \U0001f600\t\x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
