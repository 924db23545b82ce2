"""`kill -9` at random moments, then the same command again: the result is that of an unbroken run, bit by bit.

    make test-faults        # 20 kills of each kind; KILLS=5 for a quick look, KILL_SEED=1 for other moments

Every command runs in a process of its own, forked from this one, which has imported everything: so kills come while
something is done. Half of them come at any time, half within 30 ms of a change on disk. A case goes on with the same
run until it ends, compares the result, and begins anew, until it was killed often enough. Its line of the table says
how often, where, and how many results were compared.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from folders import puzzles, random_adapter, save_adapter, tree, write_rows

import warmup_peft.cli.compare  # these four are imported here, so that the processes need not
import warmup_peft.cli.merge
import warmup_peft.cli.sample
import warmup_peft.cli.train  # noqa: F401
from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.training import pool
from warmup_peft.training.checkpoints import checkpoints, is_whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("KILL_SEED", "0"))
MOST_CHANGES = 10
FORK = multiprocessing.get_context("fork")
QLORA = {
    "task": "logiqa", "use_peft": "true", "lora_r": "4", "lora_dropout": "0", "lora_target_modules": "all-linear",
    "load_in_4bit": "true", "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": "true", "dtype": "bfloat16",
    "bf16": "false", "gradient_checkpointing": "false", "report_to": "none", "learning_rate": "0.01",
    "num_warmups": "2", "max_warmup_length": "4", "warmup_pool_size": "3", "warmup_pool_batch_size": "6",
    "per_device_train_batch_size": "2", "gradient_accumulation_steps": "2", "logging_steps": "2",
}  # fmt: skip
TIMINGS = ("train_seconds", "examples_per_second", "peak_memory", "seconds_per_answer")


@dataclass
class Case:
    """One kind of work.

    Attributes:
        name: in the table.
        argv: the command.
        folder: that it writes.
        result: the folder -> what has to be the same.
        phase: the folder -> in a word, what was under way.
        ways_on: options of the same command to go on with, each tried where the one before is refused.
    """

    name: str
    argv: list[str]
    folder: Path
    result: Callable[[Path], object]
    phase: Callable[[Path], str]
    ways_on: tuple[tuple[str, ...], ...] = ((),)
    kills: int = 0
    compared: int = 0
    phases: Counter = field(default_factory=Counter)


def start(argv: list[str], log: Path) -> FORK.Process:
    def work() -> None:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    process = FORK.Process(target=work)
    process.start()
    return process


def wait_for_a_moment(process: FORK.Process, place: Path, moments: random.Random, seconds: float) -> None:
    """Any time; or, as often, just after one of the changes that the command makes in `place`."""
    if moments.random() < 0.5:
        process.join(moments.random() * seconds)
        return
    seen, changes = names_in(place), moments.randint(1, MOST_CHANGES)
    while changes and process.is_alive():
        now = names_in(place)
        changes -= now != seen
        seen = now
        time.sleep(0.001)
    process.join(moments.random() * 0.03)


def names_in(place: Path) -> set[str]:
    return {os.path.join(folder, name) for folder, folders, files in os.walk(place) for name in (*folders, *files)}


def kill_again_and_again(case: Case, log: Path, capsys) -> None:
    begin = time.monotonic()
    process = start(case.argv, log)
    process.join()
    seconds = time.monotonic() - begin
    assert process.exitcode == 0, log.read_text()[-2000:]
    expected = case.result(case.folder)
    assert expected
    moments, left, is_done = random.Random(SEED), seconds, True
    while case.kills < KILLS or not is_done:
        if is_done:
            shutil.rmtree(case.folder)
            left = seconds
        for way in ((), *case.ways_on) if is_done else case.ways_on:
            begin = time.monotonic()
            process = start([*case.argv, *way], log)
            if case.kills < KILLS:
                wait_for_a_moment(process, case.folder.parent, moments, left)
            else:
                process.join()
            is_killed = process.is_alive()
            if is_killed:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            if is_killed:
                case.kills += 1
                case.phases[case.phase(case.folder)] += 1
                left = max(left - (time.monotonic() - begin) / 2, seconds / 3)  # it goes on from a checkpoint
                is_done = False
                break
            if process.exitcode == 0:
                assert case.result(case.folder) == expected
                assert left_behind(case.folder) == []
                case.compared += 1
                is_done = True
                break
            said = log.read_text(errors="replace")
            assert process.exitcode == BAD_INPUT, said[-2000:]
            assert "Traceback" not in said
            assert names_another_way(said), said[-2000:]
        else:
            raise AssertionError(f"every way to go on was refused: {said[-2000:]}")
    with capsys.disabled():
        where = ", ".join(f"{count} {phase}" for phase, count in sorted(case.phases.items()))
        print(f"\n{case.name:<14} {case.kills} kills ({where}); {case.compared} results, all as unbroken")


def names_another_way(said: str) -> bool:
    return "Start the run without it" in said or "--overwrite_output_dir" in said


def left_behind(folder: Path) -> list[str]:
    """What a killed run may leave, and a finished one may not: hidden files, checkpoints that are not whole."""
    hidden = [path for path in (*folder.rglob(".*"), *folder.parent.glob(".*")) if path.name != ".lock"]
    return [str(path) for path in (*hidden, *(path for path in checkpoints(folder) if not is_whole(path)))]


# ---- The five ----


@pytest.fixture(scope="module", autouse=True)
def small_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "PROMPTS_PER_FILE", 4)
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for number, split in enumerate(("train", "validation", "test")):
        write_rows(folder / f"{split}.jsonl", puzzles(24, start=24 * number))
    return folder


@pytest.fixture
def argv(model_folder, rows, tmp_path):
    def build(command: str, **options) -> list[str]:
        given = {"model_name_or_path": model_folder, "dataset_name": rows, "output_dir": tmp_path / "out" / "run"}
        values = {**QLORA, **given, **options}
        return [command, *(str(word) for name, value in values.items() for word in (f"--{name}", value))]

    return build


RESUMING = (("--resume_from_checkpoint", "true"), (), ("--overwrite_output_dir",))


def trained(folder: Path) -> dict[str, bytes]:
    """The adapter and all that lies beside it, without checkpoints, times and the names of options to go on with."""
    files = {name: data for name, data in tree(folder).items() if not name.startswith("checkpoint-")}
    return {name: data for name, data in files.items() if name not in ("trainer_state.json", "training_args.bin")}


def phase_of_training(folder: Path) -> str:
    if not checkpoints(folder):
        return "before a checkpoint"
    if not is_whole(checkpoints(folder)[-1]):
        return "in a half-written checkpoint"
    return "between checkpoints"


@pytest.mark.parametrize("source", ["policy", "base"])
def test_train(argv, tmp_path, capsys, source):
    options = {"max_steps": 16, "save_strategy": "steps", "save_steps": 3, "warmup_source": source}
    folder = tmp_path / "out" / "run"
    case = Case(f"train, {source}", argv("train", **options), folder, trained, phase_of_training, RESUMING)
    kill_again_and_again(case, tmp_path / "log", capsys)


def test_save(argv, tmp_path, capsys):
    options = {"max_steps": 16, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    folder = tmp_path / "out" / "run"
    case = Case("save", argv("train", **options), folder, trained, phase_of_training, RESUMING)
    kill_again_and_again(case, tmp_path / "log", capsys)
    assert case.phases["in a half-written checkpoint"] > 0


def test_sample(argv, tmp_path, capsys):
    def phase(folder: Path) -> str:
        return f"after {len(list(folder.rglob('part-*'))):>2} of 6 files"

    case = Case("sample", argv("sample"), tmp_path / "out" / "run", tree, phase)
    kill_again_and_again(case, tmp_path / "log", capsys)


def test_merge(model_folder, tokenizer, lora, nf4, tmp_path, capsys):
    adapter = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora, nf4), tokenizer, model_folder, nf4)
    folder = tmp_path / "out" / "merged"
    argv = ["merge", "--adapter", str(adapter), "--output_dir", str(folder), "--max_samples", "0"]

    def phase(folder: Path) -> str:
        return "before it is written" if not list(folder.parent.glob(".*")) else "while it is written"

    case = Case("merge", argv, folder, tree, phase, ((), ("--overwrite_output_dir",)))
    kill_again_and_again(case, tmp_path / "log", capsys)


def test_compare(argv, tmp_path, capsys):
    def compared(folder: Path) -> dict[str, dict]:
        runs = {
            str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("runs/*/*/run.json")
        }
        for run in runs.values():
            for name in TIMINGS:
                del run[name]
            for point in run["curve"]:
                del point["seconds"]
        adapters = {name: data for name, data in tree(folder).items() if name.endswith(".safetensors")}
        return {**runs, **adapters} if (folder / "report.html").is_file() else {}

    def phase(folder: Path) -> str:
        return f"after {len(list(folder.glob('runs/*/*/run.json')))} of 4 runs"

    options = {"arms": "sft,anchored,posterior,shuffled_warmup", "seeds": "0", "max_steps": "6", "curve_samples": "4"}
    case = Case("compare", argv("compare", **options, curve_points="1"), tmp_path / "out" / "run", compared, phase)
    kill_again_and_again(case, tmp_path / "log", capsys)
