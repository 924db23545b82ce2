"""A server that answers as vLLM does, on loopback: what goes up, what comes back, and everything that can go wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import puzzles, tree, write_rows
from pools import rows_in
from scipy.stats import chi2_contingency
from servers import Server, transformers_serving
from transformers import AutoModelForCausalLM

from warmup_peft import warmup_generate
from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.evaluation.logiqa import format_logiqa_prompt
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.loading import load_folder, load_tokenizer
from warmup_peft.inference.server import CompletionsClient, sample_from_server
from warmup_peft.method.branches import left_padded
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler

RELAY = Path(__file__).parents[2] / "recipes" / "logiqa" / "relay"
SETTINGS = SamplingSettings(num_warmups=3, max_length=4, end_token_ids=(1,), separator_ids=(8, 9), pad_token_id=0)
PROMPTS = [np.array([30, 31, 32]), np.array([40, 41])]


def client(server: Server, **changes) -> CompletionsClient:
    return CompletionsClient(server.url, "base", **{"pause": 0.0, "timeout": 5.0, **changes})


def as_vllm(ids, logps, index, stopped):
    return {
        "index": index,
        "text": "",
        "token_ids": ids,
        "logprobs": {"token_logprobs": logps, "tokens": [f"token_id:{i}" for i in ids]},
        "finish_reason": "stop" if stopped else "length",
    }


def scripted(body):
    """The same three warmups for every prompt: one stopped, one with the separator, one cut by the limit."""
    samples = [([5, 1], [-1.0, -2.0], True), ([6, 8, 9, 7], [-0.5] * 4, False), ([5, 6, 7, 5], [-0.25] * 4, False)]
    count = len(body["prompt"])
    choices = [
        as_vllm(ids, logps, 3 * p + k, stop) for p in range(count) for k, (ids, logps, stop) in enumerate(samples)
    ]
    return 200, {"choices": choices[::-1]}  # in any order


def test_ids_go_up_and_come_back_with_their_log_probabilities(server):
    server.answer = scripted
    warmups = sample_from_server(client(server), SETTINGS)(PROMPTS, seed=7)
    assert warmups.lengths.tolist() == [[1, 1, 4]] * 2
    assert warmups.num_decisions.tolist() == [[2, 3, 4]] * 2
    assert warmups.logp[0].tolist() == pytest.approx([-3.0, -1.5, -1.0])  # not of what came after the separator
    (body,) = server.asked
    assert body["prompt"] == [[30, 31, 32], [40, 41]]
    assert (body["model"], body["n"], body["max_tokens"], body["seed"]) == ("base", 3, 4, 7)
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1.0, 1.0, -1, 0.0)
    assert body["repetition_penalty"] == 1.0


def test_older_servers_name_the_ids_in_their_tokens(server):
    def without_token_ids(body):
        status, payload = scripted(body)
        for choice in payload["choices"]:
            del choice["token_ids"]
        return status, payload

    server.answer = without_token_ids
    warmups = sample_from_server(client(server), SETTINGS)(PROMPTS, seed=0)
    assert warmups.ids[0].tolist() == [[5, 1, 0, 0], [6, 8, 9, 7], [5, 6, 7, 5]]


def test_the_key_comes_from_the_environment_alone(server, monkeypatch):
    server.answer = scripted
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    sample_from_server(client(server), SETTINGS)(PROMPTS, seed=0)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    sample_from_server(client(server), SETTINGS)(PROMPTS, seed=0)
    assert [headers.get("Authorization") for headers in server.headers] == [None, "Bearer secret"]


def test_a_busy_server_is_asked_again(server):
    server.answer = lambda body: (503, b"busy") if len(server.asked) < 3 else scripted(body)
    sample_from_server(client(server), SETTINGS)(PROMPTS, seed=0)
    assert len(server.asked) == 3


@pytest.mark.parametrize("pause", ["30", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_server_that_asks_for_a_long_pause_gets_the_timeout(server, pause):
    server.answer = lambda body: (503, b"busy", ("Retry-After", pause)) if len(server.asked) < 3 else scripted(body)
    start = time.monotonic()
    sample_from_server(client(server, timeout=0.4), SETTINGS)(PROMPTS, seed=0)
    assert len(server.asked) == 3
    assert 0.8 <= time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("status", "payload", "message", "tries"),
    [
        (401, {}, "rejects the key (401). Set OPENAI_API_KEY", 1),
        (404, {}, "has no model 'base'", 1),
        (400, {"error": "too long"}, 'answers 400: {"error": "too long"}', 1),
        (500, b"oh", "answers 500 after 3 tries: oh", 3),
        (200, b"<html>", "something that is not JSON: '<html>'", 1),
        (200, {"choices": []}, "answered with 0 completions instead of 6", 1),
        (200, {"hello": 1}, "answered with no completions", 1),
        (200, [1, 2], "answered with no completions", 1),
        (200, {"choices": [{"index": i, "text": "x"} for i in range(6)]}, "returns no token ids", 1),
        (200, {"choices": [as_vllm([5], [-1.0], i, True) for i in range(6)]}, "one of the end tokens [1]", 1),
        (200, {"choices": [as_vllm([5, 6], [-1.0] * 2, i, False) for i in range(6)]}, "at the limit of 4", 1),
        (200, {"choices": [{"text": "x"}] * 6}, "completions without an index", 1),
        (200, {"choices": ["x"] * 6}, "completions without an index", 1),
        (200, {"choices": [as_vllm([5, 1], [-1.0, None], i, True) for i in range(6)]}, "returns no token ids", 1),
        (200, {"choices": [as_vllm("51", [-1.0, -1.0], i, True) for i in range(6)]}, "returns no token ids", 1),
        (200, {"choices": [{**as_vllm([5], [-1.0], i, True), "logprobs": [1]} for i in range(6)]}, "no token ids", 1),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence(server, status, payload, message, tries):
    server.answer = lambda body: (status, payload)
    with pytest.raises(ValueError, match="http:") as caught:
        sample_from_server(client(server, retries=2), SETTINGS)(PROMPTS, seed=0)
    assert message in str(caught.value)
    assert len(server.asked) == tries


def test_a_server_that_is_down_or_slow(server):
    down = CompletionsClient("http://127.0.0.1:9/v1", "base", retries=1, pause=0.0)
    with pytest.raises(ValueError, match=r"cannot be reached or did not answer .* after 2 tries"):
        down.complete(PROMPTS)
    server.answer = lambda body: threading.Event().wait(1.0) or scripted(body)
    with pytest.raises(ValueError, match=r"did not answer within 0.1 seconds, after 1 tries"):
        client(server, timeout=0.1, retries=0).complete(PROMPTS, n=3)


def test_servers_report_only_the_models_own_distribution():
    with pytest.raises(ValueError, match="Leave temperature, top_k, top_p and min_p out"):
        sample_from_server(CompletionsClient("http://x", "y"), dataclasses.replace(SETTINGS, temperature=0.7))


# ---- A whole pool, with the tiny model behind the server ----


def serve(model_folder, separator_ids, noise=0.0):
    """An answer function that samples from the model itself."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    end_ids = tuple(model.generation_config.eos_token_id)

    def answer(body):
        torch.manual_seed(body["seed"])
        settings = SamplingSettings(body["n"], body["max_tokens"], end_ids, tuple(separator_ids), 0)
        prompt = left_padded(body["prompt"], torch.device("cpu"))
        with evaluation_mode(model):
            warmups = WarmupSampler()(model, PlainRows(model, model, prompt), settings)
        choices = []
        for index, (ids, decided, length, logp) in enumerate(
            zip(
                *(
                    x.flatten(0, 1).tolist()
                    for x in (warmups.ids, warmups.num_decisions, warmups.lengths, warmups.logp)
                )
            )
        ):
            logps = [logp / decided + noise] * decided
            stopped = decided > length and ids[decided - 1] in end_ids
            choices.append(as_vllm(ids[:decided], logps, index, stopped))
        return 200, {"choices": choices}

    return answer


