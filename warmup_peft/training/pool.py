"""Warmups sampled once, before training, and kept on disk: M for each prompt.

Knows no model: whoever fills a pool brings the function that samples. A pool is a folder with `pool.json`, which says
what its warmups were sampled from, and Arrow files of some hundreds of prompts each, which appear when they are whole.
So sampling that was interrupted goes on where it stopped, and a pool can serve several runs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from warmup_peft.files import read_json, remove_abandoned, write_json, write_whole
from warmup_peft.method.branches import Tokens, Warmups

POOL_NAME = "warmup_pool"  # of the folder, in that of the run
POOL_FILE = "pool.json"
PROMPTS_PER_FILE = 512
SampleFunction = Callable[[list[np.ndarray], int], Warmups]

FEATURES = Features(
    {
        "key": Value("string"),  # of the prompt's token ids
        "ids": List(List(Value("int32"))),  # distinct samples: all tokens that the model decided on
        "lengths": List(Value("int32")),  # how many of them are the warmup; the others ended it
        "logps": List(Value("float32")),  # nats
        "counts": List(Value("int32")),  # how often each was sampled; M together
    }
)


def prompt_key(ids: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype=np.int32).tobytes(), digest_size=16).hexdigest()


def seed_of(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


class WarmupPool:
    """The warmups in a folder, and which prompts they belong to.

    Args:
        folder: made where there is none.
        identity: what the samples depend on: base model, tokenizer, sampling settings. Of a pool that exists it must
            be the same.
        num_samples: M, samples for each prompt.

    Raises:
        ValueError: a pool with another identity or another M, or a file that was cut short.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], num_samples: int):
        self.folder, self.num_samples = Path(folder), num_samples
        self.identity = json.loads(json.dumps({**identity, "warmup_pool_size": num_samples}))
        self._check_identity()
        self.load()

    def _check_identity(self) -> None:
        path = self.folder / POOL_FILE
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"warmup_pool={self.folder} is a file. Name a folder.")
        if not path.is_file():
            if any(self.folder.glob("part-*.arrow")):
                raise ValueError(f"{path} is gone, so nobody knows how its warmups were sampled. Remove the folder.")
            return
        try:
            found = dict(read_json(path))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Remove the folder to sample anew.") from error
        for name in sorted({*self.identity, *found}):
            if self.identity.get(name) != found.get(name):
                raise ValueError(
                    f"The warmups in {self.folder} were sampled with another {name} ({found.get(name)}, now "
                    f"{self.identity.get(name)}). Remove the folder, or name another with warmup_pool."
                )

    def load(self) -> None:
        """Read which prompts are there; the warmups themselves stay on disk, mapped into memory."""
        remove_abandoned(self.folder)
        parts = [read_part(path) for path in sorted(self.folder.glob("part-*.arrow"))]
        self._rows = concatenate_datasets(parts) if parts else Dataset.from_dict({"key": []})
        self._row_of = {key: row for row, key in enumerate(self._rows["key"])}

    def __len__(self) -> int:
        return len(self._row_of)

    def missing(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Prompts that have no warmups yet, each once, the longest first: what does not fit shows at once."""
        by_key = {prompt_key(ids): ids for ids in prompts}
        found = [(len(ids), key) for key, ids in by_key.items() if key not in self._row_of]
        return [by_key[key] for _, key in sorted(found, reverse=True)]

    def add(
        self,
        prompts: Sequence[np.ndarray],
        sample: SampleFunction,
        *,
        seed: int,
        prompts_per_batch: int,
        share: tuple[int, int] = (0, 1),
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Sample for prompts that are not there yet, file by file. `load` then reads what all ranks have sampled.

        Args:
            prompts: token ids of each, as `missing` lists them.
            sample: prompts and a seed -> warmups (B, M) with their `logp`.
            seed: the same prompts and seed give the same pool, however often it was interrupted.
            prompts_per_batch: how many prompts go into one call of `sample`.
            share: (rank, number of ranks): each rank samples its files.
            on_progress: told how many prompts were done since.
        """
        rank, num_ranks = share
        # sampling that was interrupted lacks whole files, so the rest is cut into the files that it would have written
        for number, start in enumerate(range(0, len(prompts), PROMPTS_PER_FILE)):
            if number % num_ranks == rank:
                self._sample_file(
                    prompts[start : start + PROMPTS_PER_FILE], sample, seed, prompts_per_batch, on_progress
                )

    def _sample_file(self, prompts, sample: SampleFunction, seed: int, prompts_per_batch: int, on_progress) -> None:
        rows: list[dict[str, Any]] = []
        for start in range(0, len(prompts), prompts_per_batch):
            batch = prompts[start : start + prompts_per_batch]
            keys = [prompt_key(ids) for ids in batch]
            rows += [{"key": key, **row} for key, row in zip(keys, rows_of(sample(batch, seed_of(seed, keys))))]
            on_progress(len(batch))
        self._check_identity()  # somebody else may have begun meanwhile
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / POOL_FILE, self.identity)
        name = f"part-{seed_of([row['key'] for row in rows]):014x}-{len(rows)}.arrow"
        write_whole(self.folder / name, lambda path: write_part(path, rows))

    def sample(self, prompt: Tokens, num_warmups: int, *, seed: int, epoch: int, pad_token_id: int) -> Warmups:
        """K of each prompt's M samples, without replacement: as good as K independent samples.

        Args:
            prompt: (B, P), padded on the left.
            num_warmups: K, at most M.
            seed, epoch: the same two give the same warmups, whatever was sampled before.
            pad_token_id: what stands behind a warmup.

        Raises:
            ValueError: a prompt has no warmups here.
        """
        prompts = [row[mask].cpu().numpy() for row, mask in zip(prompt.ids, prompt.mask)]
        keys = [prompt_key(ids) for ids in prompts]
        for row, key in enumerate(keys):
            if key not in self._row_of:
                raise ValueError(
                    f"Row {row} of the batch has a prompt that is not in {self.folder}. Prompts must reach the model "
                    "as the training data set has them: leave their truncation to max_length."
                )
        stored = self._rows[[self._row_of[key] for key in keys]]
        chosen = [
            [(stored["ids"][b][i], stored["lengths"][b][i], stored["logps"][b][i]) for i in picks]
            for b, key in enumerate(keys)
            for picks in [pick(stored["counts"][b], num_warmups, seed_of(seed, epoch, key))]
        ]
        return to_warmups(chosen, pad_token_id, prompt.ids.device)

    def why_useless(self) -> str | None:
        """In words why nothing can be learnt from these warmups; None where something might."""
        seen: set[tuple[int, ...]] = set()
        for batch in self._rows.select_columns(["ids", "lengths"]).iter(batch_size=PROMPTS_PER_FILE):
            for all_ids, lengths in zip(batch["ids"], batch["lengths"]):
                seen |= {tuple(ids[:length]) for ids, length in zip(all_ids, lengths)}
            if len(seen) > 1:
                return None
        what = "empty" if seen <= {()} else "the same"
        return f"all warmups that the base model wrote are {what}"


