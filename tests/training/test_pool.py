"""Warmups on disk: the same distribution, the same samples after an interruption, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from pools import rows_in
from scipy.stats import chisquare

from warmup_peft.method.branches import Tokens, Warmups
from warmup_peft.training import pool as pool_module
from warmup_peft.training.pool import WarmupPool, pick, to_rows

IDENTITY = {"base model": "abc", "tokenizer": "def", "temperature": 1.0, "end_token_ids": (1,)}
M = 6


def prompts(count):
    return [np.arange(2, 3 + number % 5, dtype=np.int32) + 10 * number for number in range(count)]


def sample_digits(batch, seed):
    """Warmups of one digit and a stop, from a generator of their own; P(digit) = 1/4, 1/4, 1/2."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.tensor([0.25, 0.25, 0.5])
    digits = torch.multinomial(probabilities.expand(len(batch), -1), M, replacement=True, generator=generator)
    ids = torch.stack([digits + 5, torch.ones_like(digits)], dim=-1)
    lengths = torch.ones_like(digits)
    return Warmups(ids, lengths, lengths + 1, probabilities[digits].log())


def fill(pool, rows, sample=sample_digits, **keywords):
    pool.add([rows[place] for place in pool.missing(rows)], sample, **{"seed": 0, "prompts_per_batch": 4, **keywords})
    pool.load()
    return pool


def as_tokens(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row.tolist() for row in rows])
    return Tokens(ids, ids != 0)


def contents(pool):
    return sorted(rows_in(pool.folder), key=lambda row: row["key"])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(pool_module, "PROMPTS_PER_FILE", 8)


def test_samples_come_back_as_they_were(tmp_path):
    """Ids with their end, lengths, log-probabilities; M with counts."""
    rows = prompts(10)
    pool = fill(WarmupPool(tmp_path / "pool", IDENTITY, M), rows)
    assert len(pool) == 10
    for row in contents(pool):
        assert sum(row["counts"]) == M
        for ids, length, logp in zip(row["ids"], row["lengths"], row["logps"]):
            assert (length, ids[1:]) == (1, [1])
            assert logp == pytest.approx(np.log({5: 0.25, 6: 0.25, 7: 0.5}[ids[0]]))
    warmups = pool.sample(as_tokens(rows), 3, seed=0, epoch=0, pad_token_id=0)
    assert warmups.ids.shape == (10, 3, 2)
    assert warmups.stopped.all()
    stored = {row["key"]: row for row in contents(pool)}
    for b, ids in enumerate(rows):
        there = stored[pool_module.prompt_key(ids)]["ids"]
        assert all(sample in there for sample in warmups.ids[b].tolist())


def test_all_of_m_are_taken_when_k_is_m(tmp_path):
    rows = prompts(3)
    pool = fill(WarmupPool(tmp_path, IDENTITY, M), rows)
    warmups = pool.sample(as_tokens(rows), M, seed=5, epoch=2, pad_token_id=0)
    expected = {row["key"]: sorted(np.repeat([ids[0] for ids in row["ids"]], row["counts"])) for row in contents(pool)}
    for b, ids in enumerate(rows):
        assert sorted(warmups.ids[b, :, 0].tolist()) == expected[pool_module.prompt_key(ids)]


def test_an_epoch_repeats_itself_and_differs_from_others(tmp_path):
    rows = prompts(12)
    pool = fill(WarmupPool(tmp_path, IDENTITY, M), rows)

    def at(epoch, seed=0, of=rows):
        return pool.sample(as_tokens(of), 2, seed=seed, epoch=epoch, pad_token_id=0).ids

    assert torch.equal(at(0), at(0))
    assert not torch.equal(at(0), at(1))
    assert not torch.equal(at(0), at(0, seed=1))
    assert torch.equal(at(0, of=rows[::-1]), at(0).flip(0))  # whatever stands beside it in the batch


