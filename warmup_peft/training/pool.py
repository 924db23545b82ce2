"""Warmups sampled once, before training, and kept on disk: M for each prompt.

Knows no model: whoever fills a pool brings the function that samples. A pool is a folder with `pool.json`, which says
what its warmups were sampled from, and Arrow files of some hundreds of prompts each, which appear when they are whole.
So sampling that was interrupted goes on where it stopped, and a pool can serve several runs.

In memory are the keys of the prompts alone. A file is mapped while rows are read from it, and let go behind them, so
that what is resident does not grow with what was read.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from warmup_peft.files import read_json, remove_abandoned, write_json, write_whole
from warmup_peft.method.branches import Tokens, Warmups

POOL_NAME = "warmup_pool"  # of the folder, in that of the run
POOL_FILE = "pool.json"
PROMPTS_PER_FILE = 512
SampleFunction = Callable[[list[np.ndarray], int], Warmups]

SMALL, LARGE = pa.uint16(), pa.int32()  # of token ids: a file has the smaller type where its ids fit
COLUMNS = {
    "key": pa.string(),  # of the prompt's token ids
    "ids": pa.list_(pa.list_(LARGE)),  # distinct samples: all tokens that the model decided on
    "lengths": pa.list_(pa.int32()),  # how many of them are the warmup; the others ended it
    "logps": pa.list_(pa.float32()),  # nats
    "counts": pa.list_(pa.int32()),  # how often each was sampled; M together
}
KEY_TYPE = "S32"  # of numpy: the characters of a key


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
        """Read which prompts are there; the warmups themselves stay on disk."""
        remove_abandoned(self.folder)
        self._paths = sorted(self.folder.glob("part-*.arrow"))
        found = [read_part(path).column("key").to_pylist() for path in self._paths]
        keys = np.array(list(chain.from_iterable(found)), dtype=KEY_TYPE)
        places = np.array([(n, row) for n, part in enumerate(found) for row in range(len(part))], dtype=np.int32)
        order = keys.argsort(kind="stable")
        self._keys, self._places = keys[order], places.reshape(-1, 2)[order]  # a place is a file's number and a row

    def __len__(self) -> int:
        return len(np.unique(self._keys))

    def missing(self, prompts: Iterable[np.ndarray]) -> np.ndarray:
        """Places of prompts that have no warmups yet, each once, the longest first: what does not fit shows at once.

        Args:
            prompts: token ids of each; they are looked at one by one.
        """
        known = [(len(ids), prompt_key(ids)) for ids in prompts]
        lengths = np.array([length for length, _ in known], dtype=np.int64)
        keys, places = np.unique(np.array([key for _, key in known], dtype=KEY_TYPE), return_index=True)
        is_missing = ~np.isin(keys, self._keys)
        keys, places = keys[is_missing], places[is_missing]
        return places[np.lexsort((keys, lengths[places]))[::-1]]

    def add(
        self,
        prompts: Iterable[np.ndarray],
        sample: SampleFunction,
        *,
        seed: int,
        prompts_per_batch: int,
        share: tuple[int, int] = (0, 1),
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Sample for prompts that are not there yet, file by file. `load` then reads what all ranks have sampled.

        Args:
            prompts: token ids of each, in the order of `missing`.
            sample: prompts and a seed -> warmups (B, M) with their `logp`.
            seed: the same prompts and seed give the same pool, however often it was interrupted.
            prompts_per_batch: how many prompts go into one call of `sample`.
            share: (rank, number of ranks): each rank samples its files.
            on_progress: told how many prompts were done since.
        """
        rank, num_ranks = share
        # sampling that was interrupted lacks whole files, so the rest is cut into the files that it would have written
        for number, prompts_of_file in enumerate(in_batches(prompts, PROMPTS_PER_FILE)):
            if number % num_ranks == rank:
                self._sample_file(prompts_of_file, sample, seed, prompts_per_batch, on_progress)

    def _sample_file(self, prompts, sample: SampleFunction, seed: int, prompts_per_batch: int, on_progress) -> None:
        parts, keys = [], []
        for batch in in_batches(prompts, prompts_per_batch):
            keys_of_batch = [prompt_key(ids) for ids in batch]
            parts.append(to_rows(keys_of_batch, sample(batch, seed_of(seed, keys_of_batch))))
            keys += keys_of_batch
            on_progress(len(batch))
        self._check_identity()  # somebody else may have begun meanwhile
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / POOL_FILE, self.identity)
        name = f"part-{seed_of(keys):014x}-{len(keys)}.arrow"
        write_whole(self.folder / name, lambda path: write_part(path, parts))

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
        chosen = []
        for row, key in enumerate(map(prompt_key, prompts)):
            place = self._place_of(key)
            if place is None:
                raise ValueError(
                    f"Row {row} of the batch has a prompt that is not in {self.folder}. Prompts must reach the model "
                    "as the training data set has them: leave their truncation to max_length."
                )
            number, stored_row = place
            ids, lengths, logps, counts = samples_at(read_part(self._paths[number]), stored_row)
            picks = pick(counts, num_warmups, seed_of(seed, epoch, key))
            # copied, so that no file stays mapped
            chosen.append(([ids[i].values.to_numpy().astype(np.int64) for i in picks], lengths[picks], logps[picks]))
        return to_warmups(chosen, pad_token_id, prompt.ids.device)

    def _place_of(self, key: str) -> tuple[int, int] | None:
        wanted = np.array([key], dtype=KEY_TYPE)
        at = int(np.searchsorted(self._keys, wanted, side="right")[0]) - 1
        return tuple(self._places[at]) if at >= 0 and self._keys[at] == wanted[0] else None

    def why_useless(self) -> str | None:
        """In words why nothing can be learnt from these warmups; None where something might."""
        first: bytes | None = None
        for warmup in chain.from_iterable(warmups_in(read_part(path)) for path in self._paths):
            if first is not None and warmup != first:
                return None
            first = warmup
        return f"all warmups that the base model wrote are {'the same' if first else 'empty'}"


