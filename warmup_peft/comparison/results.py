"""What a comparison found, as plain data: written by `compare`, judged by `significance`, rendered by `report`.

Knows no model and no trainer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from warmup_peft import __version__
from warmup_peft.evaluation.score_texts import printed
from warmup_peft.evaluation.tasks import Row
from warmup_peft.files import write_together

FORMAT = 3  # of the files in a comparison's folder; raised when an older program could misread them
JOB_NAME, RUN_NAME = "job.json", "run.json"
COMPARISON_NAME = "comparison.json"
LOCK_NAME = ".lock"  # in a comparison's folder, and in that of each run: held by the process that writes there


@dataclass(frozen=True)
class Point:
    """A point of a learning curve, scored on rows that are used for nothing else.

    Attributes:
        step: optimizer steps so far.
        examples: training examples so far.
        seconds: seconds of training so far, without scoring.
        score: the first metric, between 0 and 1 (BLEU, chrF and ROUGE too: hundredths).
        nll_per_token: negative log-likelihood of the reference after the model's own warmup, in nats per token.
        gain_over_none, gain_over_others: what the model's own warmup adds to the target's log-likelihood, in nats,
            against no warmup and against a shuffled one; None without warmups.
        overlap: share of the warmup's words that are also in the reference; None without warmups.
    """

    step: int
    examples: int
    seconds: float
    score: float
    nll_per_token: float
    gain_over_none: float | None = None
    gain_over_others: float | None = None
    overlap: float | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """One arm with one seed.

    Attributes:
        arm, seed: the arm's name and the seed.
        error: why the run failed, in a sentence; None for a finished run.
        steps: optimizer steps.
        metrics: each score on the test rows, between 0 and 1; perplexity (of the reference, a token) is 1 or more.
        signatures: how exactly a metric was computed, as its library words it.
        left_out: metrics that could not be computed, with the reason.
        train_seconds: seconds of training; sampling warmups counts, scoring does not.
        examples_per_second: training examples per second.
        peak_memory: bytes until the end of training, with loading, learning curves and samples before training: of the
            GPU's tensors, or of the process on a CPU.
        seconds_per_answer: seconds to write a warmup and an answer, in batches.
        warmups: metrics of its own warmups on the test rows (gain_over_none, gain_over_others, overlap, distinct,
            mean_length, those of `warmup_peft.comparison.sampled`, and for multiple choice score_after_none and
            score_after_others: the first metric after no warmup and after a shuffled one); empty without warmups.
        row_gains: gain_over_none and gain_over_others of each test row; empty without warmups.
        curve: points of the learning curve.
        device: the GPU or CPU that it ran on.
        at_a_time: how many runs shared the machine.
        rows: answers and scores on the test rows.
    """

    arm: str
    seed: int
    error: str | None = None
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    train_seconds: float = 0.0
    examples_per_second: float = 0.0
    peak_memory: int = 0
    seconds_per_answer: float = 0.0
    warmups: dict[str, float] = field(default_factory=dict)
    row_gains: dict[str, list[float]] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    device: str = ""
    at_a_time: int = 1
    rows: list[Row] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        write_together({RUN_NAME: json.dumps(asdict(self), ensure_ascii=False)}, folder)

    @classmethod
    def load(cls, folder: Path) -> Run | None:
        """The run in this folder; None where it has not finished.

        Raises:
            ValueError: the file is not what `save` wrote.
        """
        path = folder / RUN_NAME
        if not path.is_file():
            return None
        values = read_json_object(path, cls)
        values["curve"] = [Point(**point) for point in values["curve"]]
        values["rows"] = [Row(**row) for row in values["rows"]]
        return cls(**values)


@dataclass(frozen=True)
class Job:
    """The settings of a run. A finished run is kept only where they are the same.

    Attributes:
        arm: the arm's name.
        kind: how it is trained and scored, see `warmup_peft.comparison.arms`.
        seed: seed of the training.
        options: the recipe's values (see `warmup_peft.settings.recipe`), apart from the seed and the output folder.
        rows: fingerprint of the rows that it is scored on.
        at_a_time: how many runs share the machine; the only field that may differ where a finished run is kept.
        max_samples, curve_points, curve_samples, eval_batch_size, sampled_warmups: see `CompareOptions`.
        format, version: version of these files, and of warmup_peft.
    """

    arm: str
    kind: str
    seed: int
    options: dict[str, Any]
    max_samples: int | None
    curve_points: int
    curve_samples: int
    eval_batch_size: int
    rows: str
    sampled_warmups: int = 0
    at_a_time: int = 1
    format: int = FORMAT
    version: str = __version__

    def save(self, folder: Path) -> None:
        write_together({JOB_NAME: json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"}, folder)

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Raises ValueError where the folder was written by another version, or is no run's."""
        return cls(**read_json_object(folder / JOB_NAME, cls))

    def settings(self) -> list[str]:
        """Each setting as text, to say how two jobs differ."""
        own = {name: value for name, value in asdict(self).items() if name not in ("options", "at_a_time")}
        options = [f"--{name} {value}" for name, value in self.options.items()]
        return sorted([*options, *(f"{name}: {value}" for name, value in own.items())])