def test_picks_follow_the_counts():
    """Chi-square over the first of two picks: 3 of 6 samples are the first kind."""
    picks = [pick([3, 2, 1], 2, seed) for seed in range(3000)]
    observed = np.bincount([first for first, _ in picks], minlength=3)
    assert chisquare(observed, np.array([3, 2, 1]) / 6 * len(picks)).pvalue > 1e-3
    assert not any((pair == 2).all() for pair in picks)  # without replacement


def test_the_pool_has_the_distribution_that_was_sampled_from(tmp_path):
    rows = prompts(600)
    pool = fill(WarmupPool(tmp_path, IDENTITY, M), rows, prompts_per_batch=64)
    sampled = pool.sample(as_tokens(rows), 2, seed=0, epoch=0, pad_token_id=0).ids[..., 0].flatten()
    observed = np.bincount(sampled - 5, minlength=3)
    assert chisquare(observed, np.array([0.25, 0.25, 0.5]) * len(sampled)).pvalue > 1e-3


class Killed(Exception):
    pass


def test_sampling_that_was_killed_goes_on_and_gives_the_same_pool(tmp_path, small_files):
    rows = prompts(37)
    whole = fill(WarmupPool(tmp_path / "whole", IDENTITY, M), rows)
    calls = []

    def killed_at_the_sixth(batch, seed):
        calls.append(batch)
        if len(calls) == 6:
            raise Killed
        return sample_digits(batch, seed)

    with pytest.raises(Killed):
        fill(WarmupPool(tmp_path / "pool", IDENTITY, M), rows, sample=killed_at_the_sixth)
    half = WarmupPool(tmp_path / "pool", IDENTITY, M)
    assert len(half) == 16  # two whole files, and nothing of the third
    assert [path.name for path in half.folder.iterdir() if path.name.startswith(".")] == []
    calls.clear()
    fill(half, rows, sample=lambda *args: calls.append(args) or sample_digits(*args))
    assert sum(len(batch) for batch, _ in calls) == 37 - 16
    assert files(half.folder) == files(whole.folder)


def test_ranks_share_the_work_and_give_the_same_pool(tmp_path, small_files):
    rows = prompts(37)
    whole = fill(WarmupPool(tmp_path / "whole", IDENTITY, M), rows)
    ranks = [WarmupPool(tmp_path / "pool", IDENTITY, M) for _ in range(2)]
    missing = [[rows[place] for place in pool.missing(rows)] for pool in ranks]  # each knows before the other writes
    for rank, pool in enumerate(ranks):
        pool.add(missing[rank], sample_digits, seed=0, prompts_per_batch=4, share=(rank, 2))
    ranks[0].load()
    assert files(ranks[0].folder) == files(whole.folder)


def test_only_what_is_missing_is_sampled(tmp_path):
    pool = fill(WarmupPool(tmp_path, IDENTITY, M), prompts(5))
    before = contents(pool)
    assert pool.missing([*prompts(7), prompts(7)[6]]).tolist() == [6, 5]  # each once, the longest first
    fill(pool, prompts(7))
    assert len(pool) == 7
    assert all(row in contents(pool) for row in before)


@pytest.mark.parametrize(
    ("identity", "size", "name"),
    [({"base model": "xyz"}, M, "base model"), ({"temperature": 0.5}, M, "temperature"), ({}, 8, "warmup_pool_size")],
)
def test_another_identity_is_refused(tmp_path, identity, size, name):
    fill(WarmupPool(tmp_path, IDENTITY, M), prompts(2))
    with pytest.raises(ValueError, match=rf"sampled with another {name} \(.*, now .*\). Remove the folder, or name"):
        WarmupPool(tmp_path, {**IDENTITY, **identity}, size)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_file_that_was_cut_short_is_refused(tmp_path, share):
    fill(WarmupPool(tmp_path, IDENTITY, M), prompts(9))
    path = next(tmp_path.glob("part-*.arrow"))
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"{path.name} was cut short. Remove it"):
        WarmupPool(tmp_path, IDENTITY, M)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "3"])
def test_a_broken_description_is_refused(tmp_path, text):
    (tmp_path / "pool.json").write_text(text)
    with pytest.raises(ValueError, match=r"pool.json cannot be read"):
        WarmupPool(tmp_path, IDENTITY, M)


