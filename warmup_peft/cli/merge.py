"""`warmup-peft merge`: merge an adapter into its base model, and compare the result with the adapter."""

from __future__ import annotations

from collections.abc import Sequence

from warmup_peft.evaluation.answering import Bars
from warmup_peft.evaluation.prediction import score_predictions
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.rows import held_out_questions
from warmup_peft.evaluation.score_texts import metric_name, points_text, score_text
from warmup_peft.evaluation.tasks import find_task, is_multiple_choice
from warmup_peft.export.merge import merge_adapter
from warmup_peft.files import saying_where_the_disk_is_full
from warmup_peft.inference.folder import TrainingRecord
from warmup_peft.inference.hub import with_local_folder
from warmup_peft.inference.loading import Loading, load_folder
from warmup_peft.settings.arguments import EvaluateArguments, MergeArguments, check_counts
from warmup_peft.settings.parsing import parse_one


def run(argv: Sequence[str]) -> None:
    """Merge, and compare the merged model with the adapter: its logits, and its score on held-out questions.

    Raises:
        ValueError: as `merge_adapter`, or the task is unknown.
    """
    options = with_local_folder(parse_one(MergeArguments, argv))
    check_counts(options, max_samples=0)
    if options.task is not None:
        find_task(options.task)
    again = "Nothing was replaced. Free some space and run the same command again."
    with saying_where_the_disk_is_full(options.output_dir, lambda: again):
        report = merge_adapter(
            options.adapter,
            options.output_dir,
            dtype=options.dtype,
            merge_base=options.merge_base,
            overwrite=options.overwrite_output_dir,
            max_shard_size=options.max_shard_size,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        )
    print(f"Merged into {report.output_dir}")
    print(f"Relative error of its logits against the adapter's: {report.relative_logit_error:.2e}")
    if options.max_samples > 0:
        print(score_change(options))
    print(f'Try it: warmup-peft generate --adapter {report.output_dir} --prompt "..."')


def score_change(options: MergeArguments) -> str:
    """A sentence with the first metric of adapter and merged model on held-out rows of the task."""
    record = TrainingRecord.load(options.adapter) or TrainingRecord(base_model="")
    try:
        held_out = EvaluateArguments(options.adapter, max_samples=options.max_samples, task=options.task)
        task, questions, source, _ = held_out_questions(held_out, record.data, record.settings.get("eval_metrics"))
    except (ValueError, OSError) as error:
        return f"Scores were not compared: {str(error).split(' Name other rows')[0]}"
    metric, max_new_tokens = task.metric_names[0], 0 if is_multiple_choice(questions) else task.max_new_tokens
    scores = []
    for name, folder in (("adapter", options.adapter), ("merged", options.output_dir)):
        loaded = load_folder(folder, Loading.of(options))
        predictor = Predictor(loaded.model, loaded.tokenizer, loaded.warmup_config, progress=Bars(name))
        predictions = predictor.answer(questions, max_new_tokens)
        scores.append(score_predictions([metric], questions, predictions).totals[metric])
    return (
        f"Held-out {metric_name(metric)} on {len(questions)} rows ({source}): "
        f"adapter {score_text(metric, scores[0])}, merged {score_text(metric, scores[1])} "
        f"({points_text(scores[1] - scores[0])} points)"
    )
