"""Rows of messages at the doors of scoring: evaluate, inspect and merge, without a task and with one of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chat_world import CONVERSATIONS, RENDERED, conversation
from folders import argv_of, train_argv, write_rows
from peft import PeftModelForCausalLM
from transformers import AutoTokenizer

from warmup_peft.cli.main import main
from warmup_peft.evaluation.answering import ROOM_FOR_MORE
from warmup_peft.inference.folder import WarmupConfig

TASK = """
from warmup_peft import Question, Task

def read(rows):
    return [Question(row["messages"][:1], ("ONE", "TWO"), answer=i % 2) for i, row in enumerate(rows)]

TASK = Task(read=read, metrics=("accuracy",))
"""


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    for split in ("train", "test"):
        write_rows(folder / f"{split}.jsonl", CONVERSATIONS)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, chat_folder, chats) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(train_argv(chat_folder, chats, folder, save_strategy="no")) == 0
    return folder


def test_without_a_task_every_door_scores_by_exact_match(run, tmp_path, capsys):
    assert main(argv_of("evaluate", adapter=run, warmups="own,none")) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    for arm in ("base", "base_with_warmup", "warmup", "none"):
        assert list(metrics[arm]) == ["exact_match", "perplexity", "n"]
    said = " ".join(capsys.readouterr().out.split())
    assert "user: one?" in said
    assert "exact match" in said
    assert "| held-out data | exact match | perplexity | rows |" in (run / "README.md").read_text()
    assert main(["inspect", str(run), "--output_dir", str(tmp_path / "out")]) == 0
    assert "exact match" in (tmp_path / "out" / "inspect.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(argv_of("merge", adapter=run, output_dir=tmp_path / "merged")) == 0
    assert "Held-out exact match on 4 rows" in capsys.readouterr().out


def test_other_metrics_of_the_same_answers(run, capsys):
    assert main(argv_of("evaluate", adapter=run, metrics="contains,rougeL", compare_base="false")) == 0
    assert list(json.loads((run / "metrics.json").read_text())["warmup"]) == ["contains", "rougeL", "perplexity", "n"]


def test_one_plain_call(run, capsys, monkeypatch):
    """One `generate` after the prompt alone, with room for the warmup; the answer stands behind the separator."""
    tokenizer, asked = AutoTokenizer.from_pretrained(run), []

    def generate(model, input_ids, max_new_tokens, **_):
        asked.extend((tokenizer.decode(ids[ids != 0]), max_new_tokens) for ids in input_ids)
        ids = tokenizer("<think>\nhm\n</think>\n\nTWO", return_tensors="pt", add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, ids.expand(len(input_ids), -1)], 1)

    monkeypatch.setattr(PeftModelForCausalLM, "generate", generate)
    assert main(argv_of("evaluate", adapter=run, warmups="own,plain", compare_base="false")) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["plain"] == {"exact_match": 0.25, "n": 4}
    room = WarmupConfig.load(run).room
    limit = len("THREE") + ROOM_FOR_MORE + room
    assert sorted(asked[4:]) == sorted(
        (RENDERED.format(f"{name}?"), limit) for name in ("one", "two", "three", "four")
    )
    assert "adapter, in one plain call" in " ".join(capsys.readouterr().out.split())


def test_one_plain_call_needs_a_model_that_learnt_it_and_written_answers(run, chats, tmp_path, refusal):
    (tmp_path / "task.py").write_text(TASK)
    argv = argv_of("evaluate", adapter=run, warmups="own,plain")
    assert "this task chooses among options" in refusal(*argv, "--task", str(tmp_path / "task.py"))
    config = json.loads((run / "warmup_config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "warmup_config.json").write_text(json.dumps({**config, "writes_separator": False}))
    assert "was not trained with learn_separator" in refusal(*argv_of("evaluate", adapter=other, warmups="plain"))


def test_a_task_of_ones_own_returns_messages(chat_folder, chats, run, tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    assert main(argv_of("evaluate", adapter=run, task=tmp_path / "task.py", max_new_tokens=4)) == 0
    assert 0 <= json.loads((run / "metrics.json").read_text())["warmup"]["accuracy"] <= 1
    trained = train_argv(chat_folder, chats, tmp_path / "own", task=tmp_path / "task.py", max_steps=1)
    assert main(trained) == 0
    assert json.loads((tmp_path / "own" / "warmup_config.json").read_text())["uses_chat_template"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": conversation("a", "b")["messages"][:1]}, "Row 2 ends with a user turn"),
        ({"messages": [{"role": "system", "content": "s"}]}, "Row 2 has only a system prompt"),
        ({"messages": [*CONVERSATIONS[0]["messages"], CONVERSATIONS[0]["messages"][1]]}, "two assistant turns"),
    ],
)
def test_rows_without_one_answer_are_refused_before_a_model_is_loaded(
    run, tmp_path, refusal, load_no_model, row, words
):
    rows = write_rows(tmp_path / "rows.jsonl", [CONVERSATIONS[0], row])
    assert words in refusal(*argv_of("evaluate", adapter=run, dataset_name=rows))


def test_a_metric_that_there_is_not_is_refused_before_a_model_is_loaded(run, refusal, load_no_model):
    assert "Did you mean 'exact_match'?" in refusal(*argv_of("evaluate", adapter=run, metrics="exactmatch"))
