"""What if the warmup said something else? An adapter's accuracy with its own warmup, and with others in its place.

python recipes/logiqa/swap_warmups.py --adapter runs/logiqa
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from warmup_peft.evaluation.metrics import metric_name, score_text
from warmup_peft.evaluation.predictor import Predictor, empty, score_predictions, shuffled
from warmup_peft.evaluation.rows import held_out_questions
from warmup_peft.evaluation.tasks import find_task
from warmup_peft.inference.loading import load_folder
from warmup_peft.settings.arguments import EvaluateArguments
from warmup_peft.settings.parsing import quieten


def swaps(vocab_size: int, filler: int) -> dict[str, Callable[[list[list[int]]], list[list[int]]]]:
    """The warmups' token ids -> what stands in their place, of the same lengths but for another question's."""
    generator = random.Random(0)
    return {
        "its own": lambda own: own,
        "its own, backwards": lambda own: [ids[::-1] for ids in own],
        "another question's": shuffled,
        "dots": lambda own: [[filler] * len(ids) for ids in own],
        "random tokens": lambda own: [[generator.randrange(vocab_size) for _ in ids] for ids in own],
        "none, the separator alone": empty,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True)
    options = EvaluateArguments(parser.parse_args().adapter)
    quieten()
    disable_progress_bars()
    loaded = load_folder(options.adapter)
    name, questions, source = held_out_questions(options, loaded.record.data)
    metric = find_task(name).metrics[0]
    predictor = Predictor(loaded.model, loaded.tokenizer, loaded.warmup_config)
    own = predictor.warmups(questions)
    filler = loaded.tokenizer(" .", add_special_tokens=False)["input_ids"][-1]
    table = Table("warmup", metric_name(metric), title=f"{len(questions)} questions: {source}")
    for name, swap in tqdm(swaps(len(loaded.tokenizer), filler).items(), unit="way"):
        predictions = predictor.answer(questions, max_new_tokens=0, warmup_ids=swap(own))
        score = score_predictions([metric], questions, predictions).totals[metric]
        table.add_row(name, score_text(metric, score))
    Console().print(table)


if __name__ == "__main__":
    main()
