"""The other harness must say what our own says: same questions, same accuracy, for base, adapter and no warmup."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from folders import puzzles, random_adapter, save_adapter, warmup_config, write_rows
from thinkers import save_thinker, thinking_tokenizer
from transformers import AutoModelForCausalLM

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.evaluation import lm_eval_model as module
from warmup_peft.evaluation.lm_eval_model import WarmupLM, log_mean_exp, run_tasks
from warmup_peft.evaluation.logiqa import logiqa
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.inference.chat import prompt_token_ids
from warmup_peft.inference.decoding import warmup_generate
from warmup_peft.inference.folder import WarmupConfig

TASK = """
task: tiny_puzzles
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: multiple_choice
test_split: test
doc_to_text: |-
  Passage: {{{{text.strip()}}}}
  Question: {{{{question}}}}
  A. {{{{options[0]}}}}
  B. {{{{options[1]}}}}
  C. {{{{options[2]}}}}
  D. {{{{options[3]}}}}
  Answer:
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: " "
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    rows = write_rows(folder / "rows.jsonl", puzzles(24))
    path = folder / "tiny_puzzles.yaml"
    path.write_text(TASK.format(rows=rows))
    return path


@pytest.fixture(scope="module")
def base(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("base", "no warmup")), "adapter"]
)
def test_accuracy_is_that_of_our_own_evaluation(base, model_folder, tokenizer, lora, task, kind):
    model = base if kind == "base" else random_adapter(model_folder, lora)
    config = warmup_config(tokenizer, 0 if kind == "no warmup" else 5)
    questions = logiqa(puzzles(24))
    predictions = Predictor(model, tokenizer, config).answer(questions, max_new_tokens=0)
    expected = sum(p.choice == q.answer for p, q in zip(predictions, questions)) / len(questions)
    results = run_tasks(model, tokenizer, config, [str(task)], batch_size=5)
    assert results["results"]["tiny_puzzles"]["acc,none"] == pytest.approx(expected)


def instances(kind, arguments):
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


PAIRS = [("Q: one?", " A"), ("Q: one?", " no, two"), ("x", " yes"), ("A longer question: two?", " four")]


def test_log_likelihoods_follow_the_warmup_of_their_context(base, tokenizer):
    config = warmup_config(tokenizer)
    scores = WarmupLM(base, tokenizer, config, batch_size=3).loglikelihood(instances("loglikelihood", PAIRS))
    for (context, continuation), (logp, _) in zip(PAIRS, scores):
        ids = tokenizer(context, return_tensors="pt")
        whole = warmup_generate(
            base, **ids, warmup_config=config, return_warmup=True, max_new_tokens=1, do_sample=False
        )
        prefix = whole[0, :-1].tolist()
        target = tokenizer(continuation)["input_ids"]
        logps = base(torch.tensor([prefix + target])).logits[0].log_softmax(-1)
        expected = sum(logps[len(prefix) + i - 1, token].item() for i, token in enumerate(target))
        assert logp == pytest.approx(expected, rel=1e-4)


def test_several_warmups_are_averaged_as_likelihoods(base, tokenizer, monkeypatch):
    config = warmup_config(tokenizer)
    lm = WarmupLM(base, tokenizer, config, num_warmups=3)
    suffixes = {
        tuple(tokenizer(c)["input_ids"]): [[50 + k, *config.warmup_separator_ids] for k in range(3)] for c, _ in PAIRS
    }
    monkeypatch.setattr(lm, "_write", lambda contexts: suffixes)
    several = lm.loglikelihood(instances("loglikelihood", PAIRS))
    single = []
    for k in range(3):
        one = WarmupLM(base, tokenizer, config)
        monkeypatch.setattr(one, "_write", lambda contexts, k=k: {c: [s[k]] for c, s in suffixes.items()})
        single.append(one.loglikelihood(instances("loglikelihood", PAIRS)))
    for i, (logp, _) in enumerate(several):
        assert logp == pytest.approx(math.log(sum(math.exp(scores[i][0]) for scores in single) / 3), rel=1e-4)


def test_log_mean_exp_by_hand():
    assert log_mean_exp([math.log(0.1), math.log(0.3)]) == pytest.approx(math.log(0.2))
    assert log_mean_exp([-5000.0, -5000.0]) == pytest.approx(-5000.0)