@pytest.fixture
def draw_argv(model_folder, server, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", puzzles(6))
    options = {
        "model_name_or_path": model_folder, "dataset_name": rows, "task": "logiqa", "output_dir": tmp_path / "run",
        "dtype": "float32", "use_peft": "true", "lora_target_modules": "all-linear", "bf16": "false",
        "report_to": "none", "num_warmups": 2, "max_warmup_length": 3, "warmup_pool_size": 40,
        "warmup_pool_batch_size": 80, "base_url": server.url, "served_model": "base",
    }  # fmt: skip
    return ["draw", *(str(word) for key, value in options.items() for word in (f"--{key}", value))]


def first_tokens(folder):
    counts = {}
    for row in rows_in(folder):
        for ids, count in zip(row["ids"], row["counts"]):
            counts[ids[0]] = counts.get(ids[0], 0) + count
    return counts


def test_a_pool_from_a_server_is_one_from_the_model(server, draw_argv, model_folder, tokenizer, tmp_path, capsys):
    server.answer = serve(model_folder, tokenizer(" || ")["input_ids"])
    assert main(draw_argv) == 0
    assert f"lie in {tmp_path / 'run' / 'warmup_pool'}" in capsys.readouterr().out
    assert [len(body["prompt"]) for body in server.asked] == [2, 2, 2]
    sampled = first_tokens(tmp_path / "run" / "warmup_pool")
    at = draw_argv.index("--base_url")
    local = draw_argv[:at] + draw_argv[at + 4 :] + ["--output_dir", str(tmp_path / "local")]
    assert main(local) == 0
    expected = first_tokens(tmp_path / "local" / "warmup_pool")
    tokens = sorted(set(sampled) | set(expected), key=lambda token: -expected.get(token, 0))
    table = np.array([[counts.get(token, 0) for token in tokens[:8]] for counts in (sampled, expected)])
    rest = 6 * 40 - table.sum(1, keepdims=True)
    assert chi2_contingency(np.hstack([table, rest])).pvalue > 1e-3
    pool = tmp_path / "run" / "warmup_pool"
    changes = {"warmup_source": "base", "warmup_pool": pool, "max_steps": 1, "output_dir": tmp_path / "trained"}
    train = [str(word) for key, value in changes.items() for word in (f"--{key}", value)]
    assert main(["train", *draw_argv[1:at], *train]) == 0


@pytest.mark.parametrize(("noise", "said"), [(-0.5, "0.50"), (math.nan, "nan")])
def test_a_server_of_another_model_is_noticed(
    server, draw_argv, model_folder, tokenizer, tmp_path, capsys, noise, said
):
    server.answer = serve(model_folder, tokenizer(" || ")["input_ids"], noise)
    assert main(draw_argv) == BAD_INPUT
    assert f"differ from this base model's by {said} nats a token" in capsys.readouterr().err
    assert list((tmp_path / "run" / "warmup_pool").glob("part-*")) == []


def test_a_server_that_stops_answering_leaves_what_is_whole(
    server, draw_argv, model_folder, tokenizer, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("warmup_peft.training.pool.PROMPTS_PER_FILE", 2)
    healthy = serve(model_folder, tokenizer(" || ")["input_ids"])
    server.answer = lambda body: healthy(body) if len(server.asked) < 3 else (404, {})
    assert main(draw_argv) == BAD_INPUT
    said = capsys.readouterr().err
    assert "404" in said
    assert f"The same command goes on from there: every 512 prompts, the samples are saved in {tmp_path}" in said
    pool = tmp_path / "run" / "warmup_pool"
    assert len(list(pool.glob("part-*"))) == 2
    server.answer, asked = healthy, len(server.asked)
    assert main(draw_argv) == 0
    assert len(server.asked) == asked + 1  # only what was missing
    assert len(list(pool.glob("part-*"))) == 3


def test_a_server_that_dies_while_it_is_sampled_from_changes_no_sample(
    server, draw_argv, model_folder, tokenizer, tmp_path, capsys, monkeypatch
):
    """Its connections break; the same command, to another server of the same model, ends with the same files."""
    monkeypatch.setattr("warmup_peft.training.pool.PROMPTS_PER_FILE", 2)
    monkeypatch.setattr("warmup_peft.training.sample.CompletionsClient", partial(CompletionsClient, pause=0.0))
    healthy = serve(model_folder, tokenizer(" || ")["input_ids"])
    server.answer = healthy
    assert main([*draw_argv, "--output_dir", str(tmp_path / "unbroken")]) == 0
    asked = len(server.asked)

    def dying(body):
        if len(server.asked) < asked + 2:
            return healthy(body)
        raise ConnectionAbortedError

    server.answer = dying
    assert main(draw_argv) == BAD_INPUT
    said = capsys.readouterr().err
    assert "cannot be reached or did not answer" in said
    assert "The same command goes on from there" in said
    server.answer = healthy
    assert main(draw_argv) == 0
    assert tree(tmp_path / "run") == tree(tmp_path / "unbroken")


def test_a_served_model_without_a_server_is_bad_input(draw_argv, capsys):
    at = draw_argv.index("--base_url")
    assert main(draw_argv[:at] + draw_argv[at + 2 :]) == BAD_INPUT
    assert "--served_model belongs to --base_url" in capsys.readouterr().err


# ---- Answers ----


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """The recipe's base model, which writes text, with settings for its warmups."""
    folder = tmp_path_factory.mktemp("speaking") / "model"
    shutil.copytree(RELAY / "base", folder)
    tokenizer = load_tokenizer(folder)
    separator = " || "
    WarmupConfig(separator, tokenizer(separator)["input_ids"], 8, [tokenizer.eos_token_id]).save(folder)
    return folder


ROWS = (RELAY / "test.jsonl").read_text(encoding="utf-8").splitlines()
# The base writes the chain after the first of them, and a phrase after the second.
PUZZLES = [format_logiqa_prompt(json.loads(ROWS[index])) for index in (10, 0)]


def greedy_answers(folder, max_new_tokens=6):
    loaded = load_folder(folder)
    answers = []
    for prompt in PUZZLES:
        ids = loaded.tokenizer(prompt, return_tensors="pt")
        width = ids["input_ids"].size(1)
        keywords = dict(warmup_config=folder, max_new_tokens=max_new_tokens, do_sample=False)
        answer = warmup_generate(loaded.model, **ids, **keywords)[0, width:]
        answers.append(loaded.tokenizer.decode(answer, skip_special_tokens=True))
    return answers


def ask(folder, server_url, prompts, tmp_path, *flags):
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    argv = [
        "generate",
        "--adapter",
        str(folder),
        "--base_url",
        server_url,
        "--model",
        "it",
        "--prompts_file",
        str(path),
    ]
    return main([*argv, "--max_new_tokens", "6", "--json", "true", *flags])


def completing(folder, *, takes_ids, returns_ids=True):
    """A server's answer function: greedy completions of the model in the folder."""
    loaded = load_folder(folder)
    tokenizer = loaded.tokenizer

    def complete(ids, max_tokens):
        row = torch.tensor([ids])
        written = loaded.model.generate(
            input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=max_tokens, do_sample=False
        )[0, len(ids) :].tolist()
        choice = {"text": tokenizer.decode(written, skip_special_tokens=True), "finish_reason": "stop"}
        return {**choice, "token_ids": written} if returns_ids else choice

    def answer(body):
        if not takes_ids and not isinstance(body["prompt"], str):
            return 400, {"detail": "prompt must be a string."}
        prompts = [tokenizer(body["prompt"])["input_ids"]] if isinstance(body["prompt"], str) else body["prompt"]
        choices = [{**complete(ids, body["max_tokens"]), "index": i} for i, ids in enumerate(prompts)]
        return 200, {"choices": choices}

    return answer


@pytest.mark.parametrize(
    "mode", [{"takes_ids": True}, {"takes_ids": True, "returns_ids": False}, {"takes_ids": False}]
)
def test_a_servers_greedy_answers_are_warmup_generates(server, speaking, tmp_path, capsys, mode):
    server.answer = completing(speaking, **mode)
    capsys.readouterr()
    assert ask(speaking, server.url, PUZZLES, tmp_path) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["answer"] for row in rows] == greedy_answers(speaking)
    assert [row["warmup"] for row in rows] == [" Dan Tim Lee Una .", " Let us see ."]
    calls = len(server.asked)
    assert calls == (2 if mode["takes_ids"] else 1 + 2 * len(PUZZLES))  # all at once, or text by text


def test_a_boundary_that_merges_is_said(server, speaking, tmp_path, caplog):
    """The name that starts in the warmup and ends in the separator is one token."""
    folder = shutil.copytree(speaking, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    WarmupConfig("us", tokenizer("us")["input_ids"], 8).save(folder)
    assert len(tokenizer(" Gus")["input_ids"]) == 1
    server.answer = lambda body: (
        (400, {}) if not isinstance(body["prompt"], str) else (200, {"choices": [{"index": 0, "text": " G"}]})
    )
    assert ask(folder, server.url, ["Passage: x"], tmp_path) == 0
    assert "tokenised differently beside the text" in caplog.text


@pytest.mark.parametrize(
    ("status", "payload", "message"),
    [
        (401, {}, "rejects the key (401)"),
        (404, {}, "has no model 'it'"),
        (400, {"error": "maximum context length"}, "answers 400: "),
        (200, b"<html>", "not JSON"),
        (200, {"choices": [{"index": 0}]}, "has no text"),
    ],
)
def test_a_servers_troubles_end_in_a_sentence(server, speaking, tmp_path, capsys, status, payload, message):
    server.answer = lambda body: (status, payload)
    assert ask(speaking, server.url, ["Passage: x"], tmp_path) == BAD_INPUT
    assert message in capsys.readouterr().err


def test_a_server_needs_its_address_and_the_models_name(speaking, capsys):
    argv = ["generate", "--adapter", str(speaking), "--prompt", "x"]
    assert main([*argv, "--base_url", "http://127.0.0.1:9"]) == BAD_INPUT
    assert "--model is not given" in capsys.readouterr().err
    assert main([*argv, "--model", "it"]) == BAD_INPUT
    assert "--base_url is not given" in capsys.readouterr().err


@pytest.fixture(scope="module")
def transformers_serve(speaking):
    yield from transformers_serving(speaking)


@pytest.mark.slow
def test_transformers_serve_answers_as_warmup_generate_does(transformers_serve, speaking, tmp_path, capsys):
    """A real server; it takes one text at a time."""
    capsys.readouterr()
    assert ask(speaking, transformers_serve, PUZZLES, tmp_path, "--model", str(speaking)) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["answer"] for row in rows] == greedy_answers(speaking)
