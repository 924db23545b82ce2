"""The commands end to end on a tiny random model: what they write, what they keep, and what they refuse."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES, tiny_config
from datasets import Dataset
from folders import (
    SETTINGS,
    argv_of,
    logiqa_folder,
    puzzles,
    random_adapter,
    save_adapter,
    train_argv,
    tree,
    write_rows,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from warmup_peft.cli.evaluate import evaluate_arms
from warmup_peft.cli.main import BAD_INPUT, INTERRUPTED, main
from warmup_peft.evaluation import logiqa as logiqa_task
from warmup_peft.evaluation.logiqa import TASK, logiqa
from warmup_peft.evaluation.predictor import Predictor, generate_texts
from warmup_peft.export.model_card import is_edited
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.loading import TrainingRecord, load_folder
from warmup_peft.settings.arguments import EvaluateArguments

TRAINED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "custom_generate/generate.py",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.bin",
    "warmup_config.json",
    "warmup_training.json",
}
PROMPTS = ["Q: one?", "A longer question: two?", "x", "Q: what follows three?"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return logiqa_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder, data) -> Path:
    """A run with two checkpoints; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    argv = train_argv(model_folder, data, folder, task="logiqa", save_strategy="steps", save_steps=1)
    assert main(argv) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def generate(folder: Path, capsys, *flags: str) -> list[dict]:
    prompts = write_rows(folder.parent / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    capsys.readouterr()
    argv = argv_of("generate", adapter=folder, prompts_file=prompts, max_new_tokens=6, json="true")
    assert main([*argv, *flags]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# ---- Train ----


def test_training_leaves_a_whole_folder(finished, model_folder, data, tokenizer):
    assert {name for name in tree(finished) if not name.startswith("checkpoint-")} == TRAINED
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights(finished).items())
    end_token_ids = [1, *range(200, 270)]  # the base's own and the tokenizer's
    assert WarmupConfig.load(finished) == WarmupConfig(" || ", tokenizer(" || ")["input_ids"], 4, end_token_ids)
    record = TrainingRecord.load(finished)
    assert (record.base_model, record.dtype, record.quantization_config) == (model_folder, "float32", None)
    assert record.data["dataset_name"] == str(data)
    assert (record.data["task"], record.data["train_rows"]) == ("logiqa", 8)
    assert (record.settings["num_warmups"], record.settings["steps"], record.settings["lora_r"]) == (2, 2, 4)
    state = json.loads((finished / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert {"loss", "mean_token_accuracy", "warmups/mean_length"} <= set(state["log_history"][0])
    card = (finished / "README.md").read_text()
    assert "# run\n" in card
    assert not is_edited(card)


def test_every_checkpoint_is_a_whole_adapter(finished):
    for step in (1, 2):
        checkpoint = finished / f"checkpoint-{step}"
        assert {"warmup_config.json", "warmup_training.json", "tokenizer.json"} <= set(tree(checkpoint))
        assert TrainingRecord.load(checkpoint).settings["steps"] == step
        assert TrainingRecord.load(checkpoint).data == TrainingRecord.load(finished).data
    assert same_weights(finished / "checkpoint-2", finished)
    assert not same_weights(finished / "checkpoint-1", finished)


def test_prompt_completion_files_and_a_recipe(tmp_path, model_folder, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in SETTINGS.items()).replace(" no\n", ' "no"\n'))
    argv = argv_of(
        "train", config=recipe, model_name_or_path=model_folder, dataset_name=rows, output_dir=tmp_path / "run"
    )
    assert main([*argv, "--max_steps", "1"]) == 0
    out = capsys.readouterr().out
    assert "step     1  loss" in out
    assert f"Trained 1 steps. The adapter lies in {tmp_path / 'run'}" in out
    assert set(tree(tmp_path / "run")) == TRAINED
    assert TrainingRecord.load(tmp_path / "run").data["train_rows"] == len(EXAMPLES)


def test_a_share_of_a_single_file_is_held_out_and_scored(tmp_path, model_folder, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", puzzles(8))
    argv = train_argv(model_folder, rows, tmp_path / "run", task="logiqa", test_split_size=0.25)
    assert main(argv) == 0
    assert TrainingRecord.load(tmp_path / "run").data["train_rows"] == 6
    assert main(argv_of("evaluate", adapter=tmp_path / "run", max_new_tokens=0)) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["warmup"]["n"] == 2


def test_4bit_from_training_to_merge(tmp_path, model_folder, data, capsys):
    argv = train_argv(model_folder, data, tmp_path / "run", task="logiqa", load_in_4bit="true", max_steps=1)
    assert main([*argv, "--bnb_4bit_quant_type", "nf4", "--use_bnb_nested_quant", "true"]) == 0
    assert TrainingRecord.load(tmp_path / "run").quantization_config["bnb_4bit_quant_type"] == "nf4"
    assert main(argv_of("merge", adapter=tmp_path / "run", output_dir=tmp_path / "merged", dtype="float32")) == 0
    assert generate(tmp_path / "run", capsys) == generate(tmp_path / "merged", capsys)


def test_rows_are_streamed_from_the_hub(tmp_path, model_folder, monkeypatch):
    def load_dataset(name, config, split, streaming=False):
        return Dataset.from_list(EXAMPLES).to_iterable_dataset() if streaming else None

    monkeypatch.setattr("warmup_peft.evaluation.data.load_dataset", load_dataset)
    argv = train_argv(model_folder, "some/data", tmp_path / "run", dataset_streaming="true", eval_strategy="steps")
    assert main(argv) == 0
    record = TrainingRecord.load(tmp_path / "run")
    assert (record.data["dataset_name"], record.data["train_rows"]) == ("some/data", None)
    assert set(tree(tmp_path / "run")) == TRAINED


# ---- Folders that hold a run ----


def test_a_run_is_not_written_over(run, model_folder, data, capsys):
    before = tree(run)
    assert main(train_argv(model_folder, data, run, task="logiqa")) == BAD_INPUT
    assert "holds another run" in capsys.readouterr().err
    assert tree(run) == before


def test_overwriting_replaces_only_the_runs_own_files(run, model_folder, data):
    (run / "notes.txt").write_text("mine")
    (run / "figures").mkdir()
    (run / "figures" / "loss.png").write_bytes(b"png")
    (run / "metrics.json").write_text('{"warmup": {"accuracy": 0.9, "macro_f1": 0.9, "n": 1}}')
    (run / "README.md").write_text("# A person's card\n")
    old = weights(run)
    argv = train_argv(model_folder, data, run, task="logiqa", max_steps=1, seed=1)
    assert main([*argv, "--overwrite_output_dir"]) == 0
    assert set(tree(run)) == TRAINED | {"notes.txt", "figures/loss.png"}
    assert (run / "notes.txt").read_text() == "mine"
    assert (run / "README.md").read_text() == "# A person's card\n"
    assert any(not torch.equal(tensor, old[name]) for name, tensor in weights(run).items())


def test_overwriting_waits_until_the_new_run_can_start(run, model_folder, data):
    """A mistake in the data must not cost the old run."""
    before = tree(run)
    bad = train_argv(model_folder, data, run, task="logiqa", max_length=4)
    assert main([*bad, "--overwrite_output_dir"]) == BAD_INPUT
    assert tree(run) == before


@pytest.mark.parametrize("name", ["checkpoint-1", "last"])
def test_resuming_ends_where_an_unbroken_run_ends(finished, run, model_folder, data, name):
    shutil.rmtree(run / "checkpoint-2")
    for file in TRAINED:
        (run / file).unlink()
    checkpoint = name if name == "last" else run / name
    argv = train_argv(model_folder, data, run, task="logiqa", save_strategy="steps", save_steps=1)
    assert main([*argv, "--resume_from_checkpoint", str(checkpoint)]) == 0
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 2
    assert same_weights(run, finished)


# ---- Evaluate ----


def test_evaluation_writes_scores_and_card(run, data, tokenizer, capsys):
    assert main(argv_of("evaluate", adapter=run, max_new_tokens=4, batch_size=3)) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["base", "base_with_warmup", "warmup", "settings", "weights"]
    questions = logiqa(puzzles(8, start=16))  # the test split
    loaded = load_folder(run)
    predictions = Predictor(loaded.model, loaded.tokenizer, loaded.warmup_config).answer(questions, max_new_tokens=0)
    right = sum(p.choice == q.answer for p, q in zip(predictions, questions))
    assert metrics["warmup"]["accuracy"] == right / 8
    assert metrics["warmup"]["n"] == metrics["base"]["n"] == 8
    settings = metrics["settings"]
    assert settings["data"] == f"{data}, split test"
    assert (settings["num_warmups"], settings["max_warmup_length"], settings["steps"]) == (2, 4, 2)
    card = (run / "README.md").read_text()
    for arm in ("base", "base_with_warmup", "warmup"):
        numbers = " | ".join(f"{value:.3f}" for name, value in metrics[arm].items() if name != "n")
        assert f"| {arm} | {numbers} | 8 |" in card
    assert "| held-out data | accuracy | macro f1 | perplexity |" in card
    out = capsys.readouterr().out
    assert "adapter, after" in out
    assert f"Scores: {run / 'metrics.json'}" in out


def test_an_arm_that_writes_nothing_has_the_same_columns(run, capsys, monkeypatch):
    def silent_base(*arguments, **law):
        texts = generate_texts(*arguments, **law)
        return ["" for _ in texts] if arguments[4] is None else texts

    monkeypatch.setattr("warmup_peft.evaluation.predictor.generate_texts", silent_base)
    assert main(argv_of("evaluate", adapter=run, max_new_tokens=4)) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["base"]["generations_that_are_options"] == 0.0
    assert list(metrics["base"]) == list(metrics["base_with_warmup"]) == list(metrics["warmup"])
    assert "writes an option" in " ".join(capsys.readouterr().out.split())


def test_an_adapter_with_nan_logits_gets_no_scores(run, capsys):
    path = run / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in weights(run).items()}, path)
    before = tree(run)
    assert main(argv_of("evaluate", adapter=run, compare_base="false")) == BAD_INPUT
    assert "logits are NaN" in capsys.readouterr().err
    assert tree(run) == before


def test_base_arms_are_the_plain_base(run, model_folder, tokenizer):
    loaded, questions = load_folder(run), logiqa(puzzles(5))
    arms = evaluate_arms(loaded, questions, TASK, EvaluateArguments(str(run), max_new_tokens=0, batch_size=2))
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    scores = {name: [p.option_logps for p in predictions] for name, predictions in arms.items()}
    for name, config in (("base", None), ("base_with_warmup", loaded.warmup_config)):
        plain = Predictor(base, tokenizer, config).answer(questions, max_new_tokens=0)
        torch.testing.assert_close(torch.tensor(scores[name]), torch.tensor([p.option_logps for p in plain]))
    assert scores["warmup"] != scores["base_with_warmup"] != scores["base"]


def test_a_base_that_cannot_be_switched_back_to_is_not_scored(tmp_path, tokenizer, lora, capsys):
    """Trained biases stay when the adapter is off: what is then scored would be no base."""
    LlamaForCausalLM(tiny_config(attention_bias=True)).save_pretrained(tmp_path / "base")
    lora.bias = "all"
    model = random_adapter(str(tmp_path / "base"), lora)
    loaded = load_folder(save_adapter(tmp_path / "adapter", model, tokenizer, str(tmp_path / "base")))
    options = EvaluateArguments(str(tmp_path / "adapter"), max_new_tokens=0)
    assert set(evaluate_arms(loaded, logiqa(puzzles(3)), TASK, options)) == {"warmup"}
    assert "The base is not scored: bias='all' trains the base's own biases" in capsys.readouterr().out


def test_options_of_the_evaluation(run, data):
    argv = argv_of(
        "evaluate",
        adapter=run,
        dataset_name=data / "validation.jsonl",
        answer_format="letter",
        max_samples=3,
        max_new_tokens=0,
        compare_base="false",
    )
    assert main(argv) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["warmup", "settings", "weights"]
    assert metrics["warmup"]["n"] == 3
    assert metrics["settings"]["data"] == str(data / "validation.jsonl")


def test_edited_card_survives_evaluation(run):
    (run / "README.md").write_text("# A person's card\n")
    assert main(argv_of("evaluate", adapter=run, max_new_tokens=0, max_samples=2)) == 0
    assert (run / "README.md").read_text() == "# A person's card\n"


def test_scoring_on_the_trainings_own_rows_is_refused(tmp_path, model_folder, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", puzzles(4))
    assert main(train_argv(model_folder, rows, tmp_path / "run", task="logiqa", max_steps=1)) == 0
    before = tree(tmp_path)
    assert main(argv_of("evaluate", adapter=tmp_path / "run")) == BAD_INPUT
    assert "trained on all rows of" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_named_file_with_a_share_held_out_is_not_scored_on_its_training_rows(tmp_path, model_folder):
    rows = write_rows(tmp_path / "rows.jsonl", puzzles(8))
    argv = train_argv(model_folder, rows, tmp_path / "run", task="logiqa", test_split_size=0.25, max_steps=1)
    assert main(argv) == 0
    main(argv_of("evaluate", adapter=tmp_path / "run", dataset_name=rows, max_new_tokens=0))
    path = tmp_path / "run" / "metrics.json"
    assert not path.is_file() or json.loads(path.read_text())["warmup"]["n"] == 2


def test_missing_test_split_falls_back_to_validation_and_says_so(run, data, tmp_path, capsys):
    folder = tmp_path / "no-test"
    shutil.copytree(data, folder)
    (folder / "test.jsonl").unlink()
    assert main(argv_of("evaluate", adapter=run, dataset_name=folder, max_new_tokens=0)) == 0
    assert "has no split test; scoring on its validation split" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())["settings"]["data"] == f"{folder}, split validation"


# ---- Merge and generate ----


def test_a_quick_look_does_not_replace_the_scores(run, capsys):
    assert main(argv_of("evaluate", adapter=run)) == 0
    whole = (run / "metrics.json").read_text()
    assert main(argv_of("evaluate", adapter=run, max_samples=2)) == 0
    assert "holds the scores of more questions" in capsys.readouterr().out
    assert (run / "metrics.json").read_text() == whole
    assert main(argv_of("evaluate", adapter=run)) == 0
    assert (run / "metrics.json").read_text() == whole


def test_a_second_trainings_scores_replace_the_firsts_however_few(run, finished, capsys):
    assert main(argv_of("evaluate", adapter=run)) == 0
    shutil.copy(finished / "checkpoint-1" / "adapter_model.safetensors", run)
    assert main(argv_of("evaluate", adapter=run, max_samples=2)) == 0
    assert "holds the scores of more questions" not in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["warmup"]["n"] == 2
    assert f"| warmup | {metrics['warmup']['accuracy']:.3f} |" in (run / "README.md").read_text()


def test_a_prompt_beyond_the_context_is_bad_input(run, capsys):
    assert main(argv_of("generate", adapter=run, prompt="y" * 480, max_new_tokens=64)) == BAD_INPUT
    assert re.search(
        r"A prompt of 480 tokens .* needs 5\d\d, and the model's context has 512", capsys.readouterr().err
    )


def test_merged_model_answers_like_the_adapter(run, tmp_path, capsys):
    assert main(argv_of("merge", adapter=run, output_dir=tmp_path / "merged")) == 0
    out = capsys.readouterr().out
    assert f"Merged into {tmp_path / 'merged'}" in out
    adapter, merged, change = re.search(r"adapter (.....), merged (.....) \((.*) points\)", out).groups()
    assert float(change.replace("\N{MINUS SIGN}", "-")) == pytest.approx(
        100 * (float(merged) - float(adapter)), abs=0.2
    )
    assert float(out.split("adapter's: ")[1].split()[0]) < 1e-5
    answers = generate(run, capsys)
    assert [row["prompt"] for row in answers] == PROMPTS
    assert len({(row["warmup"], row["answer"]) for row in answers}) > 1
    assert generate(tmp_path / "merged", capsys) == answers


def test_batch_size_does_not_matter_when_decoding_greedily(run, capsys):
    assert generate(run, capsys, "--batch_size", "1") == generate(run, capsys, "--batch_size", "3")


def test_sampling_is_repeatable_by_its_seed(run, capsys):
    one, other, again = (generate(run, capsys, "--do_sample", "true", "--seed", seed) for seed in ("1", "2", "1"))
    assert one == again
    assert one != other


def test_answers_go_to_standard_output_and_warmups_to_standard_error(run, capsys, monkeypatch):
    expected = generate(run, capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(PROMPTS)))
    assert main(argv_of("generate", adapter=run, max_new_tokens=6)) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{row['answer'].strip()}\n" for row in expected)
    assert "".join(f"warmup: {row['warmup'].strip()}\n" for row in expected) in err.replace("\r", "\n")


