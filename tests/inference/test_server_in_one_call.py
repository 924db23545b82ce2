"""Models that write their separator: one request, by completions or by chat, split; a second one where that fails."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from folders import argv_of
from servers import transformers_serving
from thinkers import ANSWER, END, OPENING, SEPARATOR, THOUGHT, thinking_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.inference.chat import prompt_token_ids
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.loading import load_tokenizer
from warmup_peft.inference.server import CompletionsClient, answer_from_server, split_text

ASKED = [{"role": "user", "content": "one?"}]
TEXT = f"<|im_start|>user\none?{END}\n<|im_start|>assistant\n"
QWEN = WarmupConfig("</think>\n\n", [5, 6], 8, warmup_opening="<think>\n")
PLAIN = WarmupConfig(" || ", [5], 8)


@pytest.mark.parametrize(
    ("config", "text", "expected"),
    [
        (QWEN, "<think>\nhm.\n</think>\n\nAnswer", ("hm.\n", "Answer")),
        (QWEN, "hm.\n</think>\n\nAnswer", ("hm.\n", "Answer")),
        (QWEN, "\n<think>hm.</think>\n\n\nAnswer", ("hm.", "\nAnswer")),
        (QWEN, "hm.</think>Answer </think>", ("hm.", "Answer </think>")),
        (QWEN, "<think>\n</think>", ("", "")),
        (QWEN, "hm.", None),
        (PLAIN, " Dan Tim . ||  Oli", (" Dan Tim .", " Oli")),
        (PLAIN, " Dan|| Oli", (" Dan", "Oli")),
        (PLAIN, " Dan | | Oli", None),
        (PLAIN, "a||b || c || d", ("a||b", "c || d")),
    ],
)
def test_a_text_is_split_at_its_first_separator(config, text, expected):
    assert split_text(text, config) == expected


@pytest.fixture
def tokenizer_of(thinker_folder):
    return load_tokenizer(thinker_folder)


@pytest.fixture
def config(thinker_folder):
    return WarmupConfig.load(thinker_folder)


@pytest.fixture
def asking(server, tokenizer_of, config):
    """Answers to prompts from the server."""

    def ask(prompts, max_new_tokens=5, **changes):
        client = CompletionsClient(server.url, "it", retries=0, timeout=10.0)
        return answer_from_server(
            client, tokenizer_of, prompts, replace(config, **changes), max_new_tokens=max_new_tokens
        )

    return ask


def completing(tokenizer, write, *, takes_ids=True, returns_ids=True):
    """A server's answer function. `write` gives the text behind that of a prompt."""

    def answer(body):
        prompts = body["prompt"]
        if isinstance(prompts, str):
            prompts = [tokenizer(prompts)["input_ids"]]
        elif not takes_ids:
            return 400, {"detail": "prompt must be a string."}
        choices = []
        for index, ids in enumerate(prompts):
            written = tokenizer(write(tokenizer.decode(ids)))["input_ids"][: body["max_tokens"]]
            choice = {"index": index, "text": tokenizer.decode(written, skip_special_tokens=True)}
            choices.append({**choice, "token_ids": written} if returns_ids else choice)
        return 200, {"choices": choices}

    return answer


def whole(text):
    """What a model writes that was trained to do it."""
    rest = f"{THOUGHT}{SEPARATOR}{ANSWER}{END}"
    return ANSWER + END if text.endswith(SEPARATOR) else rest if text.endswith(OPENING) else OPENING + rest


@pytest.mark.parametrize(
    "mode", [{}, {"returns_ids": False}, {"takes_ids": False, "returns_ids": False}], ids=["ids", "no ids", "text"]
)
def test_one_completion_is_enough(server, asking, tokenizer_of, mode):
    server.answer = completing(tokenizer_of, whole, **mode)
    assert asking([TEXT, TEXT + OPENING]) == [(THOUGHT, ANSWER)] * 2
    bodies = [body for body in server.asked if mode.get("takes_ids", True) or isinstance(body["prompt"], str)]
    prompts = [
        prompt for body in bodies for prompt in (body["prompt"] if mode.get("takes_ids", True) else [body["prompt"]])
    ]
    asked = [prompt if isinstance(prompt, str) else tokenizer_of.decode(prompt) for prompt in prompts]
    assert asked == [TEXT + OPENING] * 2
    assert {body["max_tokens"] for body in bodies} == {8 + 1 + 5}