def log_likelihood(base, config, context_ids, target_ids):
    """By hand: the greedy warmup of these ids, the separator, and the log-probabilities of the target after them."""
    ids = torch.tensor([context_ids])
    whole = warmup_generate(base, ids, warmup_config=config, return_warmup=True, max_new_tokens=1, do_sample=False)
    prefix = whole[0, :-1].tolist()
    assert len(prefix + target_ids) - 1 <= base.config.max_position_embeddings
    logps = base(torch.tensor([prefix + target_ids])).logits[0].log_softmax(-1)
    return sum(logps[len(prefix) + i - 1, token].item() for i, token in enumerate(target_ids))


@pytest.mark.parametrize("length", [500, 501, 502, 530])
def test_contexts_near_the_limit_lose_no_more_than_they_must(base, tokenizer, length):
    """512 positions; 5 for the warmup, 3 for the separator, 3 for all but the last token of " yes": 501 are left."""
    config = warmup_config(tokenizer)
    context = "".join(chr(97 + i * i % 26) for i in range(length))
    ((logp, _),) = WarmupLM(base, tokenizer, config).loglikelihood(instances("loglikelihood", [(context, " yes")]))
    ids, target = tokenizer(context)["input_ids"], tokenizer(" yes")["input_ids"]
    assert logp == pytest.approx(log_likelihood(base, config, ids[-501:], target), rel=1e-4)
    if length > 501:
        assert logp != pytest.approx(log_likelihood(base, config, ids[-500:], target), rel=1e-4)


def test_options_of_a_context_near_the_limit_share_its_warmup(base, tokenizer):
    config = warmup_config(tokenizer)
    context, options = "".join(chr(97 + i * i % 26) for i in range(520)), (" A", " no, two")
    pairs = [(context, option) for option in options]
    scores = WarmupLM(base, tokenizer, config).loglikelihood(instances("loglikelihood", pairs))
    kept = tokenizer(context)["input_ids"][-(512 - 8 - 7) :]
    for option, (logp, _) in zip(options, scores):
        expected = log_likelihood(base, config, kept, tokenizer(option)["input_ids"])
        assert logp == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("request_kind", ["loglikelihood", "generate_until"])
def test_no_room_for_a_prompt_is_said(base, tokenizer, request_kind):
    lm = WarmupLM(base, tokenizer, warmup_config(tokenizer, max_warmup_length=500))
    arguments = {"loglikelihood": ("x", " yes" * 5), "generate_until": ("x", {"until": ["."], "max_gen_toks": 20})}
    with pytest.raises(ValueError, match=r"leave no room for a prompt in the model's context of 512"):
        getattr(lm, request_kind)(instances(request_kind, [arguments[request_kind]]))


@pytest.mark.parametrize("length", [5, 0], ids=["warmup", "no warmup"])
def test_nan_logits_are_not_scored(base, tokenizer, length):
    broken = copy.deepcopy(base)
    broken.lm_head.weight.data[5] = math.nan
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        WarmupLM(broken, tokenizer, warmup_config(tokenizer, length)).loglikelihood(instances("loglikelihood", PAIRS))


def test_each_context_is_warmed_up_once(base, tokenizer, monkeypatch):
    lm, written = WarmupLM(base, tokenizer, warmup_config(tokenizer)), []
    write = lm._write
    monkeypatch.setattr(lm, "_write", lambda contexts: written.extend(contexts) or write(contexts))
    lm.loglikelihood(instances("loglikelihood", PAIRS))
    assert len(written) == len(set(written)) == 3


def test_free_generations_are_warmup_generates(base, tokenizer):
    config = warmup_config(tokenizer)
    contexts = ["Q: one?", "A longer question: two?"]
    requests = instances("generate_until", [(c, {"until": ["\n\n"], "max_gen_toks": 6}) for c in contexts])
    written = WarmupLM(base, tokenizer, config, batch_size=2).generate_until(requests, disable_tqdm=True)
    for context, text in zip(contexts, written):
        ids = tokenizer(context, return_tensors="pt")
        answer = warmup_generate(base, **ids, warmup_config=config, max_new_tokens=6, do_sample=False)
        assert text == tokenizer.decode(answer[0, ids["input_ids"].size(1) :], skip_special_tokens=True)


