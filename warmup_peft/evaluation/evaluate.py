"""Score a model, with its warmups and in other ways, on held-out rows: `warmup_peft.evaluate`."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import PeftModel
from rich.table import Table

from warmup_peft.evaluation.answering import Bars, Ids, Marks
from warmup_peft.evaluation.held_out import PLAIN, REPLACED, check_warmups
from warmup_peft.evaluation.metric import RowStatistics
from warmup_peft.evaluation.prediction import Prediction, Scores, score_predictions, share_of_options
from warmup_peft.evaluation.predictor import Predictor, dots, empty, shuffled
from warmup_peft.evaluation.rows import (
    RowsToScore,
    held_out_questions,
    questions_to_score,
    task_to_score,
)
from warmup_peft.evaluation.score_texts import NOTHING, metric_name, printed, score_text
from warmup_peft.evaluation.tasks import Question, Task, is_multiple_choice, task_args_of
from warmup_peft.export.model_card import score_columns
from warmup_peft.inference.folder import TrainingRecord, WarmupConfig, training_seconds
from warmup_peft.inference.hub import local_folder
from warmup_peft.inference.loading import (
    LoadedModel,
    Loading,
    end_with_the_tokenizer,
    load_folder,
    switches_off,
    why_no_base,
)
from warmup_peft.inference.scores import ARM_NAMES
from warmup_peft.method.model import adapter_off, keeps_initial_weights
from warmup_peft.settings.arguments import EvaluateArguments, check_counts

if TYPE_CHECKING:
    import pandas

RECORDED_SETTINGS = ("objective", "warmup_source", "num_warmups", "warmup_sampling", "warmup_anchor", "seed", "steps")


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model on the same rows after different texts. Prints as a table and its conclusions.

    Attributes:
        scores: of each arm (`base`, `base_with_warmup`, `sft`, `warmup`, `plain`, `shuffled`, `dots`, `none`, those
            asked for): the task's metrics, between 0 and 1; perplexity of the reference, a token; `n` rows.
        source: where the rows come from, in words.
        sentences: whether warmups are read, how far SFT comes, and how long both were trained.
        left_out: metrics that could not be computed, with the reason.
        questions, predictions: the rows, and the model's answers after its own warmups, in the same order.
        settings: of the model's training, as far as it is recorded.
        are_trained_on: whether the model was trained on these rows, or may have been.
    """

    scores: dict[str, dict[str, float]]
    source: str
    sentences: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    questions: Sequence[Question] = field(default=(), repr=False)
    predictions: Sequence[Prediction] = field(default=(), repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    are_trained_on: bool = False

    @property
    def num_rows(self) -> int:
        return len(self.questions)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """A copy of `scores`."""
        return copy.deepcopy(self.scores)

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each arm, and a column for each score."""
        rows = [{"arm": ARM_NAMES[name], **scores} for name, scores in self.scores.items()]
        columns = dict.fromkeys(name for row in rows for name in row)
        return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows]).to_pandas()

    def __str__(self) -> str:
        table = scores_table(self.scores, self.source)
        return "\n".join([printed(lambda console: console.print(table), 100), *self.sentences])


def evaluate(
    model: Any, dataset: str | Dataset | Iterable[dict] | None = None, task: str | Task | None = None, **options: Any
) -> Evaluation:
    """Score an adapter after its warmups, and its base. Writes no file.

    Args:
        model: folder of an adapter or of a merged model, or its id on the Hub; or a `WarmupSFTTrainer`, whose model is
            scored as it is, where it is.
        dataset: a file, folder or Hub id, of which the test split is scored; or the rows themselves. By default the
            data of the training, if its record names them.
        task: a `Task`, or its name, or the path of its file. By default that of the training, if it is a built-in one;
            without one, `prompt_completion`.
        options: as of `warmup-peft evaluate`: `warmups` ("own,shuffled,none"), `sft`, `compare_base`, `metrics`,
            `max_samples`, `batch_size`, `max_new_tokens` (tokens), `task_args`, `answer_format`, `dataset_config`,
            `dataset_test_split`; and how folders are loaded: `device` (such as "cuda:1"; by default the first GPU,
            else the CPU), `device_map` (transformers', instead of `device`), `revision` of an id on the Hub (by
            default its main branch), `trust_remote_code` (False: Python code that a model brings is not run).

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    asked = EvaluateArguments(name_of(model), task=task, **options)  # type: ignore[arg-type]  # or a Task
    check_counts(asked, batch_size=1, max_samples=1, max_new_tokens=0)
    subject = Subject.of(model, asked)
    check_warmups(asked, subject.config, None if asked.sft is None else WarmupConfig.load(local_folder(asked.sft)))
    record = subject.record
    task, questions, source, are_trained_on = subject.questions(dataset, asked)
    check_answers(asked, questions)
    loaded = subject.load()
    arms = evaluate_arms(loaded, questions, task, asked)
    scored = {name: score_predictions(task.metric_names, questions, predictions) for name, predictions in arms.items()}
    scores = {name: scores_of(scored[name], questions, arms[name]) for name in arms}
    scores.get(PLAIN, {}).pop("perplexity", None)  # which is of the reference after no warmup
    return Evaluation(
        scores,
        source,
        [
            *what_it_shows({name: each.statistics[task.metric_names[0]] for name, each in scored.items()}),
            *how_long(None if asked.sft is None else local_folder(asked.sft), model),
        ],
        scored["warmup"].left_out,
        questions,
        arms["warmup"],
        {
            **{key: record.settings.get(key) for key in RECORDED_SETTINGS},
            "max_warmup_length": loaded.warmup_config.max_warmup_length,
            "warmup_separator": loaded.warmup_config.warmup_separator,
            "base_model": record.base_model,
            "data": source,
        },
        are_trained_on,
    )


@dataclass(frozen=True)
class Subject:
    """A model that is to answer, before it is loaded.

    Attributes:
        config: what its decoding needs.
        record: of its training; its `data` and `settings` are empty where nothing is known.
        load: loads the model, or gives the trainer's.
    """

    config: WarmupConfig
    record: TrainingRecord
    load: Callable[[], LoadedModel]

    @classmethod
    def of(cls, model: Any, options: Any) -> Subject:
        """Of a folder, an id on the Hub or a trainer. Raises ValueError where it is none of them.

        Args:
            options: `revision`, and those that `Loading.of` reads.
        """
        loading = Loading.of(options)
        if isinstance(model, str | Path):
            folder = local_folder(str(model), options.revision)
            record = TrainingRecord.load(folder) or TrainingRecord(base_model="")
            return cls(WarmupConfig.load(folder), record, lambda: load_folder(folder, loading))
        if options.revision is not None:
            raise ValueError(f"A trainer's model has no revisions. Leave revision={options.revision} out.")
        record = TrainingRecord(base_model="", data=model.data_record)
        return cls(model.warmup_config, record, lambda: loaded_of(model))

    def questions(self, dataset: str | Path | Iterable[dict] | None, options: EvaluateArguments) -> RowsToScore:
        """The task, the questions that it reads from the data, and where they come from.

        Args:
            dataset: a file, folder or Hub id, or the rows; None for the data of the training.
        """
        metrics = self.record.settings.get("eval_metrics")
        if dataset is None or isinstance(dataset, str | Path):
            named = dataclasses.replace(options, dataset_name=None if dataset is None else str(dataset))
            return held_out_questions(named, self.record.data, metrics)
        return given_questions(options, dataset, metrics)


def name_of(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def given_questions(options: EvaluateArguments, rows: Iterable[dict], eval_metrics: str | None) -> RowsToScore:
    """As `held_out_questions`, of rows that the caller has. Raises ValueError where there are none."""
    task = task_to_score(options.task, eval_metrics, options.metrics)
    questions = questions_to_score(task, list(rows)[: options.max_samples], task_args_of(options))
    if not questions:
        raise ValueError("The dataset to score on has no rows. Give it at least one.")
    return RowsToScore(task, questions, f"{len(questions)} given rows")


def loaded_of(trainer: Any) -> LoadedModel:
    end_with_the_tokenizer(trainer.model, trainer.processing_class)
    return LoadedModel(trainer.model, trainer.processing_class, trainer.warmup_config, None)


def check_answers(options: EvaluateArguments, questions: Sequence[Question]) -> None:
    """Raise ValueError for options that do not fit the kind of the questions."""
    if PLAIN in options.warmups.split(",") and is_multiple_choice(questions):
        raise ValueError(
            "--warmups plain is about written answers, and this task chooses among options. Leave it out."
        )
    if options.max_new_tokens == 0 and not is_multiple_choice(questions):
        raise ValueError(
            "max_new_tokens=0 writes no answer, and answers are what this task scores. Set it to 1 or more, or leave "
            "it out."
        )


def evaluate_arms(
    loaded: LoadedModel, questions: Sequence[Question], task: Task, options: EvaluateArguments
) -> dict[str, list[Prediction]]:
    """Predictions of the base (directly, and after its own warmups), of SFT, and of the adapter after each warmup."""

    own_config = loaded.warmup_config
    limit = task.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens
    progress = Bars()

    def predictor(loaded: LoadedModel, warmup_config: WarmupConfig | None, marks: Marks | None = None) -> Predictor:
        directly: dict[str, Any] = {"room_to_think": own_config.room, "template": own_config.chat_template_kwargs}
        return Predictor(
            loaded.model,
            loaded.tokenizer,
            warmup_config,
            options.batch_size,
            progress=progress,
            **({**directly, "marks": marks} if warmup_config is None else {}),
        )

    def answer(name: str, predictor: Predictor, warmup_ids: list[Ids] | None = None) -> list[Prediction]:
        progress.name = name
        return predictor.answer(questions, limit, warmup_ids)

    own = predictor(loaded, own_config)
    arms = {}
    if options.compare_base and has_base(loaded):
        with adapter_off(loaded.model):
            arms["base"] = answer("base", predictor(loaded, None))
            arms["base_with_warmup"] = answer("base with its own warmup", own)
    if options.sft is not None:
        sft = load_folder(local_folder(options.sft), Loading.of(options))
        arms["sft"] = answer("SFT", predictor(sft, None))
    arms["warmup"] = answer("warmup", own)
    if PLAIN in options.warmups.split(","):
        marks = Marks(tuple(own_config.warmup_opening_ids), tuple(own_config.warmup_separator_ids))
        arms[PLAIN] = answer("one plain call", predictor(loaded, None, marks))
    warmup_ids = [list(prediction.warmup_ids) for prediction in arms["warmup"]]
    dot = loaded.tokenizer(" .", add_special_tokens=False)["input_ids"][-1]
    replaced = {"shuffled": shuffled(warmup_ids), "dots": dots(warmup_ids, dot), "none": empty(warmup_ids)}
    for name in REPLACED:
        if name in options.warmups.split(","):
            arms[name] = answer(name, own, replaced[name])
    return arms


def scores_of(scores: Scores, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, float]:
    """The scores of one arm in `metrics.json`."""
    share = share_of_options(questions, predictions)
    written = {} if share is None else {"generations_that_are_options": share}
    return {**scores.totals, **written, "n": len(questions)}


def has_base(loaded: LoadedModel) -> bool:
    """Whether the model equals its base when the adapter is switched off. Prints the reason if it does not."""
    model = loaded.model
    if not isinstance(model, PeftModel):
        return False
    if keeps_initial_weights(model) or switches_off(model):
        return True
    reasons = filter(None, map(why_no_base, model.peft_config.values()))
    reason = next(reasons, "weights of the base are trained")
    print(f"The base is not scored: {reason}, also with the adapter off.")
    return False


def scores_table(metrics: Mapping[str, Any], source: str) -> Table:
    arms = {name: metrics[key] for key, name in ARM_NAMES.items() if key in metrics}
    columns = score_columns(arms.values())
    table = Table(title=f"Held-out rows: {source}")
    table.add_column("")
    for key in (*columns, "n"):
        table.add_column(metric_name(key), justify="right", min_width=max(map(len, metric_name(key).split())))
    for name, scores in arms.items():
        shown = (score_text(column, scores[column]) if column in scores else NOTHING for column in columns)
        table.add_row(name, *shown, str(scores["n"]))
    return table


def what_it_shows(statistics: Mapping[str, RowStatistics]) -> list[str]:
    """Sentences: whether the warmups are read, and how far SFT comes, by the scores of the rows (two standard errors).

    Args:
        statistics: of each arm, by the task's first metric.
    """
    own = statistics["warmup"]

    def is_better_than(name: str) -> bool:
        gained = own.row_scores - statistics[name].row_scores
        return gained.mean() > 2 * gained.std() / math.sqrt(len(gained))

    found = []
    if "sft" in statistics:
        better = "better than" if is_better_than("sft") else "no better than"
        found.append(f"The adapter is {better} SFT: {own.total():.3f} against {statistics['sft'].total():.3f}.")
    if "shuffled" in statistics and "none" in statistics:
        shuffled, none = (f"{statistics[name].total():.3f}" for name in ("shuffled", "none"))
        if is_better_than("shuffled"):
            found.append(f"Its warmups are read: after another row's it has {shuffled}, after none {none}.")
        elif is_better_than("none"):
            found.append(
                f"Its warmups are a pause: another row's serves as well ({shuffled}), none does not ({none})."
            )
        else:
            found.append(f"Its warmups are not used: after another row's it has {shuffled}, after none {none}.")
    return found


def how_long(sft: str | None, model: Any) -> list[str]:
    """A sentence on how long SFT and the model were trained, where both of their folders say so."""
    of_sft = None if sft is None else training_seconds(sft)
    own = training_seconds(model) if isinstance(model, str | Path) else None
    if of_sft is None or own is None:
        return []
    return [f"The adapter was trained for {own:,.0f} seconds, SFT for {of_sft:,.0f}."]
