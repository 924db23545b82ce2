"""Several ranks on the CPU (gloo): processes forked from this one, which has imported everything already."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.training_args
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType

import warmup_peft.training.config

FORK = multiprocessing.get_context("fork")


def on_ranks(count: int, folder: Path, function: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
    """What the function returns on each of `count` ranks; one rank is a process without a process group.

    Args:
        folder: for the results; made where there is none.
        timeout: seconds, after which a rank that still runs is a failure, and says where it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ranks = [
        FORK.Process(target=as_rank, args=(rank, count, port, folder, timeout, function, args), daemon=True)
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    said = {path.name: path.read_text() for path in sorted(folder.glob("error-*"))}
    assert not any(said.values()), "\n".join(f"{name}:\n{text}" for name, text in said.items())
    assert [process.exitcode for process in ranks] == [0] * count
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(count)]


def as_rank(
    rank: int, count: int, port: int, folder: Path, timeout: float, function: Callable[..., Any], args: tuple
) -> None:
    gc.freeze()  # what is garbage is the parent's: to end threads that are not here would abort this process
    error = (folder / f"error-{rank}").open("w")
    faulthandler.enable(error)
    faulthandler.dump_traceback_later(timeout, exit=True, file=error)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if count > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    try:
        torch.save(function(*args), folder / f"result-{rank}.pt")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    except BaseException:
        error.write(traceback.format_exc())
        error.flush()
    finally:
        os._exit(0)  # what this process shares with its parent is the parent's to close


def as_on_gpus() -> None:
    """Make accelerate take this rank for one on a GPU: on a CPU it shards no weights, and trains whole copies."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    for module in (transformers.training_args, warmup_peft.training.config):
        module.is_torch_bf16_gpu_available = lambda: True
    PartialState._prepare_backend = lambda *args, **keywords: ("gloo", DistributedType.MULTI_GPU)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