def mark_format(folder: Path) -> None:
    """Write the format and the version into the folder."""
    write_together({COMPARISON_NAME: json.dumps({"format": FORMAT, "version": __version__}) + "\n"}, folder)


def check_format(folder: Path) -> None:
    """Raise ValueError where the folder holds no comparison, or a comparison of another version."""
    path = folder / COMPARISON_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds files that are no comparison. Choose another --output_dir.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        found = None
    if found != {"format": FORMAT, "version": __version__}:
        found = found if isinstance(found, dict) else {}
        theirs = f"{found.get('version', 'unknown')}, format {found.get('format', 'unknown')}"
        raise ValueError(
            f"The comparison in {folder} was made by another version of warmup_peft ({theirs}; this is {__version__}, "
            f"format {FORMAT}), so their numbers cannot be mixed. Choose another --output_dir, or replace it with "
            "--overwrite_output_dir."
        )


def read_json_object(path: Path, kind: type) -> dict[str, Any]:
    """The fields of a dataclass, from a file that holds exactly these fields."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Remove its folder to repeat that run.") from error
    known = {option.name for option in fields(kind)}
    if not isinstance(values, dict) or values.keys() != known or values.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"{path} was written by another version of warmup_peft. Choose another --output_dir, or replace what is "
            "there with --overwrite_output_dir."
        )
    return values


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, and its standard error (None where there is one seed)."""

    mean: float
    error: float | None = None


@dataclass(frozen=True)
class Difference:
    """An arm's first metric minus the reference arm's, on the same test rows with the same seeds.

    Attributes:
        reference: the arm that it is compared with.
        score, reference_score: means over the seeds that both have.
        estimate: their difference.
        low, high: 95% interval, by paired bootstrap over test rows.
        p: of the paired bootstrap, two-sided.
        p_adjusted: the same, corrected for the number of arms (Holm).
        mcnemar_p, mcnemar_p_adjusted: McNemar's exact test where answers are right or wrong, else None.
        seeds_p: paired t-test over seeds, corrected too; None where there is one seed.
        minimum_detectable_effect: the difference that the tests over this many rows detect with a power of 80%.
        is_significant: p_adjusted below 0.05, and so are mcnemar_p_adjusted and seeds_p where there are any.
        num_rows, num_seeds: how many test rows, and how many seeds both arms have.
    """

    reference: str
    score: float
    reference_score: float
    estimate: float
    low: float
    high: float
    p: float
    p_adjusted: float
    mcnemar_p: float | None
    mcnemar_p_adjusted: float | None
    seeds_p: float | None
    minimum_detectable_effect: float
    is_significant: bool
    num_rows: int
    num_seeds: int = 1


