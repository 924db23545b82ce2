"""`warmup-peft evaluate`: score an adapter and its base on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from warmup_peft.evaluation.evaluate import evaluate, has_base, scores_table
from warmup_peft.evaluation.prediction import Prediction, answer_text
from warmup_peft.evaluation.score_texts import metric_name
from warmup_peft.evaluation.tasks import Question
from warmup_peft.export.model_card import write_model_card
from warmup_peft.inference.chat import check_template
from warmup_peft.inference.folder import HARNESS_NAME, METRICS_NAME, WarmupConfig, is_adapter
from warmup_peft.inference.hub import with_local_folder
from warmup_peft.inference.loading import Loading, load_folder, load_tokenizer
from warmup_peft.inference.scores import ARM_NAMES, load_scores, save_scores
from warmup_peft.method.model import adapter_off
from warmup_peft.settings.arguments import EvaluateArguments, check_counts
from warmup_peft.settings.parsing import parse_one

OF_THE_TERMINAL = ("adapter", "dataset_name", "task", "num_examples", "harness", "apply_chat_template", "num_warmups")


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
    if options.harness is not None:
        run_harness(options, loading, saves=is_own)
        return
    others = {name: value for name, value in vars(options).items() if name not in OF_THE_TERMINAL}
    found = evaluate(options.adapter, options.dataset_name, options.task, **others)
    path = Path(options.adapter, METRICS_NAME)
    if not is_own:
        print(f"{named} is on the Hub, so its scores are not saved. Download it (hf download) to keep them.")
    elif found.are_trained_on:
        print("These rows were trained on, or may have been, so their scores are not saved. Name held-out rows.")
    elif holds_scores_of_more(options.adapter, found.num_rows):
        print(f"{path} holds the scores of more questions and stays as it is.")
    else:
        save_scores(options.adapter, METRICS_NAME, {**found.to_dict(), "settings": found.settings})
        write_model_card(options.adapter)

    console = Console()
    console.print(scores_table(found.scores, found.source))
    for sentence in found.sentences:
        console.print(sentence, highlight=False)
    console.print(examples_table(found.questions, found.predictions, options.num_examples))
    for name, reason in found.left_out.items():
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
        with adapter_off(loaded.model):
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
