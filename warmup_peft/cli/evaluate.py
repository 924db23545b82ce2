"""`warmup-peft evaluate`: score an adapter and its base on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from warmup_peft.evaluation.metrics import NOTHING, RowStatistics, metric_name, score_text
from warmup_peft.evaluation.predictor import (
    Ids,
    Marks,
    Prediction,
    Predictor,
    Scores,
    answer_text,
    bars,
    dots,
    empty,
    score_predictions,
    share_of_options,
    shuffled,
)
from warmup_peft.evaluation.rows import held_out_questions
from warmup_peft.evaluation.tasks import Question, Task, is_multiple_choice
from warmup_peft.export.model_card import score_columns, write_model_card
from warmup_peft.inference.chat import check_template
from warmup_peft.inference.folder import HARNESS_NAME, METRICS_NAME, TrainingRecord, WarmupConfig, is_adapter
from warmup_peft.inference.hub import local_folder, with_local_folder
from warmup_peft.inference.loading import LoadedModel, Loading, load_folder, load_tokenizer, why_no_base
from warmup_peft.inference.scores import load_scores, save_scores
from warmup_peft.settings.arguments import EvaluateArguments, check_counts
from warmup_peft.settings.parsing import parse_one

RECORDED_SETTINGS = ("objective", "warmup_source", "num_warmups", "warmup_sampling", "warmup_anchor", "seed", "steps")
ARM_NAMES = {
    "base": "base, answering directly",
    "base_with_warmup": "base, after a warmup of its own",
    "sft": "SFT, answering directly",
    "warmup": "adapter, after its warmup",
    "plain": "adapter, in one plain call",
    "shuffled": "adapter, after another row's warmup",
    "dots": "adapter, after dots",
    "none": "adapter, after no warmup",
}
REPLACED = ("shuffled", "dots", "none")  # values of --warmups beside `own` and PLAIN
PLAIN = "plain"


def run(argv: Sequence[str]) -> None:
    run_evaluation(parse_one(EvaluateArguments, argv))


def run_evaluation(options: EvaluateArguments) -> None:
    """Score a model on held-out questions, write `metrics.json` and the model card, and print the scores.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    check_counts(options, batch_size=1, max_samples=1, max_new_tokens=0, num_examples=0, num_warmups=1)
    loading, named = Loading.of(options), options.adapter
    options = with_local_folder(options)
    is_own = options.adapter == named  # the Hub's cache is not to be changed
    WarmupConfig.load(options.adapter)
    check_warmups(options)
    if options.harness is not None:
        run_harness(options, loading, saves=is_own)
        return
    record = TrainingRecord.load(options.adapter) or TrainingRecord(base_model="")
    task, questions, source = held_out_questions(options, record.data, record.settings.get("eval_metrics"))
    if PLAIN in options.warmups.split(",") and is_multiple_choice(questions):
        raise ValueError(
            "--warmups plain is about written answers, and this task chooses among options. Leave it out."
        )
    if options.max_new_tokens == 0 and not is_multiple_choice(questions):
        raise ValueError(
            "max_new_tokens=0 writes no answer, and answers are what this task scores. Set it to 1 or more, or leave "
            "it out."
        )
    loaded = load_folder(options.adapter, loading)
    arms = evaluate_arms(loaded, questions, task, options)
    scored = {name: score_predictions(task.metrics, questions, predictions) for name, predictions in arms.items()}
    metrics: dict[str, Any] = {name: scores_of(scored[name], questions, arms[name]) for name in arms}
    metrics.get(PLAIN, {}).pop("perplexity", None)  # which is of the reference after no warmup
    metrics["settings"] = {
        **{key: record.settings.get(key) for key in RECORDED_SETTINGS},
        "max_warmup_length": loaded.warmup_config.max_warmup_length,
        "warmup_separator": loaded.warmup_config.warmup_separator,
        "base_model": record.base_model,
        "data": source,
    }
    path = Path(options.adapter, METRICS_NAME)
    if not is_own:
        print(f"{named} is on the Hub, so its scores are not saved. Download it (hf download) to keep them.")
    elif holds_scores_of_more(options.adapter, len(questions)):
        print(f"{path} holds the scores of more questions and stays as it is.")
    else:
        save_scores(options.adapter, METRICS_NAME, metrics)
        write_model_card(options.adapter)

    console = Console()
    console.print(scores_table(metrics, source))
    for sentence in what_it_shows({name: scores.statistics[task.metrics[0]] for name, scores in scored.items()}):
        console.print(sentence, highlight=False)
    console.print(examples_table(questions, arms["warmup"], options.num_examples))
    for name, reason in scored["warmup"].left_out.items():
        print(f"{metric_name(name)} is left out: {reason}.")
    if not is_own:
        return
    print(f"Scores: {path}\nAdapter and model card: {options.adapter}")
    if is_adapter(options.adapter):
        named = "" if options.task is None else f" --task {options.task}"
        print(f"Next: warmup-peft merge --adapter {options.adapter} --output_dir {options.adapter}-merged{named}")


