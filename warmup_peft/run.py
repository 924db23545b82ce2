"""What the commands do, from parsed options to files and a few lines on the screen."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedModel, ProgressCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from warmup_peft.arguments import DrawOptions, EvaluateArguments, GenerateArguments, MergeArguments, RunOptions
from warmup_peft.data import has_split, load_split, read_json
from warmup_peft.evaluation.harness import Prediction, answer_questions, generate_texts, is_an_option
from warmup_peft.evaluation.metrics import multiple_choice_metrics
from warmup_peft.evaluation.tasks import TASKS, MultipleChoice
from warmup_peft.inference.client import CompletionsClient, answer_from_server, draw_from_server
from warmup_peft.inference.export import EXPORT_NAME
from warmup_peft.inference.hub import METRICS_NAME, merge_adapter, write_model_card
from warmup_peft.inference.loading import (
    LoadedModel,
    TrainingRecord,
    context_length,
    is_adapter,
    load_folder,
    load_tokenizer,
)
from warmup_peft.inference.warmup_config import WarmupConfig
from warmup_peft.inference.writing import write_warmups
from warmup_peft.method.branches import left_padded
from warmup_peft.method.pool import POOL_NAME
from warmup_peft.method.scoring import evaluation_mode

RUN_FILES = ("adapter_config.json", "adapter_model.safetensors", "warmup_config.json", "warmup_training.json",
             EXPORT_NAME, "trainer_state.json", "training_args.bin", METRICS_NAME)  # fmt: skip
HARNESS_NAME = "harness.json"
RECORDED_SETTINGS = ("objective", "warmup_source", "num_warmups", "warmup_sampling", "warmup_anchor", "seed", "steps")


# ---- Train ----


def run_training(script_args, options: RunOptions, args, model_args) -> None:
    """Train an adapter into `args.output_dir`.

    Raises:
        ValueError: bad input, before anything is loaded or written.
    """
    from warmup_peft.callbacks import ShortProgress, StopOnInterrupt

    checkpoint = checkpoint_to_resume(args)
    check_output_dir(Path(args.output_dir), options.overwrite_output_dir, resuming=checkpoint is not None)
    trainer = build_trainer(script_args, options, args, model_args)
    if options.overwrite_output_dir and checkpoint is None and trainer.is_world_process_zero():
        remove_run(Path(args.output_dir), keep_pool=args.warmup_pool is not None)
    interrupt = StopOnInterrupt()
    trainer.add_callback(interrupt)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ShortProgress())
    trainer.train(resume_from_checkpoint=checkpoint)
    if interrupt.interrupted:
        last = get_last_checkpoint(args.output_dir)
        print(f"Stopped at step {trainer.state.global_step}. Go on with: --resume_from_checkpoint {last}")
        raise KeyboardInterrupt
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        print(f"Trained {trainer.state.global_step} steps. The adapter lies in {args.output_dir}")


def build_trainer(script_args, options: RunOptions, args, model_args):
    """The `WarmupSFTTrainer` of a recipe.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    from trl import get_peft_config, get_quantization_config

    from warmup_peft.trainer import WarmupSFTTrainer

    if model_args.model_name_or_path is None:
        raise ValueError("No model is named. Set --model_name_or_path to a folder or a Hub id.")
    if script_args.dataset_name is None:
        raise ValueError("No data is named. Set --dataset_name to a file, a folder or a Hub id.")
    check_counts(options, max_train_samples=1)
    if Path(args.output_dir).resolve() == Path(model_args.model_name_or_path).resolve():
        raise ValueError(f"output_dir={args.output_dir} is the base model's own folder. Choose another --output_dir.")
    disable_progress_bars()
    train_dataset = training_rows(script_args, options, script_args.dataset_train_split, options.max_train_samples)
    eval_dataset = None
    if args.eval_strategy != "no":
        eval_dataset = training_rows(script_args, options, script_args.dataset_test_split, None)
    tokenizer = load_tokenizer(model_args.model_name_or_path, model_args.model_revision)

    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(args.model_init_kwargs or {}),
    }
    trainer = WarmupSFTTrainer(
        model=model_args.model_name_or_path,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.data_record = data_record(script_args, options, len(trainer.train_dataset))
    return trainer


def run_draw(script_args, options: RunOptions, args, model_args, draw_options: DrawOptions) -> None:
    """Draw the warmups of a training with `warmup_source: base`, and train nothing.

    Raises:
        ValueError: bad input, before a model is loaded; a server that fails while it is drawn from. What was drawn
            until then is kept.
    """
    if draw_options.base_url is None and draw_options.served_model is not None:
        raise ValueError("--served_model belongs to --base_url. Set the server's address too.")
    trainer = build_trainer(script_args, options, args, model_args)
    draw = None
    if draw_options.base_url is not None:
        client = CompletionsClient(
            draw_options.base_url,
            draw_options.served_model or model_args.model_name_or_path,
            timeout=draw_options.server_timeout,
        )
        draw = draw_from_server(client, dataclasses.replace(trainer.sampling, num_warmups=args.warmup_pool_size))
    pool = trainer.draw_warmups(draw)
    if trainer.is_world_process_zero():
        print(f"{pool.num_draws} warmups for each of {len(pool):,} prompts lie in {pool.folder}")
        print(f"Train with them: --warmup_source base --warmup_pool {pool.folder}")


def data_record(script_args, options: RunOptions, train_rows: int) -> dict[str, Any]:
    """Where the rows came from and how they were read, for `evaluate` and the model card."""
    return {
        "dataset_name": script_args.dataset_name,
        "dataset_config": script_args.dataset_config,
        "dataset_test_split": script_args.dataset_test_split,
        "test_split_size": options.test_split_size,
        "task": options.task,
        "answer_format": options.answer_format,
        "train_rows": train_rows,
    }


def training_rows(script_args, options: RunOptions, split: str, limit: int | None) -> Dataset:
    """Rows with `prompt` and `completion`, or of another form that `SFTTrainer` takes."""
    rows = load_split(script_args.dataset_name, split, script_args.dataset_config, options.test_split_size)
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    if options.task is None:
        return rows
    questions = TASKS[options.task](rows, options.answer_format)
    return Dataset.from_list([{"prompt": q.prompt, "completion": q.completion} for q in questions])


def checkpoint_to_resume(args) -> str | None:
    """The checkpoint's folder; `true` or `last` name the last one in output_dir."""
    name = args.resume_from_checkpoint
    if not name or str(name).lower() == "false":
        return None
    if str(name).lower() in ("true", "last"):
        name = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
        if name is None:
            raise ValueError(f"There is no checkpoint in {args.output_dir} to resume from. Start the run without it.")
    if not Path(name, "trainer_state.json").is_file():
        raise ValueError(f"{name} is no checkpoint. Name a folder such as {args.output_dir}/checkpoint-100.")
    return str(name)


def check_output_dir(folder: Path, overwrite: bool, resuming: bool) -> None:
    """Refuse a folder that holds a run, or that cannot be written."""
    holds_run = folder.is_dir() and bool(checkpoints(folder) or any((folder / name).exists() for name in RUN_FILES))
    if holds_run and not overwrite and not resuming:
        raise ValueError(
            f"{folder} holds another run. Pass --overwrite_output_dir to replace it, --resume_from_checkpoint last to "
            "go on with it, or another --output_dir (with make: ARGS=--overwrite_output_dir, or OUTPUT=)."
        )
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(
            f"The output folder {folder} cannot be written ({error.strerror}). Choose another --output_dir."
        ) from error


def remove_run(folder: Path, keep_pool: bool = False) -> None:
    """Remove a run's own files, checkpoints and warmups, nothing else."""
    for path in (*checkpoints(folder), *([] if keep_pool else [folder / POOL_NAME])):
        shutil.rmtree(path, ignore_errors=not path.exists())
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    named = (path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit())
    return [path for path in named if path.is_dir() and not path.is_symlink()]


# ---- Evaluate ----


def run_evaluation(options: EvaluateArguments) -> None:
    """Score a model on held-out questions; write `metrics.json` and the card beside it, and show both.

    Raises:
        ValueError: bad input, before a model is loaded.
    """
    check_counts(options, batch_size=1, max_samples=1, max_new_tokens=0, num_examples=0, num_warmups=1)
    WarmupConfig.load(options.adapter)
    if options.harness is not None:
        run_harness(options)
        return
    record = TrainingRecord.load(options.adapter) or TrainingRecord(base_model="")
    questions, source = held_out_questions(options, record.data)
    loaded = load_folder(options.adapter)
    arms = evaluate_arms(loaded, questions, options)
    metrics = {name: score(questions, predictions) for name, predictions in arms.items()}
    metrics["settings"] = {
        **{key: record.settings.get(key) for key in RECORDED_SETTINGS},
        "max_warmup_length": loaded.warmup_config.max_warmup_length,
        "warmup_separator": loaded.warmup_config.warmup_separator,
        "base_model": record.base_model,
        "data": source,
    }
    path = Path(options.adapter, METRICS_NAME)
    if holds_scores_of_more(path, len(questions)):
        print(f"{path} holds the scores of more questions and stays as it is.")
    else:
        path.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_model_card(options.adapter)

    console = Console()
    console.print(scores_table(metrics, source))
    console.print(examples_table(questions, arms["warmup"], options.num_examples))
    print(f"Scores: {path}\nAdapter and model card: {options.adapter}")
    if is_adapter(options.adapter):
        print(f"Next: warmup-peft merge --adapter {options.adapter} --output_dir {options.adapter}-merged")


def run_harness(options: EvaluateArguments) -> None:
    """Score base and adapter on tasks of lm-evaluation-harness; write `harness.json` and show its tables.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        ValueError: a task that is unknown.
    """
    try:
        from lm_eval.utils import make_table

        from warmup_peft.evaluation.lm_eval_model import run_tasks
    except ImportError as error:
        raise ImportError("--harness needs lm-evaluation-harness. Run: pip install 'warmup_peft[eval]'") from error
    loaded = load_folder(options.adapter)
    settings = {"num_warmups": options.num_warmups, "batch_size": options.batch_size, "limit": options.max_samples}
    tasks = options.harness.split(",")
    arms = {}
    if options.compare_base and isinstance(loaded.model, PeftModel):
        with loaded.model.disable_adapter():
            arms["base"] = run_tasks(loaded.model, loaded.tokenizer, None, tasks, **settings)
    arms["warmup"] = run_tasks(loaded.model, loaded.tokenizer, loaded.warmup_config, tasks, **settings)
    for name, results in arms.items():
        print(f"{ARM_NAMES[name]}:\n{make_table(results)}")
    path = Path(options.adapter, HARNESS_NAME)
    numbers = {name: results["results"] for name, results in arms.items()}
    path.write_text(json.dumps(numbers, indent=2, default=str) + "\n", encoding="utf-8")
    print(f"Scores: {path}")


def holds_scores_of_more(path: Path, count: int) -> bool:
    """A quick look at a few questions must not replace the scores that the card shows."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["warmup"]["n"] > count
    except (OSError, ValueError, KeyError, TypeError):
        return False


def held_out_questions(options: EvaluateArguments, data: dict[str, Any]) -> tuple[list[MultipleChoice], str]:
    """The questions, and in words where they come from."""
    name = options.dataset_name or data.get("dataset_name")
    own = name is not None and is_same_source(name, data.get("dataset_name"))
    task = options.task or data.get("task")
    if name is None or task is None:
        missing = "--dataset_name" if name is None else "--task"
        raise ValueError(f"{missing} is not given, and the adapter's folder does not say what it was trained with.")
    share = data.get("test_split_size", 0.0) if own else 0.0
    if own and Path(name).is_file() and share == 0:
        raise ValueError(f"The adapter was trained on all rows of {name}. Name other rows with --dataset_name.")
    split = options.dataset_test_split or data.get("dataset_test_split") or "test"
    if not has_split(name, split) and has_split(name, "validation"):
        print(f"{name} has no split {split}; scoring on its validation split.")
        split = "validation"
    rows = load_split(name, split, options.dataset_config or data.get("dataset_config"), share)
    rows = rows.select(range(min(options.max_samples or len(rows), len(rows))))
    answer_format = options.answer_format or data.get("answer_format") or "text"
    where = name if Path(name).is_file() else f"{name}, split {split}"
    return TASKS[task](rows, answer_format), where


def is_same_source(name: str, other: str | None) -> bool:
    return other is not None and (name == other or Path(name).resolve() == Path(other).resolve())


def check_counts(options: Any, **least: int) -> None:
    """Raise ValueError for a count, where one is given, below its least sensible value."""
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name}={value} cannot work. Set it to {minimum} or more.")


def evaluate_arms(
    loaded: LoadedModel, questions: Sequence[MultipleChoice], options: EvaluateArguments
) -> dict[str, list[Prediction]]:
    """Predictions of the base (answering directly, and after warmups of its own) and of the adapter."""

    def answer(name: str, warmup_config: WarmupConfig | None) -> list[Prediction]:
        return answer_questions(
            loaded.model,
            loaded.tokenizer,
            questions,
            warmup_config,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            progress=partial(tqdm, desc=f"scoring {name}", unit="batch"),
        )

    arms = {}
    if options.compare_base and isinstance(loaded.model, PeftModel):
        with loaded.model.disable_adapter():
            arms["base"] = answer("base", None)
            arms["base_with_warmup"] = answer("base with its own warmup", loaded.warmup_config)
    arms["warmup"] = answer("warmup", loaded.warmup_config)
    return arms


def score(questions: Sequence[MultipleChoice], predictions: Sequence[Prediction]) -> dict[str, float]:
    metrics = multiple_choice_metrics(
        [q.answer for q in questions], [p.choice for p in predictions], len(questions[0].options)
    )
    valid = [is_an_option(p.generation, q) for p, q in zip(predictions, questions)]
    return {**metrics, "generations_that_are_options": sum(valid) / len(valid)}


ARM_NAMES = {
    "base": "base, answering directly",
    "base_with_warmup": "base, after a warmup of its own",
    "warmup": "adapter, after its warmup",
}


def scores_table(metrics: dict[str, Any], source: str) -> Table:
    table = Table(title=f"Held-out questions: {source}")
    for column in ("", "accuracy", "Macro F1", "writes an option", "n"):
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=column == "")
    for key, name in ARM_NAMES.items():
        if key in metrics:
            s = metrics[key]
            table.add_row(
                name,
                f"{s['accuracy']:.3f}",
                f"{s['macro_f1']:.3f}",
                f"{s['generations_that_are_options']:.3f}",
                str(s["n"]),
            )
    return table


def examples_table(questions: Sequence[MultipleChoice], predictions: Sequence[Prediction], count: int) -> Table:
    table = Table(title="What it wrote", show_lines=True)
    for column in ("end of the prompt", "warmup", "chosen", "right answer"):
        table.add_column(column, overflow="fold")
    for question, prediction in list(zip(questions, predictions))[:count]:
        table.add_row(
            shorten(question.prompt.removesuffix("Answer:").rsplit("\nA. ", 1)[0]),
            prediction.warmup.strip(),
            shorten(question.options[prediction.choice].strip(), 60),
            shorten(question.completion.strip(), 60),
        )
    return table


def shorten(text: str, length: int = 160) -> str:
    return text if len(text) <= length else "..." + text[-length:]


# ---- Merge ----


def run_merge(options: MergeArguments) -> None:
    """Merge, and say how far the merged model is from the adapter: its logits, and its score on held-out questions.

    Raises:
        ValueError: as `merge_adapter`.
    """
    check_counts(options, max_samples=0)
    report = merge_adapter(
        options.adapter,
        options.output_dir,
        dtype=options.dtype,
        merge_base=options.merge_base,
        overwrite=options.overwrite_output_dir,
    )
    print(f"Merged into {report.output_dir}")
    print(f"Relative error of its logits against the adapter's: {report.relative_logit_error:.2e}")
    if options.max_samples > 0:
        print(score_change(options))
    print(f'Try it: warmup-peft generate --adapter {report.output_dir} --prompt "..."')


def score_change(options: MergeArguments) -> str:
    """Accuracy of adapter and merged model on held-out questions of the training's task, in a sentence."""
    record = TrainingRecord.load(options.adapter) or TrainingRecord(base_model="")
    try:
        held_out = EvaluateArguments(options.adapter, max_samples=options.max_samples)
        questions, source = held_out_questions(held_out, record.data)
    except (ValueError, OSError) as error:
        return f"Scores were not compared: {error}"
    scores = []
    for folder in (options.adapter, options.output_dir):
        loaded = load_folder(folder)
        predictions = answer_questions(
            loaded.model, loaded.tokenizer, questions, loaded.warmup_config, max_new_tokens=0
        )
        scores.append(score(questions, predictions)["accuracy"])
    return (
        f"Accuracy on {len(questions)} held-out questions ({source}): adapter {scores[0]:.3f}, merged {scores[1]:.3f} "
        f"({scores[1] - scores[0]:+.3f})"
    )


# ---- Generate ----


def run_generation(options: GenerateArguments) -> None:
    """Answer prompts: answers to standard output, warmups to standard error, or both as JSON lines.

    Raises:
        ValueError: no prompt, or an empty one.
    """
    check_counts(options, batch_size=1, max_new_tokens=1)
    prompts = read_prompts(options)
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ValueError(f"Prompt {number} is empty. Give every prompt some text.")
    if not prompts:
        raise ValueError("There is no prompt. Pass --prompt, --prompts_file, or lines on standard input.")
    answer = answers_of(options)
    batches = [prompts[i : i + options.batch_size] for i in range(0, len(prompts), options.batch_size)]
    for batch in tqdm(batches, disable=len(batches) == 1, unit="batch", desc="answering"):
        for prompt, (warmup, text) in zip(batch, answer(batch)):
            if options.json:
                print(json.dumps({"prompt": prompt, "warmup": warmup, "answer": text}, ensure_ascii=False))
            else:
                print(f"warmup: {warmup.strip()}", file=sys.stderr, flush=True)
                print(text.strip(), flush=True)


def answers_of(options: GenerateArguments) -> Callable[[Sequence[str]], list[tuple[str, str]]]:
    """Who answers: prompts -> warmup and answer of each.

    Raises:
        ValueError: only one of base_url and model is given, or no warmup adapter's folder.
    """
    if (options.base_url is None) != (options.model is None):
        missing = "--model" if options.model is None else "--base_url"
        raise ValueError(f"{missing} is not given. A server needs both --base_url and --model.")
    if options.base_url is not None:
        return partial(
            answer_from_server,
            CompletionsClient(options.base_url, options.model, timeout=options.server_timeout),
            load_tokenizer(options.adapter),
            config=WarmupConfig.load(options.adapter),
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature if options.do_sample else 0.0,
            top_p=options.top_p if options.do_sample else 1.0,
        )
    loaded = load_folder(options.adapter)
    set_seed(options.seed)
    return partial(answer_prompts, loaded, options)


def read_prompts(options: GenerateArguments) -> list[str]:
    if options.prompt is not None:
        return [options.prompt]
    if options.prompts_file is None:
        return sys.stdin.read().splitlines()
    path = Path(options.prompts_file)
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist. Check --prompts_file.")
    if path.suffix in (".jsonl", ".json"):
        rows = list(read_json(path))
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f"{path}, row {number} has no text in the field `prompt`.")
        return [row["prompt"] for row in rows]
    return path.read_text(encoding="utf-8").splitlines()