def test_merging_into_a_taken_folder_is_refused(run, tmp_path, capsys):
    taken = write_rows(tmp_path / "taken" / "mine.jsonl", EXAMPLES).parent
    before = tree(taken)
    assert main(argv_of("merge", adapter=run, output_dir=taken)) == BAD_INPUT
    assert "is not empty" in capsys.readouterr().err
    assert tree(taken) == before


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [
        ("evaluate", "max_samples", -1),
        ("evaluate", "batch_size", 0),
        ("evaluate", "max_new_tokens", -1),
        ("generate", "batch_size", 0),
        ("generate", "max_new_tokens", 0),
    ],
)
def test_impossible_counts_are_refused_by_name(run, capsys, command, flag, value):
    before = tree(run)
    options = {"adapter": run, **({"prompt": "one?"} if command == "generate" else {}), flag: value}
    assert main(argv_of(command, **options)) == BAD_INPUT
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("warmup-peft: error: ")
    assert flag in last
    assert tree(run) == before


# ---- Ctrl-C, and SIGTERM ----


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_interrupt_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path, model_folder, data, number):
    folder = tmp_path / "run"
    argv = train_argv(model_folder, data, folder, task="logiqa", max_steps=100000)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "warmup_peft.cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        seen = next((line for line in process.stdout if line.startswith("step ")), None)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert seen is not None, err
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in err
    assert "warmup-peft: interrupted." in err
    (checkpoint,) = folder.glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"Stopped at step {step}. Go on with: --resume_from_checkpoint {checkpoint}" in out
    go_on = train_argv(model_folder, data, folder, task="logiqa", max_steps=step + 1)
    assert main([*go_on, "--resume_from_checkpoint", str(checkpoint)]) == 0
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step + 1


