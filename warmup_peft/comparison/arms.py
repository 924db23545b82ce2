"""Arms of a comparison: named changes to one recipe, and sweeps over its options. Loads neither torch nor trl."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from warmup_peft.settings.arguments import CompareOptions, check_counts
from warmup_peft.settings.options import DEFAULT_ANCHOR, WarmupOptions
from warmup_peft.settings.traits import OBJECTIVE_TRAITS
from warmup_peft.settings.words import nearest

Kind = Literal["base_model", "sft", "more_sft", "warmup", "control"]
SFT: Final = "sft"
MORE_SFT: Final = "more_sft"
BASE_MODEL: Final = "base_model"
OWN_OPTIONS = ("seed", "output_dir", "overwrite_output_dir")  # every run has its own values of these
SAME_FOR_ALL = ("dataset_name", "dataset_config", "dataset_test_split", "test_split_size", "task", "task_args",
                "answer_format")  # fmt: skip
ALIASES = {"base": "base_warmups", "random_warmup": "shuffled_warmup"}  # earlier names
WARMUP_FIELDS = {option.name for option in dataclasses.fields(WarmupOptions)}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        method: its name in `--arms`.
        description: one sentence for the report.
        kind: how it is trained and scored.
        question: of a control arm, what its difference to `anchored` tells, and what stands in the warmup's place.
        overrides: the options of the recipe that it sets.
        swept: the options that a sweep sets, as text.
    """

    method: str
    description: str
    kind: Kind = "warmup"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, str] = field(default_factory=dict)
    question: tuple[str, str] = ("", "")

    @property
    def name(self) -> str:
        """The method and the swept values, such as "anchored num_warmups=2"."""
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.swept.items())])

    @property
    def changes(self) -> dict[str, Any]:
        return {**self.overrides, **self.swept}

    @property
    def has_warmups(self) -> bool:
        return self.kind in ("warmup", "control")

    @property
    def is_control(self) -> bool:
        return self.kind == "control"

    def is_paired_with(self, other: Arm) -> bool:
        """Whether the swept values of both are the same, apart from options of the warmups."""
        return all_but_warmups(self.swept) == all_but_warmups(other.swept)


def all_but_warmups(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in WARMUP_FIELDS}


def arms_of(anchor: float | None) -> dict[str, Arm]:
    """All arms, by name, for a recipe with this `warmup_anchor`."""
    beta = anchor or DEFAULT_ANCHOR

    def sampled_by(source: str, objective: str = "warmup", beta: float = beta) -> dict[str, Any]:
        changed = {"warmup_source": source, "objective": objective, "warmup_anchor": beta}
        return {**changed, "warmup_sampling": "multinomial"}

    def plainly_sampled_by(source: str, beta: float = beta) -> dict[str, Any]:
        return {**sampled_by(source, beta=beta), "hindsight_steps": 0}

    arms = [
        Arm(BASE_MODEL, "The untrained base model, answering directly.", BASE_MODEL),
        Arm(
            SFT, "Plain supervised fine-tuning (TRL's SFTTrainer) with the recipe's settings, answering directly.", SFT
        ),
        Arm(
            MORE_SFT,
            "The same SFT with more steps, so that it trains as long as the slowest warmup arm of the comparison.",
            MORE_SFT,
        ),
        Arm("warmup", "The recipe as it is."),
        Arm(
            "paper",
            "Warmup Generations as published: the model's own warmups by beam search with sampling, no anchor.",
            overrides={**plainly_sampled_by("policy", beta=0.0), "warmup_sampling": "beam"},
        ),
        Arm(
            "anchored",
            f"The model's own warmups, sampled independently, with an anchor of {beta:g} to the base model.",
            overrides=sampled_by("policy"),
        ),
        Arm(
            "base_warmups",
            f"Warmups sampled once from the base model, before training; anchor {beta:g}.",
            overrides=sampled_by("base"),
        ),
        Arm(
            "posterior",
            f"Warmups sampled once from the base model, weighted by how likely they make the answer; anchor {beta:g}.",
            overrides=sampled_by("base", "posterior"),
        ),
        *(
            Arm(
                objective,
                f"The objective {objective} on the model's own warmups"
                f"{', which also trains the warmups themselves' * traits.has_advantage}; anchor {beta:g}.",
                overrides=sampled_by("policy", objective),
            )
            for objective, traits in OBJECTIVE_TRAITS.items()
            if not traits.takes_base_warmups
        ),
        Arm(
            "shuffled_warmup",
            "Control arm: `anchored`, but every row gets another row's warmup, in training and in scoring.",
            "control",
            plainly_sampled_by("shuffled"),
            question=("What the warmups say", "another row's warmup in place of its own"),
        ),
        Arm(
            "empty_warmup",
            "Control arm: no warmup, only the separator between prompt and answer.",
            "control",
            plainly_sampled_by("empty", beta=0.0),
            question=("That there is a warmup at all", "only the separator"),
        ),
    ]
    return {arm.name: arm for arm in arms}