def check_room(model: PreTrainedModel, config: WarmupConfig, prompt_length: int, max_new_tokens: int) -> None:
    """Raise ValueError where prompt, warmup, separator and answer do not fit the model's context."""
    context = context_length(model.config)
    needed = prompt_length + config.room + max_new_tokens
    if context is not None and needed > context:
        raise ValueError(
            f"A prompt of {prompt_length} tokens with its warmup and an answer of up to {max_new_tokens} needs "
            f"{needed}, and the model's context has {context}. Shorten the prompt, or lower --max_new_tokens."
        )


def answer_prompts(loaded: LoadedModel, options: GenerateArguments, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Warmup and answer of each."""
    tokenizer, model = loaded.tokenizer, loaded.model
    prompt_ids = [tokenizer(text)["input_ids"] for text in prompts]
    check_room(model, loaded.warmup_config, max(map(len, prompt_ids)), options.max_new_tokens)
    prompt = left_padded(prompt_ids, model.device)
    law = {"do_sample": options.do_sample}
    if options.do_sample:
        law |= {"temperature": options.temperature, "top_p": options.top_p}
    with evaluation_mode(model):
        warmups = write_warmups(model, prompt, loaded.warmup_config, **law)
        answers = generate_texts(
            model, tokenizer, prompt, warmups, loaded.warmup_config, options.max_new_tokens, **law
        )
    written = [tokenizer.decode(warmups.ids[row, 0, : warmups.lengths[row, 0]]) for row in range(len(prompts))]
    return list(zip(written, answers))
