"""The other harness in the chat template: the log-likelihoods and answers of our own predictor."""

from __future__ import annotations

import pytest
import torch
from folders import random_adapter, save_adapter, write_rows
from thinkers import CONVERSATIONS
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from warmup_peft.cli.main import main
from warmup_peft.evaluation.lm_eval_model import WarmupLM
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.tasks import Question
from warmup_peft.inference.folder import WarmupConfig

ASKED = [row["messages"][:1] for row in CONVERSATIONS]
OPTIONS = ("ONE", "TWO")
TASK = """
task: tiny_chats
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: generate_until
test_split: test
doc_to_text: "{{{{messages[0].content}}}}"
doc_to_target: "{{{{messages[1].content}}}}"
generation_kwargs:
  until: []
  max_gen_toks: 6
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def thinker(thinker_folder):
    return AutoTokenizer.from_pretrained(thinker_folder)


@pytest.fixture(scope="module")
def model(thinker_folder):
    return AutoModelForCausalLM.from_pretrained(thinker_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def config(thinker):
    opening, separator = (thinker(x, add_special_tokens=False)["input_ids"] for x in ("<think>\n", "</think>\n\n"))
    return WarmupConfig("</think>\n\n", separator, 4, separator[:1], "<think>\n", opening, uses_chat_template=True)


def test_log_likelihoods_of_a_conversation(model, thinker, config):
    lm = WarmupLM(model, thinker, config)
    requests = [
        Instance("loglikelihood", {}, (lm.apply_chat_template(messages), option), 0)
        for messages in ASKED
        for option in OPTIONS
    ]
    found = [logp for logp, _ in lm.loglikelihood(requests)]
    questions = [Question(messages, OPTIONS) for messages in ASKED]
    predictor = Predictor(model, thinker, config)
    expected = predictor.logps(questions, predictor.warmups(questions))
    assert found == pytest.approx([logp for each in expected for logp in each], abs=1e-3)


def test_answers_to_a_conversation(model, thinker, config):
    lm = WarmupLM(model, thinker, config)
    how = {"until": [], "max_gen_toks": 6, "do_sample": False}
    requests = [Instance("generate_until", {}, (lm.apply_chat_template(messages), how), 0) for messages in ASKED]
    predictor = Predictor(model, thinker, config)
    written = predictor.write([Question(messages, ("",)) for messages in ASKED], 6)
    assert [text.strip() for text in lm.generate_until(requests)] == [text.strip() for text in written.texts]
    assert len(set(written.texts)) > 1


def test_the_command_applies_the_template_where_the_training_did(
    thinker_folder, thinker, config, lora, tmp_path, monkeypatch
):
    adapter = save_adapter(tmp_path / "adapter", random_adapter(thinker_folder, lora), thinker, thinker_folder)
    config.save(adapter)
    task = tmp_path / "tiny_chats.yaml"
    task.write_text(TASK.format(rows=write_rows(tmp_path / "rows.jsonl", CONVERSATIONS)))
    contexts, encode = [], WarmupLM.tok_batch_encode
    monkeypatch.setattr(
        WarmupLM, "tok_batch_encode", lambda lm, texts, *a, **k: contexts.extend(texts) or encode(lm, texts, *a, **k)
    )
    assert main(["evaluate", "--adapter", str(adapter), "--harness", str(task)]) == 0
    rendered = [thinker.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in ASKED]
    assert sorted(contexts) == sorted(rendered * 2)  # of the base and of the adapter
