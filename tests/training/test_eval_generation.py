"""Answers scored while training: they score as in `evaluate`, choose the best model, and leave all else as it was."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_world import CONVERSATIONS
from datasets import Dataset
from folders import TRAINING, argv_of, write_rows
from safetensors.torch import load_file
from trainers import randomise_adapter
from transformers import TrainerCallback

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.cli.main import main
from warmup_peft.training.eval_generation import first_examples, write

PAIRS = [{"prompt": f"{name}: ", "completion": name.upper()} for name in ("one", "two", "three", "four")]
LEARNING = {**TRAINING, "max_steps": 30, "learning_rate": "0.02", "per_device_train_batch_size": 4, "seed": 1}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 10, "eval_generate": 3, "per_device_eval_batch_size": 2}
METRICS = "exact_match,contains,rougeL,bleu"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for split in ("train", "test"):
        write_rows(folder / f"{split}.jsonl", PAIRS)
    return folder


def evaluations(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [log for log in history if "eval_loss" in log]


def test_scores_are_those_of_evaluate_on_the_same_rows(model_folder, data, tmp_path, capsys):
    run = tmp_path / "run"
    options = {**LEARNING, **EVALUATING, "eval_metrics": METRICS}
    argv = argv_of("train", model_name_or_path=model_folder, dataset_name=data, output_dir=run, **options)
    assert main(argv) == 0
    said = " ".join(capsys.readouterr().out.split())
    logged = evaluations(run)
    assert [log["step"] for log in logged] == [10, 20, 30]
    assert len({log["eval_rougeL"] for log in logged}) > 1
    assert "Answers at step 30" in said
    assert f"exact match {logged[-1]['eval_exact_match']:.3f}" in said
    assert main(argv_of("evaluate", adapter=run, max_samples=3, compare_base="false")) == 0
    scores = json.loads((run / "metrics.json").read_text())["warmup"]
    assert list(scores) == [*METRICS.split(","), "perplexity", "n"]  # those of the training, without a --task
    for name in METRICS.split(","):
        assert logged[-1][f"eval_{name}"] == pytest.approx(scores[name], abs=1e-9)
    assert 0 < scores["exact_match"] < 1


class Scramble(TrainerCallback):
    """Spoils the adapter after so many steps."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            randomise_adapter(model)


@pytest.fixture
def trainer_with(model_folder, tokenizer, lora, tmp_path):
    """As in a script of one's own: no task, no command line."""

    def build(rows=PAIRS, **settings):
        settings = {
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "bf16": False, "report_to": "none",
            "gradient_checkpointing": False, "max_warmup_length": 3, "num_warmups": 2, "max_steps": 1,
            "disable_tqdm": True, "save_strategy": "no", **settings,
        }  # fmt: skip
        rows = Dataset.from_list(rows)
        return WarmupSFTTrainer(
            model_folder,
            WarmupSFTConfig(str(tmp_path / "run"), **settings),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora,
        )

    return build


def test_the_best_model_is_the_one_that_answers_best(trainer_with):
    trainer = trainer_with(
        max_steps=40, learning_rate=0.02, eval_strategy="steps", eval_steps=10, save_strategy="steps", save_steps=10,
        eval_generate=4, load_best_model_at_end=True, metric_for_best_model="exact_match",
    )  # fmt: skip
    trainer.add_callback(Scramble(39))
    trainer.train()
    found = {log["step"]: log["eval_exact_match"] for log in trainer.state.log_history if "eval_exact_match" in log}
    best = max(found, key=found.get)
    assert found[40] < found[best] == trainer.state.best_metric
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    saved = load_file(Path(trainer.state.best_model_checkpoint, "adapter_model.safetensors"))
    own = {name.replace(".default", ""): p for name, p in trainer.model.named_parameters() if "lora_" in name}
    assert all(torch.equal(own[name], saved[name]) for name in saved)
    again = trainer.evaluate()
    assert again["eval_exact_match"] == found[best]


def test_training_goes_on_as_if_nothing_had_been_written(trainer_with):
    """Weights, log and random numbers of every kind; and the mode of each module."""
    ended = []
    for count in (0, 4):
        trainer = trainer_with(
            max_steps=4, eval_strategy="steps", eval_steps=1, eval_generate=count, gradient_checkpointing=True
        )
        np.random.seed(3)
        trainer.train()
        weights = torch.cat([p.flatten() for p in trainer.model.parameters() if p.requires_grad])
        losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
        ended.append((weights, losses, torch.get_rng_state(), np.random.rand()))
    assert all(torch.equal(one, other) for one, other in zip(ended[0][::2], ended[1][::2]))
    assert ended[0][1::2] == ended[1][1::2]


