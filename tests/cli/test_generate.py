"""`warmup-peft generate`: prompts, numbers and servers that cannot be had are refused."""

from __future__ import annotations

import io
import json

import pytest
from folders import argv_of, write_rows
from thinkers import ANSWER, THOUGHT, save_thinker, thinking_tokenizer
from trainings import PROMPTS, answers_of
from transformers import AutoModelForCausalLM

from warmup_peft import warmup_generate
from warmup_peft.cli.main import main
from warmup_peft.inference.chat import prompt_token_ids
from warmup_peft.inference.folder import WarmupConfig


@pytest.mark.parametrize(
    ("lines", "number"), [(["one?", "", "two?"], 2), (["   "], 1), (["one?", "two?", "\t", ""], 3)], ids=str
)
def test_empty_prompts_are_refused_by_number(refusal, tmp_path, lines, number):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines) + "\n")
    said = refusal("generate", "--adapter", str(tmp_path / "none"), "--prompts_file", str(path))
    assert said == f"Prompt {number} is empty. Give every prompt some text."


def test_empty_prompt_option(refusal):
    assert refusal("generate", "--adapter", "none", "--prompt", "").startswith("Prompt 1 is empty.")


def test_no_prompts_at_all(refusal, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("")
    assert refusal("generate", "--adapter", "none", "--prompts_file", str(path)).startswith("There is no prompt.")


def test_prompts_file_without_its_field(refusal, tmp_path):
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "one?"}, {"question": "two?"}])
    said = refusal("generate", "--adapter", "none", "--prompts_file", str(path))
    assert said == f"{path}, row 2 has no text in the field `prompt`, and no list of `messages`."


def test_missing_prompts_file(refusal, tmp_path):
    said = refusal("generate", "--adapter", "none", "--prompts_file", str(tmp_path / "no.txt"))
    assert said.endswith("no.txt does not exist. Check --prompts_file.")


def test_prompts_in_another_encoding(refusal, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"caf\xe9\n")
    assert refusal("generate", "--adapter", "none", "--prompts_file", str(path)).startswith(
        f"{path} is not UTF-8 text"
    )


@pytest.mark.parametrize(
    ("option", "words"),
    [(("--temperature", "0"), "temperature=0.0"), (("--top_p", "0"), "top_p=0.0"), (("--top_p", "3"), "top_p=3.0"),
     (("--seed", "-1"), "seed=-1")],
)  # fmt: skip
def test_impossible_numbers_of_an_answer(refusal, option, words):
    said = refusal("generate", "--adapter", "none", "--prompt", "one?", *option)
    assert words in said
    assert "cannot work" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--base_url", "nowhere"), "base_url=nowhere is not an address"),
     (("--base_url", "http://x/v1", "--server_timeout", "0"), "A server_timeout of 0 seconds cannot work")],
)  # fmt: skip
def test_a_server_that_cannot_be_asked(refusal, tmp_path, options, words):
    assert words in refusal("generate", "--adapter", str(tmp_path), "--prompt", "one?", "--model", "x", *options)


def test_batch_size_does_not_matter_when_decoding_greedily(run, capsys):
    assert answers_of(run, capsys, "--batch_size", "1") == answers_of(run, capsys, "--batch_size", "3")


def test_sampling_is_repeatable_by_its_seed(run, capsys):
    one, other, again = (answers_of(run, capsys, "--do_sample", "true", "--seed", seed) for seed in ("1", "2", "1"))
    assert one == again
    assert one != other


def test_answers_go_to_standard_output_and_warmups_to_standard_error(run, capsys, monkeypatch):
    expected = answers_of(run, capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(PROMPTS)))
    assert main(argv_of("generate", adapter=run, max_new_tokens=6)) == 0
    out, err = capsys.readouterr()
    assert out == "".join(f"{row['answer'].strip()}\n" for row in expected)
    assert "".join(f"warmup: {row['warmup'].strip()}\n" for row in expected) in err.replace("\r", "\n")


# ---- Conversations ----

ASKED = [{"role": "user", "content": "one?"}]
FURTHER = [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "A"}, *ASKED]


def rows_of(capsys, folder, **options) -> list[dict]:
    capsys.readouterr()
    assert main(argv_of("generate", adapter=folder, json="true", **options)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_way_to_give_messages(thinker_folder, tmp_path, capsys):
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(FURTHER))
    expected = {"warmup": THOUGHT, "answer": ANSWER}
    for given in (path, json.dumps(FURTHER)):
        assert rows_of(capsys, thinker_folder, messages=given) == [{"prompt": FURTHER, **expected}]
    rows = [{"messages": ASKED}, {"prompt": FURTHER}, {"prompt": "one?"}]
    prompts = rows_of(capsys, thinker_folder, prompts_file=write_rows(tmp_path / "rows.jsonl", rows))
    assert prompts == [{"prompt": prompt, **expected} for prompt in (ASKED, FURTHER, "one?")]


