"""`warmup_peft.evaluate`: what the command prints, as an object; for folders, trainers and given rows."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import EXAMPLES
from folders import tree, write_rows
from peft import LoraConfig
from trainers import make_trainer
from transformers import set_seed

from warmup_peft import Question, Task, evaluate, load_adapter
from warmup_peft.cli.main import main
from warmup_peft.evaluation import evaluate as module
from warmup_peft.inference.folder import METRICS_NAME
from warmup_peft.inference.loading import Loading


def read(rows):
    return [Question(row["prompt"], (row["completion"],)) for row in rows]


def length(predictions, references):
    return [1 / (1 + len(prediction)) for prediction in predictions]


TASK = Task(read=read, metrics=("exact_match", length), max_new_tokens=3)


def test_scores_are_those_of_the_command(adapter, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    before = tree(adapter)
    found = evaluate(adapter, str(rows), max_samples=3, warmups="own,none")
    assert tree(adapter) == before
    capsys.readouterr()
    argv = ["--adapter", adapter, "--dataset_name", rows, "--max_samples", 3, "--warmups", "own,none"]
    assert main(["evaluate", *map(str, argv)]) == 0
    shown = capsys.readouterr().out
    written = json.loads((adapter / METRICS_NAME).read_text())
    assert {name: written[name] for name in found.scores} == found.to_dict()
    assert found.scores.keys() == {"base", "base_with_warmup", "warmup", "none"}
    assert written["settings"] == found.settings
    assert "adapter, after its warmup" in shown


def test_rows_and_a_task_of_ones_own(adapter):
    found = evaluate(adapter, EXAMPLES, TASK, compare_base=False, warmups="own,shuffled,none")
    assert found.num_rows == found.scores["warmup"]["n"] == len(EXAMPLES) == len(found.predictions)
    assert list(found.scores) == ["warmup", "shuffled", "none"]
    assert 0 < found.scores["warmup"]["length"] <= 1
    assert found.source == "4 given rows"
    table = found.to_pandas()
    assert list(table["arm"]) == [
        "adapter, after its warmup", "adapter, after another row's warmup", "adapter, after no warmup"
    ]  # fmt: skip
    assert list(table["length"]) == [scores["length"] for scores in found.scores.values()]
    assert "adapter, after its warmup" in str(found)
    assert str(found).endswith(found.sentences[-1])


def test_a_trainer_scores_as_its_folder_does(model_folder, tmp_path, tokenizer, lora):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    trainer.train()
    trainer.save_model()
    options = dict(compare_base=False, warmups="own,none")
    of_trainer, of_folder = (evaluate(m, EXAMPLES, TASK, **options) for m in (trainer, trainer.args.output_dir))
    assert of_trainer.scores.keys() == of_folder.scores.keys()
    for name, scores in of_folder.scores.items():
        assert of_trainer.scores[name] == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        ([], {}, "has no rows"),
        (EXAMPLES, {"warmups": "mine"}, "has 'mine'"),
        (EXAMPLES, {"batch_size": 0}, "batch_size=0 cannot work"),
        (EXAMPLES, {"max_new_tokens": 0}, "max_new_tokens=0 writes no answer"),
        (None, {}, "does not say what it was trained on"),
        (EXAMPLES, {"device": "cuda:77"}, "device=cuda:77 is not there"),
        (EXAMPLES, {"device": "cpu", "device_map": "auto"}, "Choose one"),
        (EXAMPLES, {"revision": "v2"}, "is a local folder, which has no revisions"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(adapter, monkeypatch, dataset, options, said):
    monkeypatch.setattr("warmup_peft.evaluation.evaluate.load_folder", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(ValueError, match=said):
        evaluate(adapter, dataset, **options)


def test_an_id_on_the_hub_and_how_it_is_loaded(adapter, monkeypatch):
    asked, load = [], module.load_folder
    monkeypatch.setattr(module, "local_folder", lambda *named: asked.append(named) or str(adapter))
    monkeypatch.setattr(module, "load_folder", lambda *given: asked.append(given) or load(*given))
    options = dict(compare_base=False, revision="v2", device="cpu", trust_remote_code=True)
    assert evaluate("me/adapter", EXAMPLES, TASK, **options).num_rows == len(EXAMPLES)
    assert asked == [("me/adapter", "v2"), (str(adapter), Loading("cpu", trust_remote_code=True))]


@pytest.mark.parametrize("anchor", [0.0, 0.3])
def test_the_base_of_a_trainer_whose_adapter_changes_it(model_folder, tmp_path, tokenizer, anchor, capsys):
    """It is the model as training began, where the trainer keeps that for its anchor."""
    set_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], init_lora_weights="pissa")
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=config, warmup_anchor=anchor)
    scores = [evaluate(trainer, EXAMPLES, TASK).scores]
    for parameter in trainer.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    scores.append(evaluate(trainer, EXAMPLES, TASK).scores)
    assert scores[0]["warmup"] != scores[1]["warmup"]
    if anchor:
        assert scores[1]["base"] == pytest.approx(scores[0]["base"])
        assert scores[1]["base_with_warmup"] == pytest.approx(scores[0]["warmup"])
    else:
        assert scores[1].keys() == {"warmup"}
        assert "not scored: init_lora_weights='pissa' changes the base's own weights" in capsys.readouterr().out


def test_a_trainer_has_no_revisions():
    with pytest.raises(ValueError, match=r"^A trainer's model has no revisions\. Leave revision=v2 out\.$"):
        evaluate(object(), EXAMPLES, TASK, revision="v2")


def test_an_adapter_loads_with_its_tokenizer(adapter):
    model, tokenizer = load_adapter(adapter)
    assert not model.training
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    with pytest.raises(ValueError, match="does not exist"):
        load_adapter(adapter / "elsewhere")