def choose_arms(names: Sequence[str], anchor: float | None) -> list[Arm]:
    """The arms of these names, in the same order.

    Raises:
        ValueError: an unknown name, a name given twice, no name, or `more_sft` without `sft` and a warmup arm.
    """
    known = arms_of(anchor)
    names = [ALIASES.get(name, name) for name in names]
    for name in names:
        if name not in known:
            raise ValueError(f"There is no arm '{name}'. {nearest(name, known)} The arms are {', '.join(known)}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--arms names {'no arm' if not names else 'an arm twice'}. The arms are {', '.join(known)}.")
    arms = [known[name] for name in names]
    if MORE_SFT in names and not (SFT in names and any(arm.has_warmups and not arm.is_control for arm in arms)):
        raise ValueError("The arm more_sft trains for as long as a warmup arm. Name sft and a warmup arm too.")
    return arms


def asked_arms(options: CompareOptions, anchor: float | None, names: Sequence[str]) -> list[Arm]:
    """The arms that the options of `compare` name, with every swept value.

    Args:
        anchor: the recipe's `warmup_anchor`.
        names: of the recipe's options.

    Raises:
        ValueError: as `choose_arms` and `swept_arms`.
    """
    fields = [name for name in names if name not in (*OWN_OPTIONS, *SAME_FOR_ALL)]
    return swept_arms(choose_arms(split(options.arms), anchor), options.sweep, fields)


def check_compare_options(options: CompareOptions) -> None:
    """Raise ValueError for options of `compare` that cannot work."""
    check_counts(options, curve_points=0, curve_samples=1, max_samples=1, eval_batch_size=1, sampled_warmups=0, jobs=1)
    if options.goal is not None and not 0 < options.goal <= 1:
        raise ValueError(f"goal={options.goal} cannot work. Scores are between 0 and 1.")
    read_seeds(options.seeds)


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def read_seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in split(text)]
    except ValueError as error:
        raise ValueError(f"--seeds {text} cannot work. Give whole numbers with commas, as in 0,1,2.") from error
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds {text} cannot work. Give different numbers of 0 or more, as in 0,1,2.")
    return seeds


def swept_arms(arms: Sequence[Arm], sweeps: Sequence[str], fields: Sequence[str]) -> list[Arm]:
    """Every arm with every combination of the swept values that affect it.

    Args:
        sweeps: such as "num_warmups=2,4,8", with values as in a recipe.
        fields: names of the recipe's options.

    Raises:
        ValueError: an unknown option, an option that an arm itself sets, or no values.
    """
    axes = [parse_sweep(sweep, fields) for sweep in sweeps]
    if len({name for name, _ in axes}) < len(axes):
        raise ValueError("--sweep names an option twice. Give all of its values at once, with commas between them.")
    for name, _ in axes:
        for arm in arms:
            if name in arm.overrides:
                raise ValueError(
                    f"--sweep {name} would undo the arm {arm.name}, which sets {name}={arm.overrides[name]}. Sweep it "
                    "with the arm `warmup`, which is the recipe as it is."
                )
    chosen = []
    for arm in arms:
        own = [(name, values) for name, values in axes if arm.has_warmups or name not in WARMUP_FIELDS]
        for values in itertools.product(*(values for _, values in own)):
            chosen.append(dataclasses.replace(arm, swept=dict(zip((name for name, _ in own), values))))
    return chosen


def parse_sweep(text: str, fields: Sequence[str]) -> tuple[str, list[str]]:
    name, _, values = text.partition("=")
    if name not in fields:
        raise ValueError(f"--sweep names no option of the recipe ('{name}'). {nearest(name, fields)}")
    chosen = [value.strip() for value in values.split(",") if value.strip()]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"--sweep {text} needs different values with commas between them, as in {name}=2,4,8.")
    return name, chosen