def test_warmups_of_an_unknown_distribution_are_refused(tmp_path):
    fill(WarmupPool(tmp_path, IDENTITY, M), prompts(2))
    (tmp_path / "pool.json").unlink()
    with pytest.raises(ValueError, match="nobody knows how its warmups were sampled"):
        WarmupPool(tmp_path, IDENTITY, M)


def test_a_file_is_no_pool(tmp_path):
    (tmp_path / "pool").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        WarmupPool(tmp_path / "pool", IDENTITY, M)


def test_sampling_that_failed_binds_nobody(tmp_path):
    def fail(batch, seed):
        raise Killed

    with pytest.raises(Killed):
        fill(WarmupPool(tmp_path / "pool", IDENTITY, M), prompts(2), sample=fail)
    fill(WarmupPool(tmp_path / "pool", {**IDENTITY, "temperature": 0.5}, M), prompts(2))


def test_samples_of_two_distributions_do_not_mix(tmp_path):
    one, other = WarmupPool(tmp_path, IDENTITY, M), WarmupPool(tmp_path, {**IDENTITY, "temperature": 0.5}, M)
    fill(one, prompts(2))
    with pytest.raises(ValueError, match="sampled with another temperature"):
        fill(other, prompts(4))


def test_a_prompt_without_warmups_is_refused_with_its_row(tmp_path):
    pool = fill(WarmupPool(tmp_path, IDENTITY, M), prompts(3))
    with pytest.raises(ValueError, match="Row 1 of the batch has a prompt that is not in"):
        pool.sample(as_tokens([prompts(3)[0], prompts(9)[8]]), 2, seed=0, epoch=0, pad_token_id=0)


@pytest.mark.parametrize(("ids", "length", "word"), [([1], 0, "empty"), ([5, 1], 1, "the same")])
def test_warmups_that_say_nothing_are_noticed(tmp_path, ids, length, word):
    def sample(batch, seed):
        sampled = torch.tensor(ids).expand(len(batch), M, -1)
        lengths = torch.full((len(batch), M), length)
        return Warmups(sampled, lengths, lengths + 1, torch.zeros(len(batch), M))

    pool = fill(WarmupPool(tmp_path, IDENTITY, M), prompts(4), sample=sample)
    assert f"are {word}" in pool.why_useless()
    assert fill(WarmupPool(tmp_path / "good", IDENTITY, M), prompts(4)).why_useless() is None


def test_equal_samples_are_kept_once_and_stops_apart():
    ids = torch.tensor([[[5, 1], [5, 9], [5, 1], [5, 7]]])
    sampled = Warmups(ids, torch.tensor([[1, 1, 1, 2]]), torch.tensor([[2, 2, 2, 2]]), -torch.ones(1, 4))
    (row,) = to_rows(["a"], sampled).to_pylist()
    assert row["ids"] == [[5, 1], [5, 9], [5, 7]]
    assert row["counts"] == [2, 1, 1]
    assert row["lengths"] == [1, 1, 2]


def test_files_are_plain_arrow_data_sets(tmp_path):
    fill(WarmupPool(tmp_path, IDENTITY, M), prompts(3))
    part = Dataset.from_file(str(next(tmp_path.glob("part-*.arrow"))))
    assert set(part.column_names) == {"key", "ids", "lengths", "logps", "counts"}
    assert json.loads((tmp_path / "pool.json").read_text())["warmup_pool_size"] == M


def test_a_pool_of_an_earlier_version_still_serves(tmp_path):
    """Its files have ids of 32 bits, and a record batch for every thousand rows."""
    pool = fill(WarmupPool(tmp_path, IDENTITY, M), prompts(9))
    expected = pool.sample(as_tokens(prompts(9)), 3, seed=0, epoch=0, pad_token_id=0)
    path = next(tmp_path.glob("part-*.arrow"))
    rows = rows_in(tmp_path)
    numbers = {"lengths": "int32", "logps": "float32", "counts": "int32"}
    features = {"key": Value("string"), "ids": List(List(Value("int32")))}
    features = Features({**features, **{name: List(Value(kind)) for name, kind in numbers.items()}})
    path.unlink()
    with ArrowWriter(path=str(path), features=features, writer_batch_size=4) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    assert len(WarmupPool(tmp_path, IDENTITY, M).missing(prompts(10))) == 1
    found = WarmupPool(tmp_path, IDENTITY, M).sample(as_tokens(prompts(9)), 3, seed=0, epoch=0, pad_token_id=0)
    assert all(torch.equal(a, b) for a, b in zip(found[:4], expected[:4]))