@pytest.fixture
def random_thinker(model_folder, tokenizer, tmp_path):
    """A folder whose model writes something else after each prompt."""

    def save(**changes):
        folder = save_thinker(tmp_path / "random", tokenizer, **changes)
        AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_text_is_one_message_where_the_training_had_conversations(random_thinker, tokenizer, capsys, is_chat):
    folder = random_thinker(uses_chat_template=is_chat)
    ((text,), (messages,)) = (rows_of(capsys, folder, **given, max_new_tokens=6) for given in
                              ({"prompt": "one?"}, {"messages": json.dumps(ASKED)}))  # fmt: skip
    assert (text["answer"] == messages["answer"]) == is_chat
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), thinking_tokenizer(tokenizer)
    for row in (text, messages):
        prompt = ASKED if is_chat else row["prompt"]
        ids = tokenizer(prompt, return_tensors="pt").input_ids if isinstance(prompt, str) else None
        if ids is None:
            ids = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).input_ids
        answer = warmup_generate(model, ids, warmup_config=folder, max_new_tokens=6, do_sample=False)
        assert row["answer"] == tokenizer.decode(answer[0, ids.size(1) :], skip_special_tokens=True)


def test_the_template_gets_what_it_had_in_training(tokenizer, tmp_path, capsys, monkeypatch):
    folder = save_thinker(tmp_path / "model", tokenizer, chat_template_kwargs={"enable_thinking": True})
    template = (folder / "chat_template.jinja").read_text()
    strict = "{% if not enable_thinking %}{{ raise_exception('It does not think.') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(strict + template)
    assert rows_of(capsys, folder, prompt="one?")[0]["answer"] == ANSWER


def test_a_model_without_warmups_is_plain_generate(random_thinker, tokenizer, capsys):
    """As `warmup-peft sft` saves it."""
    folder = random_thinker(max_warmup_length=0, warmup_opening="", warmup_opening_ids=[])
    (row,) = rows_of(capsys, folder, prompt="one?", max_new_tokens=6)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), thinking_tokenizer(tokenizer)
    ids = prompt_token_ids(tokenizer, ASKED, WarmupConfig.load(folder))
    batch = tokenizer.pad({"input_ids": [ids]}, return_tensors="pt")
    answer = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, len(ids) :]
    assert row == {"prompt": "one?", "warmup": "", "answer": tokenizer.decode(answer, skip_special_tokens=True)}


NO_CONVERSATION = "Prompt 1 is no conversation. Write it as a list of messages, each with a role and a content"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[]", NO_CONVERSATION),
        ('["one?"]', NO_CONVERSATION),
        ('{"role": "user", "content": "one?"}', NO_CONVERSATION),
        ('[{"role": "user"}]', NO_CONVERSATION),
        ('[{"role": "user", "content": null}]', "Prompt 1 has a message whose content is empty"),
        ('[{"role": "user", "content": 3}]', "Prompt 1 has a message whose content is 3"),
        (json.dumps([*ASKED, {"role": "assistant", "content": "A"}]), "Prompt 1 ends with a message of the assistant"),
        ("[1,", "--messages is no whole JSON value ("),
        ("no/such/file.json", "--messages is neither a JSON list nor a file: no/such/file.json"),
    ],
)
def test_messages_that_cannot_be_answered(refusal, given, said):
    assert refusal("generate", "--adapter", "none", "--messages", given).startswith(said)


def test_rows_that_cannot_be_answered(refusal, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": ASKED}, {"messages": [{"text": "one?"}]}])
    assert refusal("generate", "--adapter", "none", "--prompts_file", str(path)).startswith("Prompt 2 is no convers")
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": ASKED}, {"messages": "one?"}, {"messages": 3}])
    assert "row 3 has no text in the field `prompt`" in refusal(
        "generate", "--adapter", "x", "--prompts_file", str(path)
    )
    for name, value in (("tools", [{"name": "search"}]), ("chat_template_kwargs", {"enable_thinking": False})):
        path = write_rows(tmp_path / "rows.jsonl", [{"messages": ASKED, name: value}])
        assert f"row 1 has `{name}`, which `generate` cannot offer" in refusal(
            "generate", "--adapter", "x", "--prompts_file", str(path)
        )


def test_one_source_of_prompts(refusal):
    said = refusal("generate", "--adapter", "none", "--prompt", "one?", "--messages", json.dumps(ASKED))
    assert said == "--prompt and --messages are both given. Choose one of them."


def test_a_template_that_is_missing_or_refuses_is_said_before_a_model_is_loaded(
    adapter, refusal, tokenizer, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("warmup_peft.cli.generate.load_folder", lambda *_: pytest.fail("a model is loaded"))
    said = refusal("generate", "--adapter", str(adapter), "--messages", json.dumps(ASKED))
    assert said.startswith("The tokenizer has no chat template, so messages cannot be read.")
    folder = save_thinker(tmp_path / "model", tokenizer)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('Roles must alternate.') }}")
    capsys.readouterr()
    said = refusal("generate", "--adapter", str(folder), "--messages", json.dumps(ASKED))
    assert said == "The chat template cannot read prompt 1: Roles must alternate."