# ---- Bad inputs ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"eval_strategy": "steps"},
            "eval_strategy=steps would evaluate on the training rows: .*--test_split_size 0.1",
        ),
        ({"dataset_streaming": "true"}, "dataset_streaming needs the id of a data set on the Hub"),
        ({"dataset_streaming": "true", "max_steps": -1}, "A stream does not say how many rows it has. Set max_steps"),
    ],
)
def test_data_that_cannot_be_had_as_asked(tmp_path, model_folder, capsys, options, words):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    assert main(train_argv(model_folder, rows, tmp_path / "run", **options)) == BAD_INPUT
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_share_of_a_single_file_may_be_evaluated_on(tmp_path, model_folder):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    argv = train_argv(model_folder, rows, tmp_path / "run", eval_strategy="steps", eval_steps=2, test_split_size=0.5)
    assert main(argv) == 0
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in entry for entry in history)


WRITTEN_TASK = """
from warmup_peft.evaluation.tasks import Question, Task

def read(rows):
    return [Question(row["question"], (" yes",)) for row in rows]

TASK = Task(read=read, metrics=("{metric}",))
"""


@pytest.fixture
def load_no_model(monkeypatch):
    def load(*_, **__):
        raise AssertionError("a model is loaded")

    for module in ("cli.evaluate", "comparison.inspection", "cli.merge"):
        monkeypatch.setattr(f"warmup_peft.{module}.load_folder", load)


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
@pytest.mark.parametrize(("metric", "said"), [("blue", "no metric 'blue'"), ("accuracy", "needs options to choose")])
def test_metrics_are_checked_before_a_model_is_loaded(run, tmp_path, capsys, load_no_model, command, metric, said):
    task = tmp_path / "task.py"
    task.write_text(WRITTEN_TASK.format(metric=metric))
    named = {"run" if command == "inspect" else "adapter": run}
    assert main(argv_of(command, **named, task=task)) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_a_merge_says_that_a_metric_is_unknown(run, tmp_path, capsys, load_no_model, monkeypatch):
    monkeypatch.setattr(logiqa_task, "TASK", dataclasses.replace(TASK, metrics=("blue",)))
    assert main(argv_of("merge", adapter=run, output_dir=tmp_path / "merged")) == 0
    assert "Scores were not compared: There is no metric 'blue'." in capsys.readouterr().out