WarmupUse = Literal["read", "a pause", "unused"]


@dataclass(frozen=True)
class Gain:
    """How much the model's own warmups raise the log-likelihood of the reference over other text, in nats.

    Attributes:
        mean: over test rows and seeds.
        low, high: 95% interval over test rows, of the mean over seeds.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class UseOfWarmups:
    """What an arm's warmups are to the model that writes them.

    Attributes:
        by_seed: of each seed. Warmups are `read` where they gain something over another row's, `a pause` where they
            gain something over none only, and else `unused`. A gain counts if it is at least `UNUSED_BELOW` (see
            `warmup_peft.method.diagnostics`) and its 95% interval over test rows lies above 0.
        over_none, over_others: the gains over no warmup and over a shuffled one.
    """

    by_seed: list[WarmupUse]
    over_none: Gain
    over_others: Gain


@dataclass(frozen=True)
class ArmSummary:
    """What the report says of one arm.

    Attributes:
        name: such as "anchored", or "anchored num_warmups=2" in a sweep.
        description: what it is, in a sentence.
        seeds: those that are done.
        failures: seed -> why it failed.
        metrics: of each score, and of perplexity, over seeds.
        train_seconds, examples_per_second, peak_memory, seconds_per_answer: over seeds; None where it is not trained.
        warmups: metrics of its warmups, over seeds.
        use: what the warmups are to the model; None where there are none, or they are other rows'.
        versus_sft, versus_more_sft: differences; None for these arms themselves, or where that arm is not there.
        examples_to_reach: of each seed, the examples seen when the learning curve first reached the goal; None where
            it never did.
        curve: mean over seeds of the points of the learning curve.
        rows: those of its first seed that is done.
    """

    name: str
    description: str
    seeds: list[int] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    metrics: dict[str, Estimate] = field(default_factory=dict)
    train_seconds: Estimate | None = None
    examples_per_second: Estimate | None = None
    peak_memory: Estimate | None = None
    seconds_per_answer: Estimate | None = None
    warmups: dict[str, Estimate] = field(default_factory=dict)
    use: UseOfWarmups | None = None
    versus_sft: Difference | None = None
    versus_more_sft: Difference | None = None
    examples_to_reach: list[int | None] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """All that a report presents.

    Attributes:
        verdict: one sentence: whether to use warmups on this data, against SFT with as much training time.
        use: one sentence: whether the best arm's warmups are read, only a pause, or unused.
        notes: caveats, a sentence each (one seed, failed runs, how the best arm was chosen, ...).
        metric: the first metric's name, such as "accuracy".
        goal: the score whose `examples_to_reach` are counted; None where there is none.
        arms: in the order asked for.
        num_test_rows, num_curve_rows: how many rows the table and the curves rest on.
        runs_done, runs_planned: if fewer are done than planned, it is still running or was interrupted.
        left_out: metrics that could not be computed, with the reason.
        signatures: how exactly a metric was computed, as its library words it.
        settings: of the recipe, in the order to show.
        versions: of the packages, the program and the machine's accelerator.
        command: what was run.
        folder: where runs and reports lie.
    """

    verdict: str
    use: str
    notes: list[str]
    metric: str
    goal: float | None
    arms: list[ArmSummary]
    num_test_rows: int
    num_curve_rows: int
    runs_done: int
    runs_planned: int
    left_out: dict[str, str] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    folder: str = ""

    def report(self, folder: str | Path) -> list[Path]:
        """Write `report.html` and `report.md` into a folder, and return their paths."""
        from warmup_peft.comparison.report.comparison_report import write_report

        Path(folder).mkdir(parents=True, exist_ok=True)
        write_report(self, Path(folder))
        return sorted(Path(folder).glob("report.*"))

    def __str__(self) -> str:
        from warmup_peft.comparison.report.terminal import print_comparison

        return printed(partial(print_comparison, self), 120)

    @property
    def is_finished(self) -> bool:
        return self.runs_done == self.runs_planned
