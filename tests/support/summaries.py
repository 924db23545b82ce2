"""A comparison made by hand: what the reports' tests show."""

from __future__ import annotations

import math
from dataclasses import replace

from warmup_peft.comparison.results import ArmSummary, Comparison, Difference, Estimate, Gain, Point, UseOfWarmups
from warmup_peft.evaluation.tasks import Row


def difference(estimate: float = 0.1234, is_significant: bool = True, **changes) -> Difference:
    defaults = dict(
        reference="sft",
        score=0.75 + estimate,
        reference_score=0.75,
        estimate=estimate,
        low=estimate - 0.05,
        high=estimate + 0.05,
        p=0.0002,
        p_adjusted=0.0004,
        mcnemar_p=0.015,
        mcnemar_p_adjusted=0.03,
        seeds_p=0.24,
        minimum_detectable_effect=0.031,
        is_significant=is_significant,
        num_rows=512,
        num_seeds=3,
    )
    return Difference(**(defaults | changes))


def use(*by_seed: str) -> UseOfWarmups:
    return UseOfWarmups(list(by_seed), Gain(1.961, 1.9, 2.02), Gain(0.01, -0.02, 0.04))


def rows(*scores: float, warmup: str = "") -> list[Row]:
    return [Row(f"Question {i}?", " Ann", warmup, f" answer {i}", score, 0.5, 2) for i, score in enumerate(scores)]


def curve(*scores: float) -> list[Point]:
    return [
        Point(100 * i, 1600 * i, 9.5 * i, score, 0.4, gain_over_none=0.3 * i, gain_over_others=0.01, overlap=0.3)
        for i, score in enumerate(scores, 1)
    ]


SFT = ArmSummary(
    "sft",
    "Plain fine-tuning.",
    seeds=[0, 1],
    metrics={"accuracy": Estimate(0.7541, 0.1092), "perplexity": Estimate(2.5, 0.25)},
    train_seconds=Estimate(75.25, 1.5),
    examples_per_second=Estimate(170.7, 3.0),
    peak_memory=Estimate(1.5 * 2**30),
    seconds_per_answer=Estimate(0.01234, 0.001),
    examples_to_reach=[12800, None],
    curve=curve(0.5, 0.75),
    rows=rows(1, 0, 0, 1),
)
ANCHORED = replace(
    SFT,
    name="anchored",
    description="Warmups with an anchor.",
    metrics={
        "accuracy": Estimate(0.8775, 0.001),
        "macro_f1": Estimate(0.866, 0.002),
        "perplexity": Estimate(math.inf),
    },
    warmups={"gain_over_none": Estimate(1.961, 0.02), "overlap": Estimate(0.29, 0.01)},
    versus_sft=difference(),
    examples_to_reach=[3200, 4800],
    rows=rows(1, 1, 0, 0, warmup=" Gus > Cid"),
)
FAILED = ArmSummary(
    "paper", "As published.", failures={0: "out of | memory", 1: "out of | memory", 2: "<b>killed</b>"}
)


def comparison(*arms: ArmSummary, **changes) -> Comparison:
    defaults = dict(
        verdict="Yes, use warmups: anchored is better.",
        use="The warmups of anchored are read.",
        notes=["Two seeds are few."],
        metric="accuracy",
        goal=0.75,
        arms=list(arms),
        num_test_rows=4,
        num_curve_rows=3,
        runs_done=6,
        runs_planned=6,
        left_out={"bertscore": "its model is not here"},
        signatures={"chrf++": "nrefs:1|nc:6"},
        settings={"max_steps": 800, "load_in_4bit": True, "dataset_name": None},
        versions={"torch": "2.13.0"},
        command="warmup-peft compare --seeds 0 1",
    )
    return Comparison(**(defaults | changes))


USUAL = comparison(SFT, ANCHORED, FAILED)
