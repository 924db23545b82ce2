"""`warmup-peft inspect`: what a run's warmups say, and where they change the answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from warmup_peft.comparison.phrases import CLASSES, Inspection, changed, class_of, most_common
from warmup_peft.comparison.report.inspection import write_inspection
from warmup_peft.comparison.significance import compare_with
from warmup_peft.evaluation.metrics import is_right_or_wrong, metric_name, score_text
from warmup_peft.evaluation.predictor import Predictor, as_rows, bars, empty, score_predictions
from warmup_peft.evaluation.rows import held_out_questions
from warmup_peft.evaluation.tasks import find_task
from warmup_peft.files import check_writable
from warmup_peft.inference.folder import TrainingRecord, WarmupConfig
from warmup_peft.inference.loading import load_folder
from warmup_peft.settings.arguments import EvaluateArguments, InspectArguments, check_counts

SHARED_OPTIONS = ("dataset_name", "dataset_config", "dataset_test_split", "task", "task_args", "max_samples")
EXAMPLES = 5  # of each class
CHANGED = 30  # rows of each kind in the report
WITH, WITHOUT = "with its warmup", "without"


def run_inspection(options: InspectArguments) -> None:
    """Answer held-out rows with and without warmups; show and write what was found.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    check_counts(options, batch_size=1, max_samples=1)
    if WarmupConfig.load(options.run).max_warmup_length == 0:
        raise ValueError(f"{options.run} writes no warmups (max_warmup_length is 0), so there is nothing to inspect.")
    folder = Path(options.output_dir or options.run)
    check_writable(folder, "--output_dir")
    inspection = inspect(options)
    paths = write_inspection(inspection, folder)
    show(inspection)
    print("Report: " + ", ".join(map(str, paths)))


def inspect(options: InspectArguments) -> Inspection:
    record = TrainingRecord.load(options.run) or TrainingRecord(base_model="")
    asked = EvaluateArguments(options.run, **{name: getattr(options, name) for name in SHARED_OPTIONS})
    name, questions, source = held_out_questions(asked, record.data)
    task = find_task(name)
    loaded = load_folder(options.run)
    model = (loaded.model, loaded.tokenizer, loaded.warmup_config, options.batch_size)
    predictors = {arm: Predictor(*model, instead, bars(arm)) for arm, instead in ((WITH, None), (WITHOUT, empty))}
    predictions = {arm: predictor.answer(questions, task.max_new_tokens) for arm, predictor in predictors.items()}
    scores = {arm: score_predictions(task.metrics, questions, of) for arm, of in predictions.items()}
    first = task.metrics[0]
    found = {arm: of.statistics[first] for arm, of in scores.items()}
    rows = {arm: as_rows(questions, predictions[arm], found[arm].row_scores) for arm in found}
    classes = [class_of(row.warmup, row.reference) for row in rows[WITH]]
    counts = Counter(classes)
    better, worse = changed(rows[WITH], rows[WITHOUT], 1), changed(rows[WITH], rows[WITHOUT], -1)
    return Inspection(
        folder=options.run,
        metric=first,
        source=source + (f", the first {len(questions)}" if options.max_samples else ""),
        metrics={key: (score, scores[WITHOUT].totals[key]) for key, score in scores[WITH].totals.items()},
        difference=compare_with(WITHOUT, [([found[WITH]], [found[WITHOUT]])], is_right_or_wrong(first))[0],
        figures=predictors[WITH].warmup_metrics(questions, predictions[WITH]),
        classes={kind: counts[kind] / len(classes) for kind in CLASSES},
        examples={kind: [row for row, own in zip(rows[WITH], classes) if own == kind][:EXAMPLES] for kind in CLASSES},
        common=most_common(rows[WITH]),
        better=better[:CHANGED],
        worse=worse[:CHANGED],
        num_better=len(better),
        num_worse=len(worse),
        num_rows=len(questions),
    )


def show(inspection: Inspection) -> None:
    console = Console()
    first = inspection.metric
    scores = [score_text(first, value) for value in inspection.metrics[first]]
    kinds = Table(title="What the warmups say", show_header=False)
    for kind, share in inspection.classes.items():
        kinds.add_row(kind, f"{share:.0%}", CLASSES[kind])
    common = Table("warmup", "rows", metric_name(first), title="Most frequent")
    for each in inspection.common:
        common.add_row(escape(each.text) or "(empty)", str(each.count), score_text(first, each.score))
    console.print(kinds, common)
    console.print(
        f"{metric_name(first)} {scores[0]} with its warmup, {scores[1]} without one; it changed "
        f"{inspection.num_better} of {inspection.num_rows} rows for the better, {inspection.num_worse} for the worse.",
        highlight=False,
    )