# ---- Rows and files ----


def pick(counts: Sequence[int], num_warmups: int, seed: int) -> np.ndarray:
    """Take `num_warmups` of the M stored samples without replacement; return the index of each one's distinct warmup.

    Args:
        counts: how often each distinct warmup was sampled.
    """
    samples = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).choice(samples, num_warmups, replace=False)


def in_batches(values: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` values, the last one shorter."""
    values = iter(values)
    return iter(lambda: list(islice(values, size)), [])


def to_rows(keys: Sequence[str], warmups: Warmups) -> pa.RecordBatch:
    """A row for each prompt: its distinct samples with their counts, in the order they first came."""
    ids, lengths, decided, logps = (x.numpy(force=True) for x in warmups[:4])
    rows, samples, counts, num_distinct = [], [], [], []
    for b in range(len(ids)):
        sampled = [(ids[b, k, : decided[b, k]].tobytes(), lengths[b, k]) for k in range(ids.shape[1])]
        last = {sample: k for k, sample in enumerate(sampled)}
        count = Counter(sampled)
        rows += [b] * len(last)
        samples += last.values()
        counts += (count[sample] for sample in last)
        num_distinct.append(len(last))

    def in_rows(values: np.ndarray | pa.Array, numbers: Sequence[int], kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(np.cumsum([0, *numbers], dtype=np.int32), pa.array(values, kind))

    decided = decided[rows, samples]
    is_decided = np.arange(ids.shape[-1]) < decided[:, None]
    columns = [
        pa.array(keys, COLUMNS["key"]),
        in_rows(in_rows(ids[rows, samples][is_decided], decided, LARGE), num_distinct, COLUMNS["ids"].value_type),
        in_rows(lengths[rows, samples], num_distinct, pa.int32()),
        in_rows(logps[rows, samples], num_distinct, pa.float32()),
        in_rows(counts, num_distinct, pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(COLUMNS))


def samples_at(part: pa.Table, row: int) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """One prompt's distinct samples as they lie in the file: ids of each, lengths, log-probabilities and counts."""
    ids, lengths, logps, counts = (part.column(name)[row].values for name in ("ids", "lengths", "logps", "counts"))
    return ids, lengths.to_numpy(), logps.to_numpy(), counts.to_numpy()


def warmups_in(part: pa.Table) -> Iterator[bytes]:
    """The tokens of every distinct warmup."""
    for row in range(len(part)):
        ids, lengths, _, _ = samples_at(part, row)
        yield from (
            sample.values.to_numpy()[:length].astype(np.int32).tobytes() for sample, length in zip(ids, lengths)
        )


def to_warmups(
    chosen: Sequence[tuple[list[np.ndarray], np.ndarray, np.ndarray]], pad_token_id: int, device: torch.device
) -> Warmups:
    """For each prompt ids, lengths and log-probabilities of its K samples -> Warmups (B, K)."""
    num_decisions = np.array([[len(ids) for ids in samples] for samples, _, _ in chosen], dtype=np.int64)
    padded = np.full((*num_decisions.shape, num_decisions.max()), pad_token_id, dtype=np.int64)
    padded[np.arange(padded.shape[-1]) < num_decisions[..., None]] = np.concatenate(
        [x for row in chosen for x in row[0]]
    )
    lengths, logps = np.array([row[1] for row in chosen], dtype=np.int64), np.array([row[2] for row in chosen])
    return Warmups(*(torch.from_numpy(x).to(device) for x in (padded, lengths, num_decisions, logps)))


def write_part(path: Path, parts: Sequence[pa.RecordBatch]) -> None:
    """Write rows of `to_rows` into one file, as one record batch: a file of many takes longer to open."""
    rows = pa.Table.from_batches(parts).combine_chunks()
    largest = pc.max(rows.column("ids").combine_chunks().flatten().flatten()).as_py() or 0
    kind = SMALL if largest <= np.iinfo(np.uint16).max else LARGE
    schema = pa.schema({**COLUMNS, "ids": pa.list_(pa.list_(kind))})
    with pa.ipc.new_stream(str(path), schema) as writer:
        writer.write_table(rows.cast(schema))


def read_part(path: Path) -> pa.Table:
    """Map a file of the pool into memory, for as long as the table lives.

    Raises:
        ValueError: it holds fewer rows than its name says.
    """
    try:
        part = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        is_whole = len(part) == int(path.stem.rsplit("-", 1)[1])
    except (pa.ArrowInvalid, OSError, ValueError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} was cut short. Remove it; its warmups will be sampled again.")
    return part