def test_answers_to_conversations_score_as_in_evaluate(chat_folder, tmp_path):
    """In the thinking format: prompts end with the opening, and warmups at the separator's first token."""
    folder, run = tmp_path / "chats", tmp_path / "run"
    for split in ("train", "test"):
        write_rows(folder / f"{split}.jsonl", CONVERSATIONS)
    options = {
        **LEARNING,
        **EVALUATING,
        "eval_generate": 4,
        "eval_steps": 60,
        "max_steps": 60,
        "eval_metrics": METRICS,
    }
    argv = argv_of("train", model_name_or_path=chat_folder, dataset_name=folder, output_dir=run, **options)
    assert main(argv) == 0
    assert json.loads((run / "warmup_config.json").read_text())["warmup_opening"] == "<think>\n"
    assert main(argv_of("evaluate", adapter=run)) == 0
    scores = json.loads((run / "metrics.json").read_text())
    (logged,) = evaluations(run)
    for name in METRICS.split(","):
        assert logged[f"eval_{name}"] == pytest.approx(scores["warmup"][name], abs=1e-9)
    assert scores["warmup"]["exact_match"] > scores["base"]["exact_match"] == 0


def test_the_mode_stays_as_it_was(trainer_with):
    trainer = trainer_with(eval_generate=2)
    examples = first_examples(trainer, trainer.eval_dataset, 2)
    for is_training in (True, False):
        trainer.model.train(is_training)
        modes = [module.training for module in trainer.model.modules()]
        write(trainer, examples)
        assert [module.training for module in trainer.model.modules()] == modes


def test_prompts_and_references_are_those_of_the_prepared_rows(tokenizer, trainer_with):
    trainer = trainer_with(eval_generate=3)
    examples = first_examples(trainer, trainer.eval_dataset, 3)
    assert [tokenizer.decode(prompt) for prompt, _ in examples] == [row["prompt"] for row in PAIRS[:3]]
    assert [tokenizer.decode(target) for _, target in examples] == [row["completion"] + "<|eos|>" for row in PAIRS[:3]]
    written = write(trainer, examples)
    assert [row.reference for row in written] == [row["completion"].strip() for row in PAIRS[:3]]
    stream = trainer.eval_dataset.to_iterable_dataset()
    assert first_examples(trainer, stream, 3) == examples
    assert len(first_examples(trainer, trainer.eval_dataset, 99)) == 4


def test_rows_are_shared_by_the_ranks(trainer_with, monkeypatch):
    """Each rank writes to its own rows, and every rank has all of them in their order."""
    trainer = trainer_with(eval_generate=3)
    examples = first_examples(trainer, trainer.eval_dataset, 3)
    whole = write(trainer, examples)
    parts = []
    monkeypatch.setattr("warmup_peft.training.eval_generation.gather_object", lambda part: parts.append(part) or part)
    accelerator = type(trainer.accelerator)
    monkeypatch.setattr(accelerator, "num_processes", 4)
    for rank in range(4):
        monkeypatch.setattr(accelerator, "process_index", rank)
        write(trainer, examples)
    assert [len(part) for part in parts] == [1, 1, 1, 0]
    assert [row for _, row in sorted(itertools.chain(*parts))] == whole


# ---- Bad input ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"eval_generate": 8, "eval_metrics": "exact_matches"},
            "no metric 'exact_matches'. Did you mean 'exact_match'?",
        ),
        ({"eval_generate": 8, "eval_metrics": "accuracy"}, "The metric accuracy needs options"),
        ({"eval_generate": 8, "eval_metrics": ","}, "name none, or one twice"),
        ({"eval_generate": -1}, "eval_generate=-1 cannot work. Set it to 0 (never) or more."),
        ({"metric_for_best_model": "exact_match"}, "Set eval_generate to the number of rows"),
        ({"eval_generate": 8, "metric_for_best_model": "eval_bleu"}, "bleu is not among eval_metrics=exact_match"),
        ({"eval_generate": 8, "eval_strategy": "no"}, "eval_strategy is 'no'. Set eval_strategy to steps or epoch"),
    ],
)
def test_options_that_cannot_work_are_refused_before_a_model_is_loaded(
    model_folder, data, tmp_path, refusal, monkeypatch, options, words
):
    def load(*_, **__):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    settings = {**TRAINING, "eval_strategy": "steps", **options}
    paths = {"model_name_or_path": model_folder, "dataset_name": data, "output_dir": tmp_path / "run"}
    assert words in refusal(*argv_of("train", **paths, **settings))
