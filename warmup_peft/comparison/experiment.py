"""Plan a comparison of a recipe's arms, run every arm with every seed, and write the report.

Every run has its own process and folder (`runs/<arm>/seed-<n>`), so finished runs are kept. The report is rewritten
whenever a run ends.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from warmup_peft.comparison.arms import MORE_SFT, OWN_OPTIONS, SFT, Arm, asked_arms, check_compare_options, read_seeds
from warmup_peft.comparison.report.comparison_report import write_report
from warmup_peft.comparison.results import COMPARISON_NAME, LOCK_NAME, Comparison, Job, Run, check_format, mark_format
from warmup_peft.comparison.runner import Runner
from warmup_peft.comparison.significance import least_rows, minimum_detectable_effect
from warmup_peft.comparison.summary import summarize
from warmup_peft.evaluation.rows import rows_to_compare_on, task_to_score
from warmup_peft.evaluation.tasks import fingerprint
from warmup_peft.files import check_writable, saying_where_the_disk_is_full
from warmup_peft.inference.loading import load_tokenizer
from warmup_peft.settings.arguments import CompareOptions
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.build import check_attention
from warmup_peft.training.checks import model_config
from warmup_peft.training.config import TrainingSettings
from warmup_peft.training.early import check_base_is_named, check_training_counts

RUNS = "runs"
DEFAULT_GOAL = 0.8  # accuracy
SHARED_MACHINE = "Several runs shared the machine, so seconds, and the steps of more_sft, are only roughly comparable."
REPORTS = ("report.html", "report.md")
# The measured time is training only, and no checkpoint is chosen with the rows of the verdict.
UNDISTURBED = {"eval_strategy": "no", "eval_generate": 0, "save_strategy": "no", "load_best_model_at_end": False,
               "metric_for_best_model": None, "push_to_hub": False}  # fmt: skip
SHOWN_SETTINGS = (
    "model_name_or_path", "dataset_name", "task", "task_args", "load_in_4bit", "dtype", "lora_r", "objective",
    "warmup_source", "num_warmups", "max_warmup_length", "warmup_separator", "warmup_anchor", "learning_rate",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
    "max_train_samples",
)  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """A planned comparison that has passed every check that needs no training.

    Attributes:
        folder: where runs and reports are written.
        arms, seeds: each arm runs with each seed.
        metric: the metric that arms are compared by.
        recipe: the recipe that the arms change.
        options: the options of `compare`.
        rows: fingerprint of the rows to score on.
        settings: the recipe's settings that the report lists.
        num_curve_rows, num_test_rows: how many rows the learning curves and the verdict are scored on.
        overwrite: whether to replace the comparison that the folder holds.
    """

    folder: Path
    arms: list[Arm]
    seeds: list[int]
    metric: str
    recipe: Recipe
    options: CompareOptions
    rows: str
    settings: dict[str, Any]
    num_curve_rows: int
    num_test_rows: int
    overwrite: bool

    @property
    def num_runs(self) -> int:
        return len(self.arms) * len(self.seeds)

    @property
    def reports(self) -> list[Path]:
        return [self.folder / name for name in REPORTS]

    def place(self, arm: Arm, seed: int) -> Path:
        return self.folder / RUNS / arm.name.replace(" ", "_").replace("/", "-") / f"seed-{seed}"

    def job(self, arm: Arm, seed: int, **more: Any) -> Job:
        return Job(
            arm=arm.name,
            kind=arm.kind,
            seed=seed,
            options=self.recipe.with_overrides({**arm.changes, **more, **UNDISTURBED}).values,
            max_samples=self.options.max_samples,
            curve_points=self.options.curve_points,
            curve_samples=self.options.curve_samples,
            eval_batch_size=self.options.eval_batch_size,
            sampled_warmups=self.options.sampled_warmups,
            rows=self.rows,
            at_a_time=self.options.jobs,
        )


# ---- Planning, before anything is trained ----


def plan_experiment(recipe: Recipe, options: CompareOptions) -> Experiment:
    """Check everything that can be checked without training.

    Raises:
        ValueError: bad input, or a folder that holds something other than this comparison.
    """
    check_compare_options(options)
    settings = TrainingSettings.of(recipe)
    arms = planned_arms(recipe, settings, options)
    seeds = read_seeds(options.seeds)
    check_base_is_named(settings.model)
    check_attention(settings.model.attn_implementation)
    curve, test = rows_to_compare_on(
        settings.script, settings.run, options.max_samples, options.curve_samples, settings.training.eval_metrics
    )
    check_rows(len(test), arms)
    load_tokenizer(
        settings.model.model_name_or_path,
        settings.model.model_revision,
        trust_remote_code=settings.training.trust_remote_code,
    )
    model_config(settings.model.model_name_or_path, settings.training)
    values = {name: value for part in settings for name, value in vars(part).items()}
    folder = Path(recipe.overrides.get("output_dir", f"{settings.training.output_dir}-compare"))
    overwrite = recipe.overrides.get("overwrite_output_dir", False)
    check_folder(folder, overwrite)
    return Experiment(
        folder=folder,
        arms=arms,
        seeds=seeds,
        metric=task_to_score(settings.run.task, settings.training.eval_metrics).metric_names[0],
        recipe=recipe.without(*OWN_OPTIONS),
        options=options,
        rows=fingerprint([*curve, *test]),
        settings=shown_settings(values),
        num_curve_rows=len(curve) if options.curve_points else 0,
        num_test_rows=len(test),
        overwrite=overwrite,
    )


def shown_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the report lists; of the two lengths of a training the one that rules."""
    unused = "num_train_epochs" if values["max_steps"] > 0 else "max_steps"
    names = [name for name in SHOWN_SETTINGS if name != unused]
    return {name: values[name] for name in names if values.get(name) not in (None, "", {})}