def run_harness(options: EvaluateArguments, loading: Loading, saves: bool = True) -> None:
    """Score base and adapter on tasks of lm-evaluation-harness, write `harness.json` if it `saves`, print tables.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        ValueError: a task is unknown.
    """
    try:
        from lm_eval.utils import make_table

        from warmup_peft.evaluation.lm_eval_model import run_tasks
    except ImportError as error:
        raise ImportError("--harness needs lm-evaluation-harness. Run: pip install 'warmup_peft[eval]'") from error
    config = WarmupConfig.load(options.adapter)
    is_chat = config.uses_chat_template if options.apply_chat_template is None else options.apply_chat_template
    if is_chat:
        check_template(load_tokenizer(options.adapter, trust_remote_code=loading.trust_remote_code))
    loaded = load_folder(options.adapter, loading)
    settings = {"num_warmups": options.num_warmups, "batch_size": options.batch_size, "limit": options.max_samples}
    settings |= {"apply_chat_template": is_chat, "chat_template_kwargs": config.chat_template_kwargs}
    tasks = options.harness.split(",")
    arms = {}
    if options.compare_base and has_base(loaded):
        with loaded.model.disable_adapter():
            arms["base"] = run_tasks(loaded.model, loaded.tokenizer, None, tasks, **settings)
    arms["warmup"] = run_tasks(loaded.model, loaded.tokenizer, loaded.warmup_config, tasks, **settings)
    for name, results in arms.items():
        print(f"{ARM_NAMES[name]}:\n{make_table(results)}")
    numbers = {name: results["results"] for name, results in arms.items()}
    if saves:
        print(f"Scores: {save_scores(options.adapter, HARNESS_NAME, numbers)}")


def holds_scores_of_more(folder: str, count: int) -> bool:
    """Whether the folder has scores of more questions: a quick look must not replace those on the model card."""
    try:
        return load_scores(folder, METRICS_NAME)["warmup"]["n"] > count
    except (KeyError, TypeError):
        return False


def evaluate_arms(
    loaded: LoadedModel, questions: Sequence[Question], task: Task, options: EvaluateArguments
) -> dict[str, list[Prediction]]:
    """Predictions of the base (directly, and after its own warmups), of SFT, and of the adapter after each warmup."""

    own_config = loaded.warmup_config
    limit = task.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens

    def answer(
        name: str,
        warmup_config: WarmupConfig | None,
        loaded: LoadedModel = loaded,
        warmup_ids: list[Ids] | None = None,
        marks: Marks | None = None,
    ) -> list[Prediction]:
        directly = {"room_to_think": own_config.room, "template": own_config.chat_template_kwargs, "marks": marks}
        predictor = Predictor(
            loaded.model,
            loaded.tokenizer,
            warmup_config,
            options.batch_size,
            progress=bars(name),
            **(directly if warmup_config is None else {}),
        )
        return predictor.answer(questions, limit, warmup_ids)

    arms = {}
    if options.compare_base and has_base(loaded):
        with loaded.model.disable_adapter():
            arms["base"] = answer("base", None)
            arms["base_with_warmup"] = answer("base with its own warmup", loaded.warmup_config)
    if options.sft is not None:
        arms["sft"] = answer("SFT", None, load_folder(local_folder(options.sft), Loading.of(options)))
    arms["warmup"] = own = answer("warmup", loaded.warmup_config)
    if PLAIN in options.warmups.split(","):
        marks = Marks(tuple(own_config.warmup_opening_ids), tuple(own_config.warmup_separator_ids))
        arms[PLAIN] = answer("one plain call", None, marks=marks)
    warmup_ids = [list(prediction.warmup_ids) for prediction in own]
    dot = loaded.tokenizer(" .", add_special_tokens=False)["input_ids"][-1]
    replaced = {"shuffled": shuffled(warmup_ids), "dots": dots(warmup_ids, dot), "none": empty(warmup_ids)}
    for name in REPLACED:
        if name in options.warmups.split(","):
            arms[name] = answer(name, loaded.warmup_config, warmup_ids=replaced[name])
    return arms


def check_warmups(options: EvaluateArguments) -> None:
    """Raise ValueError for what cannot stand in a warmup's place, and for an SFT folder that is none."""
    for name in options.warmups.split(","):
        if name not in ("own", PLAIN, *REPLACED):
            raise ValueError(f"--warmups has '{name}'. Choose from own, {PLAIN}, {', '.join(REPLACED)}.")
    if PLAIN in options.warmups.split(",") and not WarmupConfig.load(options.adapter).writes_separator:
        raise ValueError(
            f"--warmups plain asks for answers in one plain call, and {options.adapter} was not trained with "
            "learn_separator. Leave it out."
        )
    if options.sft is not None and WarmupConfig.load(local_folder(options.sft)).max_warmup_length:
        raise ValueError(f"sft={options.sft} answers after a warmup. Name a folder that `warmup-peft sft` made.")


def scores_of(scores: Scores, questions: Sequence[Question], predictions: Sequence[Prediction]) -> dict[str, float]:
    """The scores of one arm in `metrics.json`."""
    share = share_of_options(questions, predictions)
    written = {} if share is None else {"generations_that_are_options": share}
    return {**scores.totals, **written, "n": len(questions)}


def has_base(loaded: LoadedModel) -> bool:
    """Whether the model equals its base when the adapter is switched off. Prints the reason if it does not."""
    reasons = [why_no_base(config) for config in getattr(loaded.model, "peft_config", {}).values()]
    for reason in filter(None, reasons):
        print(f"The base is not scored: {reason}, also with the adapter off.")
    return reasons == [None]


def scores_table(metrics: dict[str, Any], source: str) -> Table:
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


def examples_table(questions: Sequence[Question], predictions: Sequence[Prediction], count: int) -> Table:
    table = Table(title="What it wrote", show_lines=True)
    for column in ("end of the prompt", "warmup", "answer", "right answer"):
        table.add_column(column, overflow="fold")
    for question, prediction in list(zip(questions, predictions))[:count]:
        table.add_row(
            shorten(question.text.removesuffix("Answer:").rsplit("\nA. ", 1)[0]),
            prediction.warmup.strip(),
            shorten(answer_text(question, prediction), 60),
            shorten(question.completion.strip(), 60),
        )
    return table


def shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else "..." + text[-length:]
