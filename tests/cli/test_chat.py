"""`warmup-peft chat`: what it shows, what it keeps, and how it ends. Standard input is a pipe here."""

from __future__ import annotations

import io

import pytest
from folders import argv_of
from thinkers import ANSWER, THOUGHT, save_thinker
from transformers import AutoTokenizer

import warmup_peft.cli.chat as module
from warmup_peft.cli.main import main
from warmup_peft.inference.chat import prompt_token_ids


@pytest.fixture
def talk(thinker_folder, monkeypatch, capsys):
    """Type lines, and give what was printed and the conversations that were answered."""

    def run(*lines: str, folder=thinker_folder, **options):
        asked = []

        def see(tokenizer, messages, config):
            asked.append(list(messages))
            return prompt_token_ids(tokenizer, messages, config)

        monkeypatch.setattr(module, "prompt_token_ids", see)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(argv_of("chat", adapter=folder, **options)) == 0
        return capsys.readouterr().out, asked

    return run


def user(text):
    return {"role": "user", "content": text}


SAID = {"role": "assistant", "content": ANSWER}


def test_it_shows_the_thought_and_the_answer_and_ends_with_the_input(talk):
    out, asked = talk("one?")
    assert out.endswith(f"> {THOUGHT}\n{ANSWER}\n> \n")
    assert asked == [[user("one?")]]


def test_the_conversation_goes_on_without_thoughts_until_it_is_reset(talk):
    _, asked = talk("one?", "", "two?", "/reset", "three?", "/exit", "four?")
    assert asked == [[user("one?")], [user("one?"), SAID, user("two?")], [user("three?")]]


def test_a_system_prompt_survives_a_reset(talk):
    _, asked = talk("one?", "/reset", "two?", system="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert asked == [[system, user("one?")], [system, user("two?")]]


def test_a_conversation_that_has_no_room_left_is_said_and_goes_on(talk):
    out, asked = talk("x" * 600, "one?")
    assert "the model's context has 512" in out
    assert "/reset forgets what was said." in out
    assert asked == [[user("x" * 600)], [user("one?")]]
    assert out.count(ANSWER) == 1


def test_an_answer_is_as_long_as_it_may_be(talk):
    out, _ = talk("one?", max_new_tokens=2)
    assert f"{THOUGHT}\n{ANSWER[:2]}\n" in out


def test_a_model_without_warmups_answers_at_once(talk, tokenizer, tmp_path):
    folder = save_thinker(tmp_path / "sft", tokenizer, max_warmup_length=0, warmup_opening="", warmup_opening_ids=[])
    assert f"> <think>{THOUGHT}</think>{ANSWER}\n" in talk("one?", folder=folder)[0]


def test_bad_input_of_a_chat(adapter, thinker_folder, refusal, monkeypatch):
    monkeypatch.setattr(module, "load_folder", lambda *_: pytest.fail("a model is loaded"))
    said = refusal("chat", "--adapter", str(adapter))
    assert said.startswith("The tokenizer has no chat template, so messages cannot be read.")
    assert "has no warmup_config.json" in refusal("chat", "--adapter", str(adapter.parent))
    assert "temperature=0.0" in refusal("chat", "--adapter", str(thinker_folder), "--temperature", "0")
    assert "max_new_tokens=0" in refusal("chat", "--adapter", str(thinker_folder), "--max_new_tokens", "0")


def test_a_template_that_knows_no_system_prompt(refusal, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_folder", lambda *_: pytest.fail("a model is loaded"))
    folder = save_thinker(tmp_path / "model", tokenizer)
    strict = AutoTokenizer.from_pretrained(folder)
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + strict.chat_template
    )
    strict.save_pretrained(folder)
    capsys.readouterr()
    said = refusal("chat", "--adapter", str(folder), "--system", "Be brief.")
    assert said == "The chat template cannot read prompt 1: No system."