def planned_arms(recipe: Recipe, settings: TrainingSettings, options: CompareOptions) -> list[Arm]:
    """The arms that `options` names, with every swept value. Raises ValueError where one cannot run."""
    arms = asked_arms(options, settings.training.warmup_anchor, recipe.names)
    for arm in arms:
        check_arm(arm, recipe)
    return arms


def check_arm(arm: Arm, recipe: Recipe) -> None:
    """Raise ValueError with the arm's name where its settings cannot work."""
    try:
        settings = TrainingSettings.of(recipe.with_overrides(arm.changes))
        check_training_counts(settings.training)
    except ValueError as error:
        raise ValueError(f"The arm {arm.name} cannot run: {error}") from error


def check_rows(num_rows: int, arms: Sequence[Arm]) -> None:
    """Raise ValueError where there are too few test rows for any difference to be significant."""
    num_arms = sum(arm.method not in (SFT, MORE_SFT) for arm in arms)
    least = least_rows(num_arms)
    if num_rows < least:
        raise ValueError(
            f"{num_rows} test rows are too few: no difference between {num_arms} arms and SFT can be significant, "
            f"even if one arm is right in all of them and SFT in none. Give at least {least}; with 500 the minimum "
            f"detectable effect is about {100 * minimum_detectable_effect(500):.0f} points."
        )


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where the folder holds other files, or a comparison of another version to be kept."""
    check_writable(folder, "--output_dir")
    is_replaced = overwrite and (folder / COMPARISON_NAME).is_file()
    if not is_replaced and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        check_format(folder)


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Remove the comparison in the folder, or continue it. Call this only while holding the folder's lock."""
    if overwrite:
        shutil.rmtree(folder / RUNS, ignore_errors=True)
        for name in REPORTS:
            (folder / name).unlink(missing_ok=True)
    mark_format(folder)


# ---- Running ----