def test_a_task_that_reads_no_question_is_bad_input(run, tmp_path, capsys, load_no_model):
    task = tmp_path / "task.py"
    task.write_text(WRITTEN_TASK.format(metric="rougeL").replace("for row in rows", "for row in rows if False"))
    assert main(argv_of("evaluate", adapter=run, task=task)) == BAD_INPUT
    assert "reads no question from the rows" in capsys.readouterr().err


def test_written_answers_cannot_be_scored_unwritten(run, tmp_path, capsys, load_no_model):
    task = tmp_path / "task.py"
    task.write_text(WRITTEN_TASK.format(metric="rougeL"))
    assert main(argv_of("evaluate", adapter=run, task=task, max_new_tokens=0)) == BAD_INPUT
    assert "max_new_tokens=0 writes no answer" in capsys.readouterr().err


@pytest.fixture
def refused(tmp_path, capsys, model_folder):
    """Train with these changes; gives the one line that is said, and sees that nothing is made."""

    def call(rows=None, **options) -> str:
        file = write_rows(tmp_path / "rows.jsonl", EXAMPLES) if rows is None else rows
        before = tree(tmp_path)
        argv = train_argv(model_folder, file, tmp_path / "run", **options)
        assert main(argv) == BAD_INPUT
        err = capsys.readouterr().err
        assert "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert last.startswith("warmup-peft: error: ")
        assert tree(tmp_path) == before
        assert not (tmp_path / "run").exists()
        return last.removeprefix("warmup-peft: error: ")

    return call


