"""`warmup-peft compare`: the arms of a recipe, each with each seed, and what can be said of them.

Every run has its own process and folder (`runs/<arm>/seed-<n>`), so what is done stays done. The report is written
anew whenever a run ends.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from warmup_peft.comparison.arms import MORE_SFT, SFT, Arm, choose_arms, swept_arms
from warmup_peft.comparison.formatting import estimate_text, p_text
from warmup_peft.comparison.report.comparison_report import write_report
from warmup_peft.comparison.results import COMPARISON_NAME, Comparison, Difference, Job, Run, check_format, mark_format
from warmup_peft.comparison.runner import Runner
from warmup_peft.comparison.significance import least_rows, minimum_detectable_effect
from warmup_peft.comparison.summary import summarize
from warmup_peft.evaluation.rows import rows_to_compare_on
from warmup_peft.evaluation.tasks import find_task, fingerprint
from warmup_peft.evaluation.wording import metric_name, points_text, score_text
from warmup_peft.files import check_writable, saying_where_the_disk_is_full
from warmup_peft.inference.loading import check_is_no_adapter, load_tokenizer
from warmup_peft.settings.arguments import CompareOptions, check_counts
from warmup_peft.settings.parsing import read_config, with_config_apart
from warmup_peft.training.build import check_training_counts
from warmup_peft.training.checks import model_config
from warmup_peft.training.config import parse_training, training_fields

RUNS, LOCK_NAME = "runs", ".lock"
DEFAULT_GOAL = 0.8  # accuracy
SHARED_MACHINE = "Several runs shared the machine, so seconds, and the steps of more_sft, are only roughly comparable."
REPORTS = ("report.html", "report.md")
COMPARE_OPTIONS = {option.name for option in dataclasses.fields(CompareOptions)}
OWN_OPTIONS = COMPARE_OPTIONS | {"seed", "output_dir", "overwrite_output_dir"}
# Nothing but training happens in the time that is measured, and nothing is chosen on the rows of the verdict.
UNDISTURBED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False}
SAME_FOR_ALL = ("dataset_name", "dataset_config", "dataset_test_split", "test_split_size", "task", "task_args",
                "answer_format")  # fmt: skip
SHOWN_SETTINGS = (
    "model_name_or_path", "dataset_name", "task", "task_args", "load_in_4bit", "dtype", "lora_r", "objective",
    "warmup_source", "num_warmups", "max_warmup_length", "warmup_separator", "warmup_anchor", "learning_rate",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length",
    "max_train_samples",
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """What is to be compared, after every check that needs no training.

    Attributes:
        folder: of the comparison.
        arms, seeds: each arm runs with each seed.
        metric: what arms are compared by.
        argv: the recipe's options as on the command line.
        command: all of the command line.
        rows: fingerprint of the rows to score on.
        recipe: what its YAML file holds.
        settings: of the recipe, to show.
        num_curve_rows, num_test_rows: how many rows there are to score.
        options: those of `compare`.
        overwrite: whether the command line says to replace the comparison that the folder holds.
    """

    folder: Path
    arms: list[Arm]
    seeds: list[int]
    metric: str
    argv: list[str]
    recipe: dict[str, Any]
    command: str
    rows: str
    settings: dict[str, Any]
    num_curve_rows: int
    num_test_rows: int
    options: CompareOptions
    overwrite: bool

    def place(self, arm: Arm, seed: int) -> Path:
        return self.folder / RUNS / arm.name.replace(" ", "_").replace("/", "-") / f"seed-{seed}"

    def job(self, arm: Arm, seed: int, **more: Any) -> Job:
        changes = {**arm.changes, **more, **UNDISTURBED, "seed": seed}
        return Job(
            arm=arm.name,
            kind=arm.kind,
            argv=[*self.argv, *as_argv(changes)],
            recipe=self.recipe,
            max_samples=self.options.max_samples,
            curve_points=self.options.curve_points,
            curve_samples=self.options.curve_samples,
            eval_batch_size=self.options.eval_batch_size,
            rows=self.rows,
            at_a_time=self.options.jobs,
        )


def run_compare(argv: Sequence[str]) -> None:
    """Train and score every arm with every seed that is not done yet, and report.

    Raises:
        ValueError: bad input, before anything is trained; or every run failed.
        OSError: the disk is full. What was done until then is kept.
    """
    setup = read_setup(argv)
    check_folder(setup.folder, setup.overwrite)
    again = "What is done is kept: free some space and run the same command again."
    with only_one(setup.folder), saying_where_the_disk_is_full(setup.folder, lambda: again):
        prepare_folder(setup.folder, setup.overwrite)
        run_setup(setup)


def run_setup(setup: Setup) -> None:
    first = [arm for arm in setup.arms if arm.method != MORE_SFT]
    runs: dict[str, list[Run]] = {arm.name: [] for arm in setup.arms}
    planned = len(setup.arms) * len(setup.seeds)

    def ended(run: Run) -> None:
        runs[run.arm] = sorted([*runs[run.arm], run], key=lambda each: each.seed)

    def report() -> Comparison:
        comparison = comparison_of(setup, runs, planned)
        write_report(comparison, setup.folder)
        return comparison

    runner = Runner(planned, setup.options.jobs, ended, report)
    runner.run([(setup.place(arm, seed), setup.job(arm, seed)) for seed in setup.seeds for arm in first])
    for arm in setup.arms:
        if arm.method == MORE_SFT:
            jobs = more_sft_jobs(setup, arm, runs)
            runner.run(jobs)
            for seed in setup.seeds if not jobs else ():
                ended(Run(arm.name, seed, error="SFT or every warmup arm failed, so there is no time to train for."))
    comparison = report()
    show(comparison, [setup.folder / name for name in REPORTS])
    if not any(summary.seeds for summary in comparison.arms):
        raise ValueError(f"Every run failed, the first one so: {next(iter(comparison.arms[0].failures.values()))}")


# ---- Before anything is trained ----


def read_setup(argv: Sequence[str]) -> Setup:
    """Raises ValueError for bad input."""
    argv = gather(normal(argv), "--sweep")
    recipe = read_config(argv) or {}
    for name in recipe:
        if name in COMPARE_OPTIONS:
            raise ValueError(f"The recipe has the key '{name}', which is compare's own. Give it as --{name} instead.")
    script, run_options, args, model_args, options = parse_training(argv, CompareOptions)
    check_counts(options, curve_points=0, curve_samples=1, max_samples=1, eval_batch_size=1, jobs=1)
    if options.goal is not None and not 0 < options.goal <= 1:
        raise ValueError(f"goal={options.goal} cannot work. Scores are between 0 and 1.")
    fields = [name for name in training_fields() if name not in (*OWN_OPTIONS, *SAME_FOR_ALL)]
    chosen = choose_arms(split(options.arms), args.warmup_anchor)
    arms = swept_arms(chosen, options.sweep, fields)
    recipe_argv = without(argv, OWN_OPTIONS)
    for arm in arms:
        check_arm(arm, recipe_argv)
    if model_args.model_name_or_path is None:
        raise ValueError("No model is named. Set --model_name_or_path to a folder or a Hub id.")
    check_is_no_adapter(model_args.model_name_or_path)
    curve, test = rows_to_compare_on(script, run_options, options.max_samples, options.curve_samples)
    check_rows(len(test), sum(arm.method not in (SFT, MORE_SFT) for arm in arms))
    if model_args.model_name_or_path is None:
        raise ValueError("No model is named. Set --model_name_or_path to a folder or a Hub id.")
    load_tokenizer(model_args.model_name_or_path, model_args.model_revision)
    model_config(model_args.model_name_or_path, args)

    named = {word.split("=")[0] for word in argv}
    values = {**vars(script), **vars(run_options), **vars(args), **vars(model_args)}
    return Setup(
        folder=Path(args.output_dir if "--output_dir" in named else f"{args.output_dir}-compare"),
        arms=arms,
        seeds=read_seeds(options.seeds),
        metric=find_task(run_options.task).metrics[0],
        argv=recipe_argv,
        recipe=recipe,
        command=shlex.join(["warmup-peft", "compare", *argv]),
        rows=fingerprint([*curve, *test]),
        settings={name: values[name] for name in SHOWN_SETTINGS if values.get(name) not in (None, "", {})},
        num_curve_rows=len(curve) if options.curve_points else 0,
        num_test_rows=len(test),
        options=options,
        overwrite="--overwrite_output_dir" in named and run_options.overwrite_output_dir,
    )


def normal(argv: Sequence[str]) -> list[str]:
    """Options with underscores, as one of the two spellings that the parser takes; `--config=x` in two words."""
    words = [word.split("=", 1) for word in with_config_apart(argv)]
    return [
        "=".join([name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name, *value])
        for name, *value in words
    ]


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


def gather(argv: Sequence[str], flag: str) -> list[str]:
    """Put all values of a flag that is given several times behind one."""
    kept: list[str] = []
    values: list[str] = []
    is_inside = False
    for word in argv:
        if word.startswith("--"):
            is_inside = word.split("=")[0] == flag
            if is_inside:
                values += word.split("=", 1)[1:]
                continue
        (values if is_inside else kept).append(word)
    return [*kept, *([flag, *values] if values else [])]


def without(argv: Sequence[str], names: set[str]) -> list[str]:
    """The command line without these options and their values."""
    kept: list[str] = []
    is_dropped = False
    for word in argv:
        if word.startswith("--"):
            is_dropped = word[2:].split("=")[0] in names
        if not is_dropped:
            kept.append(word)
    return kept


def as_argv(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def check_arm(arm: Arm, argv: Sequence[str]) -> None:
    """Raise ValueError, naming the arm, where its settings cannot work."""
    try:
        _, _, args, _ = parse_training([*argv, *as_argv(dict(arm.changes))])
        check_training_counts(args)
    except ValueError as error:
        raise ValueError(f"The arm {arm.name} cannot run: {error}") from error


def check_rows(num_rows: int, num_arms: int) -> None:
    """Refuse, or warn, where so few test rows can show no difference, or only a large one."""
    least = least_rows(num_arms)
    if num_rows < least:
        raise ValueError(
            f"{num_rows} test rows cannot show any difference between {num_arms} arms and SFT, even if one is right "
            f"in all of them and SFT in none. Give at least {least}; 500 show differences from about "
            f"{100 * minimum_detectable_effect(500):.0f} points."
        )
    visible = minimum_detectable_effect(num_rows)
    if visible > 0.1:
        print(
            f"{num_rows} test rows: differences below about {100 * visible:.0f} points will probably not show. More "
            "rows show smaller ones."
        )


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where the folder holds something else than a comparison, or one of another version to keep."""
    check_writable(folder)
    is_replaced = overwrite and (folder / COMPARISON_NAME).is_file()
    if not is_replaced and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        check_format(folder)


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Remove the comparison that the folder holds, or take it over. Only who holds its lock may call this."""
    if overwrite:
        shutil.rmtree(folder / RUNS, ignore_errors=True)
        for name in REPORTS:
            (folder / name).unlink(missing_ok=True)
    mark_format(folder)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Raise ValueError where another comparison works in this folder; end the runs when this one is ended."""
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