def run_experiment(experiment: Experiment, command: str = "") -> Comparison:
    """Run every arm with every seed that is not done yet, and write the report.

    Args:
        command: the command line, for the report.

    Raises:
        ValueError: a run in the folder had other settings, or another comparison is running there.
        OSError: the disk is full. Finished runs are kept.
    """
    again = "Finished runs are kept: free some space and run the same command again."
    with only_one(experiment.folder), saying_where_the_disk_is_full(experiment.folder, lambda: again):
        prepare_folder(experiment.folder, experiment.overwrite)
        return run_all(experiment, command)


def run_all(experiment: Experiment, command: str) -> Comparison:
    first = [arm for arm in experiment.arms if arm.kind != MORE_SFT]
    runs: dict[str, list[Run]] = {arm.name: [] for arm in experiment.arms}

    def ended(run: Run) -> None:
        runs[run.arm] = sorted([*runs[run.arm], run], key=lambda each: each.seed)

    def report() -> Comparison:
        comparison = comparison_of(experiment, runs, command)
        write_report(comparison, experiment.folder)
        return comparison

    runner = Runner(experiment.num_runs, experiment.options.jobs, ended, report)
    runner.run(
        [(experiment.place(arm, seed), experiment.job(arm, seed)) for seed in experiment.seeds for arm in first]
    )
    for arm in experiment.arms:
        if arm.kind == MORE_SFT:
            jobs = more_sft_jobs(experiment, arm, runs)
            runner.run(jobs)
            for seed in experiment.seeds if not jobs else ():
                ended(Run(arm.name, seed, error="SFT or every warmup arm failed, so the number of steps is unknown."))
    return report()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock the folder, and end the runs when this process is ended. Raises ValueError where it is locked already."""
    folder.mkdir(parents=True, exist_ok=True)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with FileLock(folder / LOCK_NAME, timeout=0):
            yield
    except Timeout as error:
        raise ValueError(
            f"Another comparison is running in {folder}. Wait for it, or choose another folder."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def more_sft_jobs(experiment: Experiment, arm: Arm, runs: dict[str, list[Run]]) -> list[tuple[Path, Job]]:
    """SFT with as many steps as fit in the slowest warmup arm's time; no jobs where SFT or all warmup arms failed."""

    def done(other: Arm) -> list[Run]:
        return [run for run in runs[other.name] if run.error is None]

    paired = [other for other in experiment.arms if other.is_paired_with(arm)]
    sft = next((done(other) for other in paired if other.method == SFT), [])
    slowest = max(
        (mean_seconds(done(other)) for other in paired if other.has_warmups and not other.is_control and done(other)),
        default=0.0,
    )
    if not sft or not slowest:
        return []
    steps = max(1, round(sft[0].steps * slowest / mean_seconds(sft)))
    return [(experiment.place(arm, seed), experiment.job(arm, seed, max_steps=steps)) for seed in experiment.seeds]


def mean_seconds(runs: Sequence[Run]) -> float:
    return sum(run.train_seconds for run in runs) / len(runs)


def comparison_of(experiment: Experiment, runs: dict[str, list[Run]], command: str) -> Comparison:
    shared = [SHARED_MACHINE] if any(run.at_a_time > 1 for each in runs.values() for run in each) else []
    devices = sorted({run.device for each in runs.values() for run in each if run.device})
    names = ("warmup_peft", "trl", "transformers", "peft", "torch")
    comparison = summarize(
        experiment.arms,
        runs,
        experiment.metric,
        goal_of(experiment),
        experiment.num_runs,
        num_test_rows=experiment.num_test_rows,
        num_curve_rows=experiment.num_curve_rows,
        settings={
            **experiment.settings,
            "seeds": ", ".join(map(str, experiment.seeds)),
            "jobs at a time": experiment.options.jobs,
        },
        versions={**{name: version(name) for name in names}, "device": "; ".join(devices)},
        command=command,
    )
    return dataclasses.replace(comparison, notes=[*comparison.notes, *shared])


def goal_of(experiment: Experiment) -> float | None:
    default = DEFAULT_GOAL if experiment.metric == "accuracy" else None
    return (experiment.options.goal or default) if experiment.options.curve_points else None