def test_missing_file(refused, tmp_path):
    assert "missing.jsonl does not exist" in refused(tmp_path / "missing.jsonl")


def test_cut_off_line(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    path.write_text(path.read_text()[:-10])
    assert f"{path}, line {len(EXAMPLES)} is no whole JSON value" in refused(path)


def test_missing_column(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "one?", "answer": "A"}])
    said = refused(path)
    assert "(columns answer, prompt)" in said
    assert "`prompt` and `completion`" in said


def test_later_row_without_a_completion(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "five?"}])
    assert re.search(r"\b(row 4|row 5|line 5)\b", refused(path), re.IGNORECASE)


def test_column_of_mixed_kinds(refused, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "2 + 3?", "completion": 5}])
    assert "rows.jsonl" in refused(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 4}, "Row 3 has answer=4. It is the index of the right option, 0 to 3."),
        ({"answer": -1}, "Row 3 has answer=-1."),
        ({"options": ["a", "b", "c"]}, "Row 3 has 3 options."),
        ({"options": None}, "Row 3 has no `options`."),
    ],
    ids=str,
)
def test_rows_that_are_not_logiqas(refused, tmp_path, change, said):
    rows = puzzles(4)
    rows[2] |= change
    assert refused(write_rows(tmp_path / "rows.jsonl", rows), task="logiqa").startswith(said)


