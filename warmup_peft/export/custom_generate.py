"""`custom_generate/generate.py`: the decoding code that is saved with an adapter or a merged model.

It is a copy of `warmup_peft/inference/decoding.py` that contains the settings of the folder.
"""

from __future__ import annotations

from pathlib import Path

from warmup_peft.files import write_text
from warmup_peft.inference import decoding
from warmup_peft.inference.folder import DECODING_NAME, WarmupConfig

FIELDS = ("warmup_opening_ids", "warmup_separator_ids", "max_warmup_length", "end_token_ids")
TRANSFORMERS_LOOKS_FOR = """

def generate(*inputs, model, **options):
    return warmup_generate(model, *inputs, **options)
"""
UNSET = "OWN_CONFIG: Any = None  # in the folder of an adapter or a model: its settings\n"


def decoding_source(config: WarmupConfig) -> str:
    """Text of the file. The same configuration always gives the same text."""
    source = Path(decoding.__file__).read_text(encoding="utf-8")
    before, after = source.split(UNSET)
    settings = ", ".join(f"{name}={getattr(config, name)!r}" for name in FIELDS)
    own = f"OWN_CONFIG: Any = SimpleNamespace({settings})\n"
    return f"{before}{own}{after}{TRANSFORMERS_LOOKS_FOR}"


def export_decoding(folder: str | Path) -> Path:
    """Write the file into a folder with a `warmup_config.json`. Returns its path."""
    path = Path(folder, DECODING_NAME)
    write_text(path, decoding_source(WarmupConfig.load(folder)))
    return path
