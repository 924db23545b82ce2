"""What if the warmup said something else? An adapter's accuracy with its own warmup, and with others in its place.

python recipes/logiqa/swap_warmups.py --adapter runs/logiqa
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from warmup_peft.cli import quieten
from warmup_peft.data import load_split
from warmup_peft.evaluation.harness import answer_questions
from warmup_peft.evaluation.tasks import TASKS
from warmup_peft.inference.loading import load_folder
from warmup_peft.inference.writing import write_warmups
from warmup_peft.method.branches import Warmups, no_warmups
from warmup_peft.run import score


def swaps(vocab_size: int, filler: int) -> dict[str, Callable[[Warmups], Warmups]]:
    """(B, 1) warmups -> what stands in their place, of the same lengths but for another question's."""
    return {
        "its own": lambda own: own,
        "its own, backwards": lambda own: own._replace(ids=reverse(own)),
        "another question's": lambda own: Warmups(*(x.roll(1, 0) for x in own[:3])),
        "dots": lambda own: own._replace(ids=torch.full_like(own.ids, filler)),
        "random tokens": lambda own: own._replace(ids=torch.randint_like(own.ids, vocab_size)),
    }


def reverse(warmups: Warmups) -> torch.Tensor:
    places = torch.arange(warmups.ids.size(-1), device=warmups.ids.device).expand_as(warmups.ids)
    length = warmups.lengths.unsqueeze(-1)
    return warmups.ids.gather(-1, torch.where(places < length, length - 1 - places, places))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True)
    options = parser.parse_args()
    quieten()
    disable_progress_bars()
    torch.manual_seed(0)
    loaded = load_folder(options.adapter)
    data = loaded.record.data
    rows = load_split(data["dataset_name"], data["dataset_test_split"] or "test", data["dataset_config"])
    questions = TASKS[data["task"]](rows, data["answer_format"])
    filler = loaded.tokenizer(" .", add_special_tokens=False)["input_ids"][-1]

    def accuracy(write) -> float:
        predictions = answer_questions(
            loaded.model, loaded.tokenizer, questions, loaded.warmup_config, max_new_tokens=0, write=write
        )
        return score(questions, predictions)["accuracy"]

    ways = {
        name: lambda model, prompt, config, swap=swap: swap(write_warmups(model, prompt, config))
        for name, swap in swaps(len(loaded.tokenizer), filler).items()
    }
    ways["none, the separator alone"] = lambda model, prompt, config: no_warmups(prompt)
    table = Table("warmup", "accuracy", title=f"{len(questions)} questions")
    for name, write in tqdm(ways.items(), unit="way"):
        table.add_row(name, f"{accuracy(write):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
