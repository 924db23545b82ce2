"""A small Llama that knows two languages and no translation.

    python recipes/translation/make_base.py --data <folder with train.de.gz and train.en.gz> --output_dir runs/base

It is pretrained on single sentences, each behind its language's name as in the prompt ("German: ..."). Of every pair
it sees one side only: the first language's of one half of the pairs, the second's of the other. So it has never seen a
pair, and fine-tuning has to find out which words go together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from task import LANGUAGES

from warmup_peft.evaluation.data import load_split

sys.path.append(str(Path(__file__).resolve().parents[1]))
from small_base import add_options, make_base


def single_sentences(data: str, languages: Sequence[str]) -> list[str]:
    """One side of each training pair, behind its language's name."""
    pairs = load_split(data, "train")
    middle = len(pairs) // 2
    halves = (range(middle), range(middle, len(pairs)))
    return [
        f"{LANGUAGES.get(code, code)}: {text}"
        for code, half in zip(languages, halves, strict=True)
        for text in pairs.select(half)[code]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="file, folder or Hub id with both languages as columns")
    parser.add_argument("--languages", nargs=2, default=["de", "en"], metavar="LANGUAGE")
    add_options(parser)
    options = parser.parse_args()
    make_base(single_sentences(options.data, options.languages), options)


if __name__ == "__main__":
    main()
