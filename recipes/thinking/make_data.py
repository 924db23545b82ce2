"""Writes the recipe's data: the relay world's puzzles as conversations, with answers alone.

    {"prompt": [{"role": "user", "content": "Facts: ... Ann knows. Who hears it last?"}],
     "completion": [{"role": "assistant", "content": "Answer: Eve"}]}

is TRL's conversational form of prompts and completions. No thought is in the data. The puzzles are the relay world's
own: its train (the first 4,000), validation and test puzzles, whose chains no pretraining has seen.

    python recipes/thinking/make_data.py          # train.jsonl, validation.jsonl, test.jsonl in data/

The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from world import HERE, Chat, last_hearer, relay_splits

NUM_TRAIN = 4_000


def generate_splits() -> dict[str, list[Chat]]:
    return {name: [last_hearer(puzzle) for puzzle in puzzles[:NUM_TRAIN]] for name, puzzles in relay_splits().items()}


def row(chat: Chat) -> dict:
    return {"prompt": chat.messages, "completion": [{"role": "assistant", "content": chat.new_answer}]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the recipe's train, validation and test rows.")
    parser.add_argument("--folder", type=Path, default=HERE / "data", help="folder for the three files")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, chats in generate_splits().items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row(chat)) + "\n" for chat in chats), encoding="utf-8", newline="\n")
        print(f"{path}: {len(chats)} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
