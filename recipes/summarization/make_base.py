"""A small Llama that knows documents and no summary.

    python recipes/summarization/make_base.py --data recipes/summarization/tiny --output_dir runs/base

It is pretrained on the documents of the training rows alone, in the prompt's form ("Document: ..."). Fine-tuning has
to find out what of a document matters, and how to say it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from warmup_peft.evaluation.data import load_split

sys.path.append(str(Path(__file__).resolve().parents[1]))
from small_base import add_options, make_base


def documents(data: str, column: str) -> list[str]:
    return [f"Document: {text}" for text in load_split(data, "train")[column]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="file, folder or Hub id with a column of documents")
    parser.add_argument("--column", default="document", help="its name")
    add_options(parser)
    options = parser.parse_args()
    make_base(documents(options.data, options.column), options)


if __name__ == "__main__":
    main()