# ---- SFT for as long as a warmup arm took ----


def more_sft_jobs(setup: Setup, arm: Arm, runs: dict[str, list[Run]]) -> list[tuple[Path, Job]]:
    """SFT with as many steps as it takes in the time of the slowest warmup arm; nothing where either failed."""

    def done(other: Arm) -> list[Run]:
        return [run for run in runs[other.name] if run.error is None]

    paired = [other for other in setup.arms if other.is_paired_with(arm)]
    sft = next((done(other) for other in paired if other.method == SFT), [])
    slowest = max(
        (mean_seconds(done(other)) for other in paired if other.has_warmups and not other.is_control and done(other)),
        default=0.0,
    )
    if not sft or not slowest:
        return []
    steps = max(1, round(sft[0].steps * slowest / mean_seconds(sft)))
    return [(setup.place(arm, seed), setup.job(arm, seed, max_steps=steps)) for seed in setup.seeds]


def mean_seconds(runs: Sequence[Run]) -> float:
    return sum(run.train_seconds for run in runs) / len(runs)


# ---- What is shown ----


def comparison_of(setup: Setup, runs: dict[str, list[Run]], planned: int) -> Comparison:
    shared = [SHARED_MACHINE] if any(run.at_a_time > 1 for each in runs.values() for run in each) else []
    devices = sorted({run.device for each in runs.values() for run in each if run.device})
    names = ("warmup_peft", "trl", "transformers", "peft", "torch")
    comparison = summarize(
        setup.arms,
        runs,
        setup.metric,
        goal_of(setup),
        planned,
        num_test_rows=setup.num_test_rows,
        num_curve_rows=setup.num_curve_rows,
        settings={**setup.settings, "seeds": ", ".join(map(str, setup.seeds)), "jobs at a time": setup.options.jobs},
        versions={**{name: version(name) for name in names}, "device": "; ".join(devices)},
        command=setup.command,
    )
    return dataclasses.replace(comparison, notes=[*comparison.notes, *shared])


