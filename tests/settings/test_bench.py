"""The arms and shapes of `bench`: that there are those which the code and the help name."""

from __future__ import annotations

from warmup_peft.method.objective import OBJECTIVES
from warmup_peft.settings.arguments import BenchArguments
from warmup_peft.settings.bench import ARMS, OURS, SHAPES
from warmup_peft.training import benchmark


def test_every_arm_is_explained():
    named = {line.split()[0].rstrip(",") for line in benchmark.__doc__.splitlines() if line.startswith("    ")}
    assert named | set(OBJECTIVES) - {"warmup"} == set(ARMS)
    assert {"sft", "sft_rows", "naive"} == set(ARMS) - set(OURS)


def test_every_shape_is_in_the_help():
    text = BenchArguments.__dataclass_fields__["shape"].metadata["help"]
    assert all(name in text for name in SHAPES)