@pytest.mark.parametrize("length", [20, 498, 499, 530])
def test_free_generations_near_the_limit(base, tokenizer, length):
    """512 positions; 5 for the warmup, 3 for the separator, 6 for the answer: 498 are left."""
    config = warmup_config(tokenizer)
    context = "".join(chr(97 + i * i % 26) for i in range(length))
    requests = instances("generate_until", [(context, {"until": ["\n\n"], "max_gen_toks": 6})])
    (text,) = WarmupLM(base, tokenizer, config).generate_until(requests, disable_tqdm=True)
    ids = torch.tensor([tokenizer(context)["input_ids"][-498:]])
    answer = warmup_generate(base, ids, warmup_config=config, max_new_tokens=6, do_sample=False)
    assert text == tokenizer.decode(answer[0, ids.size(1) :], skip_special_tokens=True)


def test_free_generations_vote_over_several_warmups(base, tokenizer):
    """As `warmup_generate` does. A flat distribution makes warmups differ; ASCII tokens make texts differ."""
    even = copy.deepcopy(base)
    ascii_rows = even.lm_head.weight.data[2:92] * 0.1
    even.lm_head.weight.data = torch.cat([torch.zeros(2, 64), ascii_rows.repeat(4, 1)[:318]])
    config, contexts = warmup_config(tokenizer), ["Q: one?", "A longer question: two?"]
    single, voted = [], []
    for seed in range(4):
        for context in contexts:
            requests = instances("generate_until", [(context, {"until": ["\n\n"], "max_gen_toks": 1})])
            torch.manual_seed(seed)
            voted += WarmupLM(even, tokenizer, config, num_warmups=7).generate_until(requests, disable_tqdm=True)
            single += WarmupLM(even, tokenizer, config).generate_until(requests, disable_tqdm=True)
            ids = tokenizer(context, return_tensors="pt")
            torch.manual_seed(seed)
            answer = warmup_generate(
                even, **ids, warmup_config=config, num_warmups=7, max_new_tokens=1, do_sample=False
            )
            assert voted[-1] == tokenizer.decode(answer[0, ids["input_ids"].size(1) :], skip_special_tokens=True)
    assert voted != single


def test_votes_count_texts_up_to_their_stop(base, tokenizer, monkeypatch):
    """Rows go on until the slowest one stops, so what stands behind the stop is no part of the answer."""
    written = ["no.", "yes\n\nab", "yes\n\ncd", "x.", "y.", "y\n\n"]
    rows = tokenizer([f"Q{text:_<8}" for text in written], return_tensors="pt")["input_ids"]
    monkeypatch.setattr(HFLM, "_model_generate", lambda self, context, *_, **__: rows)
    lm = WarmupLM(base, tokenizer, warmup_config(tokenizer), num_warmups=3)
    ones = torch.ones(2, 1, dtype=torch.long)
    chosen = lm._model_generate(ones, 9, ["\n\n", "."], attention_mask=ones)
    assert tokenizer.batch_decode(chosen) == ["Qyes\n\nab_", "Qy.______"]


@pytest.mark.parametrize("repeats", [1, 30])
def test_rolling_log_likelihoods_are_the_models_own(base, tokenizer, repeats):
    requests = instances("loglikelihood_rolling", [("a document of some length " * repeats,)])
    config = warmup_config(tokenizer)
    off = WarmupConfig("", [], 0)
    scores = [WarmupLM(base, tokenizer, c).loglikelihood_rolling(requests, disable_tqdm=True) for c in (config, off)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_evaluate_runs_a_task_of_the_harness(model_folder, tokenizer, lora, task, tmp_path, capsys):
    folder = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)
    assert main(["evaluate", "--adapter", str(folder), "--harness", str(task), "--max_samples", "8"]) == 0
    out = capsys.readouterr().out
    assert "tiny_puzzles" in out
    results = json.loads((folder / "harness.json").read_text())
    assert set(results) == {"base", "warmup", "weights"}
    assert 0 <= results["warmup"]["tiny_puzzles"]["acc,none"] <= 1


@pytest.mark.parametrize("knows_all", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("harness", "said"), [("no_such_task", "has no task 'no_such_task'"), ("gone.yaml", "does not exist")]
)
def test_unknown_tasks_are_bad_input(
    model_folder, tokenizer, lora, tmp_path, capsys, monkeypatch, harness, said, knows_all
):
    """With the harness' own tasks, which take 15 seconds to read, or without."""
    if not knows_all:
        monkeypatch.setattr(module, "manager_of", lambda **_: TaskManager(include_defaults=False))
    folder = save_adapter(tmp_path / "adapter", random_adapter(model_folder, lora), tokenizer, model_folder)
    assert main(["evaluate", "--adapter", str(folder), "--harness", harness]) == BAD_INPUT
    assert said in capsys.readouterr().err


