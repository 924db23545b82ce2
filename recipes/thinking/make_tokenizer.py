"""Makes the recipe's tokenizer: the relay world's, with a chat template and the special tokens of a thinking model.

As in Qwen3, white space and punctuation are split so that `\\n`, `\\n\\n` and `.\\n` are one token each, `<think>` and
`</think>` are tokens that decoding keeps, `<|im_end|>` ends a turn and a generation, and `<|endoftext|>` pads. The two
special tokens of the relay world get new names, and the last five merges, which nothing uses, give way to the new
tokens. So the vocabulary keeps its 1,024 ids, and a model of the relay world its embeddings.

    python recipes/thinking/make_tokenizer.py          # into base/ beside this file
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from world import BASE, NAMES, RELAY

END_OF_TURN, PAD_TOKEN = "<|im_end|>", "<|endoftext|>"
START_OF_TURN, THINK, END_OF_THOUGHT = "<|im_start|>", "<think>", "</think>"
NEW_MERGES = (["Ċ", "Ċ"], [".", "Ċ"])  # Ċ is a newline in byte-level BPE
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MAX_LENGTH = 2048

# Thoughts before the last user's turn are left out, and an answer without a thought gets an empty block, as in Qwen3.
CHAT_TEMPLATE = """
{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last_user %}
        {{- '<think>\\n' + (message.reasoning_content or '').strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""".strip()


def make_tokenizer() -> PreTrainedTokenizerFast:
    spec = json.loads((RELAY / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    exchange_tokens(spec)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        eos_token=END_OF_TURN,
        pad_token=PAD_TOKEN,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def exchange_tokens(spec: dict) -> None:
    """New names for the ids 0 and 1, new tokens for the last five merges."""
    names = [START_OF_TURN, THINK, END_OF_THOUGHT, *("".join(merge) for merge in NEW_MERGES)]
    ids = spec["model"]["vocab"]
    by_id = sorted(ids, key=ids.get)
    tokens = [END_OF_TURN, PAD_TOKEN, *by_id[2 : -len(names)], *names]
    vocab = {token: index for index, token in enumerate(tokens)}
    spec["model"]["vocab"] = vocab
    spec["model"]["merges"] = [*spec["model"]["merges"][: -len(names)], *NEW_MERGES]
    spec["added_tokens"] = [
        added_token(vocab[token], token, special=token not in (THINK, END_OF_THOUGHT))
        for token in (END_OF_TURN, PAD_TOKEN, START_OF_TURN, THINK, END_OF_THOUGHT)
    ]


def added_token(index: int, token: str, special: bool) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **flags, "special": special}


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Asserts what the recipe relies on: its token counts, and the round trip of any text."""
    assert len(tokenizer) == 1024, len(tokenizer)
    for text in ("\n", "\n\n", ".\n", THINK, END_OF_THOUGHT, START_OF_TURN, END_OF_TURN, *(f" {n}" for n in NAMES)):
        assert len(tokenizer.encode(text)) == 1, tokenizer.tokenize(text)
    for text in ("naïve  Größe\t日本 🙂\r\n", "".join(map(chr, range(1, 512))), "a <think>\n\n\n</think>\n\n b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text, text


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the recipe's tokenizer.")
    parser.add_argument("--folder", type=Path, default=BASE, help="folder for the tokenizer's files")
    folder = parser.parse_args().folder
    tokenizer = make_tokenizer()
    check_tokenizer(tokenizer)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
