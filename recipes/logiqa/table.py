"""Which source of warmups, which anchor, which objective? Every arm with several seeds, as one table.

    python recipes/logiqa/table.py --output_dir runs/table --seeds 0 1 2 --jobs 2

An arm is the tiny recipe with a few changes (`ARMS`). Accuracy on the held-out puzzles is taken at half of the steps
and at the end; gains, overlap and distinct share are those of the trained model's own warmups on the same puzzles.
Arms that are done are not run again, so it may be interrupted. Add `--max_steps 80` for a quick look.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

from warmup_peft.cli import parse_training, quieten
from warmup_peft.data import load_split
from warmup_peft.evaluation.harness import answer_questions
from warmup_peft.evaluation.tasks import TASKS
from warmup_peft.inference.loading import end_with_the_tokenizer
from warmup_peft.inference.writing import write_warmups
from warmup_peft.method.branches import no_warmups
from warmup_peft.run import build_trainer, score, training_rows

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "tiny.yaml"
SFT, SFT_SAME_TIME, REFERENCE = "sft", "sft, as long", "policy, 0.3, warmup"
SEPARATOR_ONLY = "separator only"


OBJECTIVES = {"policy": ("warmup", "jensen", "log_mean_exp"), "base": ("warmup", "posterior")}  # of each source
ARMS: dict[str, dict[str, Any]] = {
    SFT: {},
    # every warmup is left out
    SEPARATOR_ONLY: {"warmup_dropout": 1 - 1e-9, "warmup_source": "policy", "objective": "warmup"},
    **{
        f"{source}, {beta:g}, {objective}": {
            "warmup_source": source,
            "warmup_anchor": beta,
            "objective": objective,
        }
        for source, objectives in OBJECTIVES.items()
        for beta in (0.0, 0.3)
        for objective in objectives
    },
    SFT_SAME_TIME: {},
}
COLUMNS = {
    "half": "accuracy, half way",
    "end": "at the end",
    "without": "without its warmup",
    "gain_over_none": "gain over none",
    "gain_over_others": "over another's",
    "overlap": "overlap",
    "distinct": "distinct",
    "mean_length": "tokens",
    "seconds": "seconds",
}


class AtStep(TrainerCallback):
    """Calls a function once, when so many steps are done."""

    def __init__(self, step: int, call):
        self.step, self.call = step, call

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.call()


def no_warmup(model, prompt, config):
    """The separator stands right behind the prompt."""
    return no_warmups(prompt)


def run_one(name: str, seed: int, folder: Path, max_steps: int) -> dict[str, Any]:
    """Train one arm with one seed; returns what the table shows of it."""
    changes = ["--output_dir", str(folder / "run"), "--seed", str(seed), "--max_steps", str(max_steps)]
    for key, value in ARMS[name].items():
        changes += [f"--{key}", str(value)]
    script, options, args, model = parse_training(["--config", str(CONFIG), *changes])
    is_sft = name in (SFT, SFT_SAME_TIME)
    if is_sft:
        from sft_baseline import build_sft_trainer

        trainer = build_sft_trainer(script, options, args, model)
    else:
        trainer = build_trainer(script, options, args, model)
    end_with_the_tokenizer(trainer.model, trainer.processing_class)
    rows = load_split(script.dataset_name, script.dataset_test_split)
    questions = TASKS[options.task](rows, options.answer_format)
    seconds_scoring = 0.0

    def accuracy(write=write_warmups) -> float:
        nonlocal seconds_scoring
        start = time.perf_counter()
        config = None if is_sft else trainer.warmup_config
        write = no_warmup if name == SEPARATOR_ONLY else write
        predictions = answer_questions(
            trainer.model, trainer.processing_class, questions, config, max_new_tokens=0, write=write
        )
        seconds_scoring += time.perf_counter() - start
        return score(questions, predictions)["accuracy"]

    result: dict[str, Any] = {"arm": name, "seed": seed, "steps": max_steps}
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(AtStep(max_steps // 2, lambda: result.update(half=accuracy())))
    start = time.perf_counter()
    trainer.train()
    result["seconds"] = time.perf_counter() - start - seconds_scoring
    result["end"] = accuracy()
    if not is_sft:
        result["without"] = accuracy(no_warmup)
        logs = trainer.evaluate(training_rows(script, options, script.dataset_test_split, None))
        result |= {key.removeprefix("eval_warmups/"): v for key, v in logs.items() if "warmups/" in key}
    return result


def run_in_its_own_process(job: tuple[str, int, int], folder: Path) -> dict[str, Any]:
    name, seed, max_steps = job
    place = folder / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}_{max_steps}"
    done = place / "result.json"
    if not done.is_file():
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--one", name, str(seed), str(max_steps), "--output_dir", str(place)]
        with (place / "log.txt").open("w") as log:
            subprocess.run(
                command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )  # fmt: skip
    return json.loads(done.read_text(encoding="utf-8"))


def mean_and_error(values: list[float]) -> str:
    """Mean and standard error over the seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def markdown(results: list[dict[str, Any]]) -> str:
    lines = ["| arm | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in ARMS:
        rows = [result for result in results if result["arm"] == name]
        if not rows:
            continue
        cells = []
        for key in COLUMNS:
            values = [row[key] for row in rows if key in row]
            accuracy = key in ("half", "end", "without")
            cells.append(
                "" if not values else mean_and_error(values) if accuracy else f"{statistics.mean(values):.2f}"
            )
        steps = f" ({rows[0]['steps']} steps)" if name == SFT_SAME_TIME else ""
        lines.append(f"| {name}{steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help=", ".join(ARMS)
    )
    parser.add_argument("--max_steps", type=int, default=800)
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time, one core each")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quieten()
    disable_progress_bars()
    if options.one:
        name, seed, max_steps = options.one
        result = run_one(name, int(seed), options.output_dir, int(max_steps))
        (options.output_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        return

    run = partial(run_in_its_own_process, folder=options.output_dir)
    results: list[dict[str, Any]] = []

    def run_all(jobs: list[tuple[str, int, int]]) -> None:
        with ThreadPoolExecutor(options.jobs) as pool:
            results.extend(tqdm(pool.map(run, jobs), total=len(jobs), desc="arms", unit="run"))

    first = [name for name in options.arms if name != SFT_SAME_TIME]
    run_all([(name, seed, options.max_steps) for seed in options.seeds for name in first])
    if SFT_SAME_TIME in options.arms:

        def seconds(name: str) -> float:
            return statistics.mean(result["seconds"] for result in results if result["arm"] == name)

        steps = round(options.max_steps * seconds(REFERENCE) / seconds(SFT))
        run_all([(SFT_SAME_TIME, seed, steps) for seed in options.seeds])
    table = markdown(results)
    (options.output_dir / "table.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