# ---- Rows and files ----


def pick(counts: Sequence[int], num_warmups: int, seed: int) -> np.ndarray:
    """Take `num_warmups` of the M stored samples without replacement; return the index of each one's distinct warmup.

    Args:
        counts: how often each distinct warmup was sampled.
    """
    samples = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).choice(samples, num_warmups, replace=False)


def rows_of(warmups: Warmups) -> Iterator[dict[str, list]]:
    """Each prompt's distinct samples with their counts, in the order they first came."""
    for samples in zip(*(x.tolist() for x in warmups)):
        counts: Counter[tuple[tuple[int, ...], int]] = Counter()
        logps: dict[tuple[tuple[int, ...], int], float] = {}
        for ids, length, decided, logp in zip(*samples):
            sample = (tuple(ids[:decided]), length)
            counts[sample] += 1
            logps[sample] = logp
        yield {
            "ids": [list(ids) for ids, _ in counts],
            "lengths": [length for _, length in counts],
            "logps": list(logps.values()),
            "counts": list(counts.values()),
        }


def to_warmups(chosen: list[list[tuple[list[int], int, float]]], pad_token_id: int, device: torch.device) -> Warmups:
    """(ids, length, logp) of each sample -> Warmups (B, K)."""
    width = max(len(ids) for samples in chosen for ids, _, _ in samples)
    padded = [[ids + [pad_token_id] * (width - len(ids)) for ids, _, _ in samples] for samples in chosen]

    def tensor(values: list) -> Tensor:
        return torch.tensor(values, device=device)

    return Warmups(
        tensor(padded),
        tensor([[length for _, length, _ in samples] for samples in chosen]),
        tensor([[len(ids) for ids, _, _ in samples] for samples in chosen]),
        tensor([[logp for _, _, logp in samples] for samples in chosen]),
    )


def write_part(path: Path, rows: list[dict[str, Any]]) -> None:
    with ArrowWriter(path=str(path), features=FEATURES) as writer:
        writer.write_batch({name: [row[name] for row in rows] for name in FEATURES})
        writer.finalize()


def read_part(path: Path) -> Dataset:
    """Map a file of the pool into memory.

    Raises:
        ValueError: it holds fewer rows than its name says.
    """
    try:
        part = Dataset.from_file(str(path))
        is_whole = len(part) == int(path.stem.rsplit("-", 1)[1])
    except (pa.ArrowInvalid, OSError, ValueError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} was cut short. Remove it; its warmups will be sampled again.")
    return part