# ---- Conversations ----


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer):
    return thinking_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def chat_config(chat_tokenizer):
    opening, separator = (chat_tokenizer(text)["input_ids"] for text in ("<think>", "</think>\n"))
    return WarmupConfig("</think>\n", separator, 5, [], "<think>", opening, True, True, {"name": "x"})


def rendered(lm, text):
    return lm.apply_chat_template([{"role": "user", "content": text}])


@pytest.mark.parametrize("is_open", [False, True], ids=["", "a prompt that has the opening"])
def test_a_rendered_context_is_followed_by_opening_warmup_and_separator(base, chat_tokenizer, chat_config, is_open):
    """Its generation prompt ends with a line break, which stays before the warmup."""
    lm = WarmupLM(base, chat_tokenizer, chat_config, batch_size=3, is_chat=True)
    end = "<think>" if is_open else ""
    pairs = [
        (rendered(lm, text) + end, answer) for text in ("one?", "two and three?") for answer in ("yes", "no, not")
    ]
    scores = lm.loglikelihood(instances("loglikelihood", pairs))
    for (context, continuation), (logp, _) in zip(pairs, scores):
        ids = chat_tokenizer(context)["input_ids"]
        assert ids[-1] == chat_tokenizer("\n")["input_ids"][0] or is_open
        target = chat_tokenizer(continuation)["input_ids"]
        assert logp == pytest.approx(log_likelihood(base, chat_config, ids, target), rel=1e-4)


def test_contexts_are_rendered_as_in_training(base, chat_tokenizer, chat_config):
    """With the same arguments, and without a begin token beside the template's."""
    lm = WarmupLM(base, chat_tokenizer, chat_config, is_chat=True)
    asked = [{"role": "user", "content": "one?"}]
    template = chat_tokenizer.chat_template
    try:
        chat_tokenizer.chat_template = "{{ name }}" + template
        context = lm.apply_chat_template(asked)
        assert context.startswith("x<|im_start|>user")
        expected = prompt_token_ids(chat_tokenizer, asked, chat_config)
        assert lm.tok_encode(context) + chat_config.warmup_opening_ids == expected
        encoded, _ = lm.tok_batch_encode([context])
        assert encoded[0].tolist() + chat_config.warmup_opening_ids == expected
    finally:
        chat_tokenizer.chat_template = template


def test_free_answers_in_a_chat_are_warmup_generates(base, chat_tokenizer, chat_config):
    lm = WarmupLM(base, chat_tokenizer, chat_config, batch_size=2, is_chat=True)
    contexts = [rendered(lm, text) for text in ("one?", "two and three?")]
    requests = instances("generate_until", [(c, {"until": ["\n\n"], "max_gen_toks": 6}) for c in contexts])
    for context, text in zip(contexts, lm.generate_until(requests, disable_tqdm=True)):
        ids = torch.tensor([chat_tokenizer(context)["input_ids"]])
        answer = warmup_generate(base, ids, warmup_config=chat_config, max_new_tokens=6, do_sample=False)
        assert text == chat_tokenizer.decode(answer[0, ids.size(1) :], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [((), True), pytest.param(("--apply_chat_template", "false"), False, marks=pytest.mark.slow)],
)
def test_the_harness_applies_the_template_if_the_training_did(tokenizer, task, tmp_path, monkeypatch, given, expected):
    folder, asked = save_thinker(tmp_path / "model", tokenizer), []
    render = HFLM.apply_chat_template
    monkeypatch.setattr(HFLM, "apply_chat_template", lambda *args, **kw: asked.append(1) or render(*args, **kw))
    assert main(["evaluate", "--adapter", str(folder), "--harness", str(task), "--max_samples", "2", *given]) == 0
    assert bool(asked) == expected


def test_a_harness_without_a_template_is_bad_input(adapter, task, refusal, monkeypatch):
    monkeypatch.setattr("warmup_peft.cli.evaluate.load_folder", lambda *_: pytest.fail("a model is loaded"))
    said = refusal("evaluate", "--adapter", str(adapter), "--harness", str(task), "--apply_chat_template", "true")
    assert said.startswith("The tokenizer has no chat template")
