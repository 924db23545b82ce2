"""Which cases of a long list `make test` runs. The others are marked slow, and `make test-slow` runs them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

SLOW = pytest.mark.slow


def every(n: int, cases: Iterable[Any]) -> list:
    """Each n-th case, the first among them; the others are slow. Cases are one value, or a tuple of them."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[SLOW] if i % n else [])
        for i, case in enumerate(cases)
    ]


def diagonal(rows: Sequence[Any], columns: Sequence[Any]) -> list:
    """All pairs. Each row and each column is met once or more; the pairs beside the diagonal are slow."""
    pairs = itertools.product(enumerate(rows), enumerate(columns))
    return [
        pytest.param(row, column, marks=[] if i % len(columns) == j % len(rows) else [SLOW])
        for (i, row), (j, column) in pairs
    ]