def test_only_rows_that_did_not_close_their_warmup_are_asked_again(server, asking, tokenizer_of):
    """One ended its turn, one went on beyond the longest warmup, and one wrote nothing."""
    written = {
        "a": THOUGHT + SEPARATOR + ANSWER,
        "b": "hm" + END + "so",
        "c": "hm, hm, hm, hm" + SEPARATOR + "x",
        "d": "",
    }
    server.answer = completing(
        tokenizer_of, lambda text: written.get(text[0], "") if text.endswith(OPENING) else ANSWER
    )
    assert asking(list("abcd")) == [(THOUGHT, ANSWER), ("hm", ANSWER), ("hm, hm, ", ANSWER), ("", ANSWER)]
    again = [tokenizer_of.decode(ids) for ids in server.asked[1]["prompt"]]
    assert again == [f"{prompt}{OPENING}{warmup}{SEPARATOR}" for prompt, warmup in zip("bcd", ("hm", "hm, hm, ", ""))]
    assert (len(server.asked), server.asked[1]["max_tokens"]) == (2, 5)


@pytest.mark.parametrize("takes_ids", [True, False])
def test_two_calls_have_the_opening(server, asking, tokenizer_of, takes_ids):
    server.answer = completing(tokenizer_of, whole, takes_ids=takes_ids)
    assert asking([ASKED], writes_separator=False) == [(THOUGHT, ANSWER)]
    prompts = [
        body["prompt"] if isinstance(body["prompt"], str) else tokenizer_of.decode(body["prompt"][0])
        for body in server.asked
    ]
    assert prompts[-2:] == [TEXT + OPENING, f"{TEXT}{OPENING}{THOUGHT}{SEPARATOR}"]
    assert [body["max_tokens"] for body in server.asked[-2:]] == [8, 5]


@pytest.mark.parametrize("mode", [{}, {"returns_ids": False}, {"takes_ids": False, "returns_ids": False}])
def test_a_short_warmup_leaves_no_room_to_the_answer(server, asking, tokenizer_of, mode):
    server.answer = completing(tokenizer_of, lambda text: f"h{SEPARATOR}12345678", **mode)
    assert asking([TEXT], max_new_tokens=3) == [("h", "123")]


@pytest.mark.parametrize("takes_ids", [True, False])
def test_a_model_without_warmups_is_asked_once(server, asking, tokenizer_of, takes_ids):
    """As `warmup-peft sft` saves it."""
    server.answer = completing(tokenizer_of, lambda text: ANSWER, takes_ids=takes_ids)
    none = {"max_warmup_length": 0, "warmup_opening": "", "warmup_opening_ids": [], "writes_separator": False}
    assert asking([ASKED], **none) == [("", ANSWER)]
    assert server.asked[-1]["prompt"] == (TEXT if not takes_ids else [tokenizer_of(TEXT)["input_ids"]])
    assert len(server.asked) == (1 if takes_ids else 2)


MESSAGES_FROM_SERVERS = {
    "text": {"content": f"{OPENING}{THOUGHT}{SEPARATOR}{ANSWER}"},
    "text without its opening": {"content": f"{THOUGHT}{SEPARATOR}{ANSWER}"},
    "vLLM, llama.cpp": {"content": ANSWER, "reasoning_content": THOUGHT},
    "others": {"content": ANSWER, "reasoning": THOUGHT},
    "nothing apart": {"content": f"{THOUGHT}{SEPARATOR}{ANSWER}", "reasoning_content": None},
}