def goal_of(setup: Setup) -> float | None:
    default = DEFAULT_GOAL if setup.metric == "accuracy" else None
    return (setup.options.goal or default) if setup.options.curve_points else None


def show(comparison: Comparison, paths: Sequence[Path]) -> None:
    console = Console()
    console.print(arms_table(comparison))
    for note in comparison.notes:
        console.print(f"- {note}", highlight=False)
    console.print(f"\n[bold]{comparison.verdict}[/bold]", highlight=False)
    print("Report: " + ", ".join(map(str, paths)))


def arms_table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.num_test_rows} test rows")
    for column in (
        "arm",
        metric_name(comparison.metric),
        "points against sft",
        "95% interval",
        "adjusted p",
        "seconds",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in comparison.arms:
        if not arm.seeds:
            table.add_row(arm.name, "failed" if arm.failures else "not run")
            continue
        seconds = "" if arm.train_seconds is None else f"{arm.train_seconds.mean:,.0f}"
        score = estimate_text(arm.metrics[comparison.metric], partial(score_text, comparison.metric))
        table.add_row(arm.name, score, *against_sft(arm.versus_sft), seconds)
    return table


def against_sft(difference: Difference | None) -> tuple[str, str, str]:
    if difference is None:
        return "", "", ""
    ends = f"{points_text(difference.low)} to {points_text(difference.high)}"
    return points_text(difference.estimate), ends, p_text(difference.p_adjusted)