def test_empty_file(refused, tmp_path):
    assert "is empty" in refused(write_rows(tmp_path / "rows.jsonl", []))


def test_rows_that_are_all_too_long(refused, tmp_path):
    long = write_rows(tmp_path / "rows.jsonl", [{"prompt": "x" * 40, "completion": "y"}] * 3)
    said = refused(long, max_length=20)
    assert "all 3 prompts fill max_length=20" in said
    assert "Set max_length higher" in said


def test_row_that_leaves_no_room_for_its_warmup(refused, tmp_path):
    long = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "x" * 500, "completion": "y" * 9}])
    assert "more than the model's context of 512" in refused(long, max_length="512")


def test_empty_prompt(refused, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [*EXAMPLES, {"prompt": "", "completion": "y"}])
    assert "has no prompt before its target" in refused(rows)


def copy_of_model(model_folder: str, folder: Path, ignore: str = "tokenizer*") -> Path:
    return Path(shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns(ignore)))


def test_model_without_tokenizer(refused, tmp_path, model_folder):
    model = copy_of_model(model_folder, tmp_path / "model")
    assert f"{model} gives no tokenizer" in refused(model_name_or_path=model)


def test_tokenizer_without_pad_and_end_token(refused, tmp_path, model_folder):
    model = copy_of_model(model_folder, tmp_path / "model")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "|": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(model)
    assert "has no eos_token" in refused(model_name_or_path=model)


