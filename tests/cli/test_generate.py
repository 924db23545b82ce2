"""`warmup-peft generate`: prompts, numbers and servers that cannot be had are refused."""

from __future__ import annotations

import io

import pytest
from folders import (
    argv_of,
    write_rows,
)
from trainings import PROMPTS, answers_of

from warmup_peft.cli.main import main


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
