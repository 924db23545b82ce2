"""`custom_generate/generate.py`: the decoding that travels with an adapter or a merged model.

It is `warmup_peft/inference/decoding.py` itself, with the folder's settings written in.
"""

from __future__ import annotations

from pathlib import Path

from warmup_peft.files import write_text
from warmup_peft.inference import decoding
from warmup_peft.inference.folder import DECODING_NAME, WarmupConfig

FIELDS = ("warmup_separator_ids", "max_warmup_length", "end_token_ids")
TRANSFORMERS_LOOKS_FOR = """

def generate(*inputs, model, **options):
    return warmup_generate(model, *inputs, **options)
"""
UNSET = "OWN_CONFIG: Any = None  # in an adapter's or model's folder: its own settings\n"


def decoding_source(config: WarmupConfig) -> str:
    """The file's text; the same configuration gives the same bytes."""
    source = Path(decoding.__file__).read_text(encoding="utf-8")
    before, after = source.split(UNSET)
    settings = ", ".join(f"{name}={getattr(config, name)!r}" for name in FIELDS)
    own = f"OWN_CONFIG: Any = SimpleNamespace({settings})\n"
    return f"{before}{own}{after}{TRANSFORMERS_LOOKS_FOR}"


def export_decoding(folder: str | Path) -> Path:
    """Write the file into a folder that holds `warmup_config.json`."""
    path = Path(folder, DECODING_NAME)
    write_text(path, decoding_source(WarmupConfig.load(folder)))
    return path