@pytest.mark.parametrize("message", MESSAGES_FROM_SERVERS.values(), ids=MESSAGES_FROM_SERVERS)
def test_one_chat_completion_is_enough(server, asking, message):
    server.answer = lambda body: (200, {"choices": [{"index": 0, "message": {"role": "assistant", **message}}]})
    assert asking([ASKED, ASKED], chat_template_kwargs={"enable_thinking": True}) == [(THOUGHT, ANSWER)] * 2
    assert set(server.paths) == {"/v1/chat/completions"}
    assert len(server.asked) == 2
    assert server.asked[0]["messages"] == ASKED
    assert server.asked[0]["max_tokens"] == 1 + 8 + 1 + 5
    assert server.asked[0]["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.parametrize("content", [ANSWER, "", None, f"{THOUGHT}{ANSWER}"])
def test_a_chat_without_its_separator_is_two_completions(server, asking, tokenizer_of, content):
    """A model that forgot it, or a server that hides special tokens."""
    complete = completing(tokenizer_of, whole, takes_ids=False, returns_ids=False)
    said = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
    server.answer = lambda body: (200, said) if "messages" in body else complete(body)
    assert asking([ASKED]) == [(THOUGHT, ANSWER)]
    assert server.paths == ["/v1/chat/completions", "/v1/completions", "/v1/completions"]


@pytest.mark.parametrize("payload", [{}, {"choices": []}, {"choices": [{"text": "x"}]}, {"choices": ["x"]}, [1]])
def test_a_chat_without_a_message_is_said(server, asking, payload):
    server.answer = lambda body: (200, payload)
    with pytest.raises(ValueError, match=r"answered without a message. Is it an OpenAI-compatible server\?"):
        asking([ASKED])


def test_a_chat_whose_message_is_no_text_is_said(server, asking):
    server.answer = lambda body: (200, {"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]})
    with pytest.raises(ValueError, match="answered with a message that is no text"):
        asking([ASKED])


def test_a_begin_token_of_the_template_is_not_sent_twice(server, config, tokenizer):
    """The server's tokenizer puts one before every text, and the template has one, too."""
    tokenizer = thinking_tokenizer(tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    read = []

    def answer(body):
        if not isinstance(body["prompt"], str):
            return 400, {}
        read.append(tokenizer(body["prompt"])["input_ids"])
        return 200, {"choices": [{"index": 0, "text": THOUGHT}]}

    server.answer = answer
    client = CompletionsClient(server.url, "it", retries=0)
    answer_from_server(client, tokenizer, [ASKED], replace(config, writes_separator=False), max_new_tokens=5)
    assert read[0] == prompt_token_ids(tokenizer, ASKED, config)
    assert read[0].count(tokenizer.bos_token_id) == 2  # one for each message


@pytest.fixture(scope="module")
def serving(thinker_folder):
    yield from transformers_serving(thinker_folder)


@pytest.mark.slow
def test_transformers_serve_answers_one_chat_call(serving, thinker_folder, capsys, monkeypatch):
    """A real server."""
    asked = []
    post = CompletionsClient._post
    monkeypatch.setattr(CompletionsClient, "_post", lambda *args: asked.append(args[1]) or post(*args))
    argv = argv_of(
        "generate", adapter=thinker_folder, base_url=serving, model=thinker_folder, prompt="one?", json="true"
    )
    assert main(argv) == 0
    expected = {"prompt": "one?", "warmup": THOUGHT, "answer": ANSWER}
    assert json.loads(capsys.readouterr().out) == expected
    assert asked == ["chat/completions"]


def test_the_thinker_writes_it_all_by_plain_generate(thinker_folder, tokenizer_of):
    """What the tests above take from a model."""
    model = AutoModelForCausalLM.from_pretrained(thinker_folder)
    ids = tokenizer_of(TEXT, return_tensors="pt")
    text = tokenizer_of.decode(model.generate(**ids, max_new_tokens=40, do_sample=False)[0])
    assert text == TEXT + whole(TEXT)


def test_a_refused_chat_is_bad_input(server, thinker_folder, capsys):
    server.answer = lambda body: (400, {"error": "no such template"})
    argv = argv_of("generate", adapter=thinker_folder, base_url=server.url, model="it", prompt="one?")
    assert main(argv) == BAD_INPUT
    assert "chat/completions answers 400" in capsys.readouterr().err