def test_model_folder_that_is_not_there(refused, tmp_path):
    said = refused(model_name_or_path=tmp_path / "nowhere")
    assert "nowhere" in said
    assert "Save the model's tokenizer" not in said


def test_model_folder_without_weights(refused, tmp_path, model_folder):
    model = copy_of_model(model_folder, tmp_path / "model", ignore="*.safetensors")
    assert str(model) in refused(model_name_or_path=model)


def test_output_folder_below_a_file(tmp_path, capsys, model_folder):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    before = tree(tmp_path)
    assert main(train_argv(model_folder, rows, rows / "run")) == BAD_INPUT
    said = capsys.readouterr().err
    assert f"The output folder {rows / 'run'} cannot be written" in said
    assert "Choose another --output_dir" in said
    assert tree(tmp_path) == before


def test_output_folder_that_is_a_file(tmp_path, capsys, model_folder):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    assert main(train_argv(model_folder, rows, rows)) == BAD_INPUT
    assert "cannot be written" in capsys.readouterr().err


def test_anchor_without_adapter(refused):
    assert refused(use_peft="false", warmup_anchor=0.3).startswith("warmup_anchor=0.3 compares")


def test_missing_evaluation_split(refused, tmp_path):
    folder = write_rows(tmp_path / "data" / "train.jsonl", EXAMPLES).parent
    assert "has no file for the split test (it holds: train.jsonl)" in refused(folder, eval_strategy="epoch")


def test_only_a_runs_own_checkpoints_are_removed(tmp_path):
    from warmup_peft.cli.train import remove_run

    for name in ("checkpoint-10", "checkpoint-best-by-me"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("keep")
    remove_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best-by-me", "checkpoint-notes.txt"]


def test_the_bases_own_folder_is_no_output_folder(model_folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Q", "completion": " A"}\n')
    argv = ["train", "--model_name_or_path", model_folder, "--dataset_name", str(rows), "--output_dir", model_folder]
    assert main([*argv, "--bf16", "false"]) == 2
    assert "base model's own folder" in capsys.readouterr().err
