"""Writes the tokenizer down; none is trained. A fact has two tokens, ` Every shumpus is a` and ` rempus.`.

So a question has some 80 tokens instead of 230, which is what a small model on one core can learn to read. Any other
text is encoded in bytes, other names and words included: nothing is out of vocabulary.

    python recipes/prosqa/make_tokenizer.py           # into recipes/prosqa/base/

The same versions of `tokenizers` and `transformers` give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from make_data import HERE, NAMES, WORDS, generate_splits
from task import read
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD_TOKEN, END_TOKEN = "<|pad|>", "<|end|>"
SEPARATOR = " || "
PHRASES = ("Facts:", "\nQuestion:", "\nAnswer:", " Is", " a", " or", SEPARATOR)
PERSON_FORMS = (" {} is a", " {}")
WORD_FORMS = (" Every {} is a", " {}.", " {}")
PIECES = r"Facts:|\n(?:Question|Answer):| Every \w+ is a\b| [A-Z]\w* is a\b| \w+\.| \|\| | ?\w+|\W"  # of a text
BLOCK_SIZE = 64  # of 4-bit quantisation: sizes are multiples of it
CONTEXT = 512


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: a piece of text that is in the vocabulary is one token, any other is its bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*PHRASES, *forms(NAMES, PERSON_FORMS), *forms(WORDS, WORD_FORMS)]
    tokens = [PAD_TOKEN, END_TOKEN, *alphabet, *map(in_alphabet, pieces)]
    tokens += [f"<|unused{number}|>" for number in range(-len(tokens) % BLOCK_SIZE)]
    bpe = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD_TOKEN, eos_token=END_TOKEN, model_max_length=CONTEXT
    )


def forms(symbols: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [pattern.format(symbol) for pattern in patterns for symbol in symbols]


def in_alphabet(text: str) -> str:
    """The text in byte-level BPE's alphabet, in which a space is written Ġ."""
    return pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text)[0][0]


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Asserts what the recipe relies on: few tokens a fact, prompts and answers that do not merge, and any text."""
    assert len(tokenizer) % BLOCK_SIZE == 0, len(tokenizer)
    assert len(tokenizer.encode(SEPARATOR)) == 1, tokenizer.tokenize(SEPARATOR)
    for question in read(puzzle.row() for puzzle in generate_splits()["validation"]):
        num_tokens = 2 * question.prompt.count(" is a ") + 10
        assert len(tokenizer.encode(question.prompt)) == num_tokens, tokenizer.tokenize(question.prompt)
        ids = tokenizer.encode(question.prompt + question.completion)
        assert ids == tokenizer.encode(question.prompt) + tokenizer.encode(question.completion)
    for text in ("naïve  Größe\t日本 🙂\r\n", " Every unheard is a-of.", "".join(map(chr, range(1, 512)))):
        assert tokenizer.decode(tokenizer.encode(text)) == text, text


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the recipe's tokenizer.")
    parser.add_argument("--folder", type=Path, default=HERE / "base")
    folder = parser.parse_args().folder
    tokenizer = make_tokenizer()
    check_tokenizer(tokenizer)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
