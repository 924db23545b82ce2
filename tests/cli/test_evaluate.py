"""`warmup-peft evaluate`: scores, the card, which rows are scored, and what is refused."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from conftest import tiny_config
from folders import (
    argv_of,
    puzzles,
    random_adapter,
    save_adapter,
    train_argv,
    tree,
    write_rows,
)
from safetensors.torch import save_file
from trainings import weights
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.evaluation.answering import generate_texts
from warmup_peft.evaluation.evaluate import evaluate_arms, what_it_shows
from warmup_peft.evaluation.logiqa import TASK, logiqa
from warmup_peft.evaluation.metric import mean_of_rows
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.rows import held_out_questions
from warmup_peft.inference.folder import training_seconds
from warmup_peft.inference.loading import load_folder
from warmup_peft.inference.scores import ARM_NAMES
from warmup_peft.settings.arguments import EvaluateArguments

WRITTEN_TASK = """
from warmup_peft.evaluation.tasks import Question, Task

def read(rows):
    return [Question(row["question"], (" yes",)) for row in rows]

TASK = Task(read=read, metrics=("{metric}",))
"""


def test_evaluation_writes_scores_and_card(run, puzzle_data, tokenizer, capsys):
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
    assert settings["data"] == f"{puzzle_data}, split test"
    assert (settings["num_warmups"], settings["max_warmup_length"], settings["steps"]) == (2, 4, 2)
    card = (run / "README.md").read_text()
    for arm in ("base", "base_with_warmup", "warmup"):
        numbers = " | ".join(f"{value:,.3f}" for name, value in metrics[arm].items() if name != "n")
        assert f"| {ARM_NAMES[arm]} | {numbers} | 8 |" in card
    assert "| held-out data | accuracy | macro f1 | perplexity |" in card
    out = capsys.readouterr().out
    assert "adapter, after" in out
    assert f"Scores: {run / 'metrics.json'}" in out


def test_an_arm_that_writes_nothing_has_the_same_columns(run, capsys, monkeypatch):
    def silent_base(*arguments, **sampling):
        texts = generate_texts(*arguments, **sampling)
        return ["" for _ in texts] if arguments[4] is None else texts

    monkeypatch.setattr("warmup_peft.evaluation.answering.generate_texts", silent_base)
    assert main(argv_of("evaluate", adapter=run, max_new_tokens=4)) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["base"]["generations_that_are_options"] == 0.0
    assert list(metrics["base"]) == list(metrics["base_with_warmup"]) == list(metrics["warmup"])
    assert "writes an option" in " ".join(capsys.readouterr().out.split())


def test_other_text_in_the_place_of_the_warmup(run, tmp_path, capsys):
    """Each row of the table is a prediction with these very warmups."""
    assert main(argv_of("evaluate", adapter=run, warmups="own,shuffled,dots,none", compare_base="false")) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics)[:4] == ["warmup", "shuffled", "dots", "none"]
    loaded = load_folder(run)
    questions = held_out_questions(EvaluateArguments(str(run)), loaded.record.data).questions
    predictor = Predictor(loaded.model, loaded.tokenizer, loaded.warmup_config)
    own = predictor.warmups(questions)
    dot = loaded.tokenizer(" .")["input_ids"][-1]
    instead = {"warmup": own, "shuffled": [own[-1], *own[:-1]], "dots": [[dot] * len(ids) for ids in own]}
    instead["none"] = [[] for _ in own]
    for name, warmup_ids in instead.items():
        predictions = predictor.answer(questions, 0, warmup_ids)
        right = sum(p.choice == q.answer for p, q in zip(predictions, questions))
        assert metrics[name]["accuracy"] == right / len(questions), name
    assert capsys.readouterr().out.count("│ adapter, after") == 4


def test_an_sft_adapter_is_scored_beside(run, model_folder, puzzle_data, tmp_path, capsys):
    argv = train_argv(model_folder, puzzle_data, tmp_path / "sft", task="logiqa", max_steps=1)
    assert main(["sft", *argv[1:]]) == 0
    assert main(argv_of("evaluate", adapter=run, sft=tmp_path / "sft")) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["sft"]["n"] == metrics["warmup"]["n"]
    said = re.search(r"The adapter was trained for (\d+) seconds, SFT for (\d+)\.", capsys.readouterr().out)
    assert said, "how long both were trained"
    assert [float(each) for each in said.groups()] == [round(training_seconds(at)) for at in (run, tmp_path / "sft")]
    assert main(argv_of("evaluate", adapter=run, sft=run)) == BAD_INPUT
    assert "answers after a warmup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ({"sft": 25, "shuffled": 30, "none": 35}, ["better than SFT: 1.000 against 0.250", "are read"]),
        ({"sft": 100, "shuffled": 100, "none": 35}, ["no better than SFT", "are a pause"]),
        ({"shuffled": 99, "none": 99}, ["are not used"]),  # one row of a hundred is no evidence
        ({"sft": 25}, ["better than SFT"]),
        ({}, []),
    ],
)
def test_what_a_table_shows_is_said(right, said):
    rows = {name: mean_of_rows([1.0] * count + [0.0] * (100 - count)) for name, count in right.items()}
    found = what_it_shows({"warmup": mean_of_rows([1.0] * 100), **rows})
    assert len(found) == len(said)
    assert all(words in sentence for words, sentence in zip(said, found))


def test_unknown_warmups_are_refused(run, capsys):
    assert main(argv_of("evaluate", adapter=run, warmups="own,random")) == BAD_INPUT
    assert "--warmups has 'random'. Choose from own, plain, shuffled, dots, none." in capsys.readouterr().err


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


def test_options_of_the_evaluation(run, puzzle_data):
    argv = argv_of(
        "evaluate",
        adapter=run,
        dataset_name=puzzle_data / "validation.jsonl",
        answer_format="letter",
        max_samples=3,
        max_new_tokens=0,
        compare_base="false",
    )
    assert main(argv) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == ["warmup", "settings", "weights"]
    assert metrics["warmup"]["n"] == 3
    assert metrics["settings"]["data"] == str(puzzle_data / "validation.jsonl")


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


def test_scores_of_the_rows_of_the_training_are_not_saved(run, tmp_path, capsys):
    kept = shutil.copytree(run, tmp_path / "copy")
    before = tree(kept)
    argv = argv_of("evaluate", adapter=kept, dataset_test_split="train", max_new_tokens=4, max_samples=2)
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "split train (rows of the training)" in " ".join(out.split())
    assert "their scores are not saved" in out
    assert tree(kept) == before


def test_missing_test_split_falls_back_to_validation_and_says_so(run, puzzle_data, tmp_path, capsys):
    folder = tmp_path / "no-test"
    shutil.copytree(puzzle_data, folder)
    (folder / "test.jsonl").unlink()
    assert main(argv_of("evaluate", adapter=run, dataset_name=folder, max_new_tokens=0)) == 0
    assert "has no split test; scoring on its validation split" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())["settings"]["data"] == f"{folder}, split validation"


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
    assert f"| adapter, after its warmup | {metrics['warmup']['accuracy']:.3f} |" in (run / "README.md").read_text()


def test_a_prompt_beyond_the_context_is_bad_input(run, capsys):
    assert main(argv_of("generate", adapter=run, prompt="y" * 480, max_new_tokens=64)) == BAD_INPUT
    assert re.search(
        r"A prompt of 480 tokens .* needs 5\d\d, and the model's context has 512", capsys.readouterr().err
    )


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


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
@pytest.mark.parametrize(("metric", "said"), [("blue", "no metric 'blue'"), ("accuracy", "needs options to choose")])
def test_metrics_are_checked_before_a_model_is_loaded(run, tmp_path, capsys, load_no_model, command, metric, said):
    task = tmp_path / "task.py"
    task.write_text(WRITTEN_TASK.format(metric=metric))
    named = {"run" if command == "inspect" else "adapter": run}
    assert main(argv_of(command, **named, task=task)) == BAD_INPUT
    assert said in capsys.readouterr().err


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