@pytest.mark.parametrize(("largest", "kind"), [(65_535, "uint16"), (65_536, "int32")])
def test_token_ids_take_two_bytes_where_they_fit(tmp_path, largest, kind):
    def sample(batch, seed):
        sampled = sample_digits(batch, seed)
        return sampled._replace(ids=sampled.ids.masked_fill(sampled.ids == 7, largest))

    pool = fill(WarmupPool(tmp_path, IDENTITY, M), prompts(6), sample=sample)
    part = Dataset.from_file(str(next(tmp_path.glob("part-*.arrow"))))
    assert part.features["ids"].feature.feature.dtype == kind
    warmups = pool.sample(as_tokens(prompts(6)), M, seed=0, epoch=0, pad_token_id=0)
    assert (warmups.ids == largest).any()
    assert set(warmups.ids.flatten().tolist()) <= {1, 5, 6, largest}


def test_memory_holds_one_file_and_not_the_pool(tmp_path, monkeypatch):
    """20 files of 2 MB each, ids of 32 bits; every allocation of numpy, Python and Arrow counts."""
    monkeypatch.setattr(pool_module, "PROMPTS_PER_FILE", 16)
    rows, arrow = prompts(320), pa.proxy_memory_pool(pa.default_memory_pool())

    def sample(batch, seed):
        ids = torch.randint(0, 100_000, (len(batch), 64, 512), generator=torch.Generator().manual_seed(seed))
        return Warmups(ids, *(torch.full((len(batch), 64), n) for n in (512, 512)), -torch.ones(len(batch), 64))

    default = pa.default_memory_pool()
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        pool = fill(WarmupPool(tmp_path, IDENTITY, 64), rows, sample=sample, prompts_per_batch=2)
        written = tracemalloc.get_traced_memory()[1] + arrow.max_memory()
        tracemalloc.reset_peak()
        before = arrow.bytes_allocated()
        for start in range(0, 320, 8):
            pool.sample(as_tokens(rows[start : start + 8]), 4, seed=0, epoch=0, pad_token_id=0)
        read = tracemalloc.get_traced_memory()[1]
        assert arrow.bytes_allocated() == before  # what is read stays in the files
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
    size = sum(path.stat().st_size for path in tmp_path.glob("part-*.arrow")) / 2**20
    assert size > 40
    assert written < 16 * 2**20
    assert read < 4 * 2**20
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()  # no page of a file stays resident


MEASURE = """
import resource, sys, torch, numpy as np
from warmup_peft.method.branches import Tokens, Warmups
from warmup_peft.training.pool import WarmupPool

def sample(batch, seed):
    ids = torch.randint(0, 30000, (len(batch), 16, 8), generator=torch.Generator().manual_seed(seed))
    return Warmups(ids, *(torch.full((len(batch), 16), n) for n in (8, 8)), -torch.ones(len(batch), 16))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

rng = np.random.default_rng(0)
sample([0] * 256, 0)
before = peak()
prompts = [rng.integers(0, 30000, 300, dtype=np.int32) for _ in range(20000)]
pool = WarmupPool(sys.argv[1], {}, 16)
pool.add([prompts[place] for place in pool.missing(prompts)], sample, seed=0, prompts_per_batch=256)
pool.load()
for start in range(0, 20000, 1000):
    ids = torch.tensor(np.stack(prompts[start : start + 16]))
    pool.sample(Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), 4, seed=0, epoch=0, pad_token_id=0)
print(peak() - before)
"""


@pytest.mark.slow
def test_20000_examples_stay_under_100_mb(tmp_path):
    run = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100
