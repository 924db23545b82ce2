"""The file that travels with a model, and the card's snippets, run where warmup_peft cannot be imported."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from folders import random_adapter, save_adapter, warmup_config
from thinkers import ANSWER, save_thinker
from transformers import LlamaForCausalLM, set_seed

from warmup_peft import merge_adapter, warmup_generate
from warmup_peft.export.custom_generate import decoding_source, export_decoding
from warmup_peft.export.model_card import write_model_card
from warmup_peft.inference.folder import DECODING_NAME, WarmupConfig
from warmup_peft.inference.loading import load_folder

PROMPT = "Q: what follows three?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """An adapter and the model it was merged into, each with card and code."""
    from peft import LoraConfig

    room = tmp_path_factory.mktemp("export")
    set_seed(0)  # some random models answer with an end token at once
    model = LlamaForCausalLM(tiny_config())
    for parameter in model.parameters():
        parameter.data.mul_(8.0) if parameter.dim() > 1 else None
    model.generation_config.eos_token_id = [1, *range(200, 270)]
    model.save_pretrained(room / "base")
    lora = LoraConfig(r=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    adapter = save_adapter(room / "adapter", random_adapter(str(room / "base"), lora), tokenizer, str(room / "base"))
    config = warmup_config(tokenizer)
    WarmupConfig(**{**vars(config), "end_token_ids": [1, *range(200, 270)]}).save(adapter)
    export_decoding(adapter)
    write_model_card(adapter)
    merge_adapter(adapter, room / "merged")
    return {"adapter": adapter, "merged": room / "merged"}


def test_the_file_is_short_stable_and_needs_torch_and_transformers_only(tokenizer, tmp_path):
    config = warmup_config(tokenizer)
    config.save(tmp_path)
    source = export_decoding(tmp_path).read_text()
    assert source == decoding_source(config)
    assert len(source.splitlines()) <= 320
    assert str(config.warmup_separator_ids) in source
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers"}
    assert not {"os", "sys", "subprocess", "socket", "urllib"} & imported


def test_training_and_merging_leave_the_file(folders):
    for folder in folders.values():
        assert (folder / DECODING_NAME).read_text() == decoding_source(WarmupConfig.load(folder))


def snippets(folder: Path) -> dict[str, str]:
    found = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    own_code, without = sorted(found, key=lambda code: "trust_remote_code" not in code)
    return {"own code": own_code, "two calls": without}


def run_alone(snippet: str, folder: Path, tmp_path: Path) -> str:
    """Run the card's own code as a reader would, where there is no warmup_peft."""
    snippet = snippet.replace("<this folder or repo>", str(folder)).replace('"..."', repr(PROMPT))
    assert "warmup_peft" not in snippet
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules['warmup_peft'] = None\n{snippet}"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.removesuffix("\n")


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("merged", "own code"),
        pytest.param("adapter", "two calls", marks=pytest.mark.slow),
        pytest.param("adapter", "own code", marks=pytest.mark.slow),
        pytest.param("merged", "two calls", marks=pytest.mark.slow),
    ],
)
def test_the_cards_snippets_answer_as_warmup_generate_does(folders, tokenizer, tmp_path, kind, way):
    folder = folders[kind]
    loaded = load_folder(folder)
    batch = tokenizer(PROMPT, return_tensors="pt")
    ids = warmup_generate(loaded.model, **batch, warmup_config=folder, max_new_tokens=64, do_sample=False)
    answer = tokenizer.decode(ids[0, batch["input_ids"].size(1) :], skip_special_tokens=True)
    assert answer.strip()
    assert run_alone(snippets(folder)[way], folder, tmp_path) == answer


def test_the_two_calls_cut_a_separator_that_the_model_writes_itself(tmp_path, model_folder, tokenizer, lora):
    """And an end token that ends warmups but not the model's answers."""
    model = random_adapter(model_folder, lora)
    batch = tokenizer(PROMPT, return_tensors="pt")
    start = batch["input_ids"].size(1)
    written = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, start:].tolist()
    folder = save_adapter(tmp_path / "adapter", model, tokenizer, model_folder)
    answers = {}
    for what, separator, ends in (("separator", written[2:4], []), ("end", [9, 9, 9], [written[2]]), ("not", [9], [])):
        config = WarmupConfig("?", separator, 6, ends)
        config.save(folder)
        write_model_card(folder)
        ids = warmup_generate(model, **batch, warmup_config=config, max_new_tokens=64, do_sample=False)
        answers[what] = tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        snippet = snippets(folder)["two calls"].replace("<this folder or repo>", str(folder))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(snippet.replace('"..."', repr(PROMPT)), {})
        assert printed.getvalue() == f"{answers[what]}\n", what
    assert answers["separator"] != answers["not"]  # where the warmup ends changes what is answered


def test_the_merged_model_without_its_code_is_plain(folders):
    """`trust_remote_code` is the reader's decision; without it nothing of the folder runs."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["merged"])
    assert "generate" not in vars(model)


def test_a_pipeline_warms_up_too(folders, tokenizer):
    """The answer follows the prompt in what is returned, so everybody's decoding code works unchanged."""
    from transformers import pipeline

    folder = folders["merged"]
    write = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    text = write(PROMPT, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
    loaded = load_folder(folder)
    batch = tokenizer(PROMPT, return_tensors="pt")
    ids = warmup_generate(loaded.model, **batch, warmup_config=folder, max_new_tokens=8, do_sample=False)
    assert text == tokenizer.decode(ids[0, batch["input_ids"].size(1) :], skip_special_tokens=True)
    positional = write.model.generate(batch["input_ids"], max_new_tokens=8, do_sample=False)
    assert torch.equal(positional, ids)


def test_the_one_call_answers_where_the_model_writes_its_separator(tmp_path, tokenizer):
    """In a chat, as it was trained."""
    folder = save_thinker(tmp_path / "merged", tokenizer)
    export_decoding(folder)
    write_model_card(folder)
    own_code, one_call = snippets(folder).values()
    assert "custom_generate" not in one_call + own_code
    assert run_alone(one_call, folder, tmp_path) == ANSWER
    assert "messages = [" in own_code


@pytest.mark.slow
def test_a_merged_thinker_warms_up_by_its_own_code(tmp_path, tokenizer):
    folder = save_thinker(tmp_path / "merged", tokenizer)
    export_decoding(folder)
    write_model_card(folder)
    assert run_alone(snippets(folder)["own code"], folder, tmp_path) == ANSWER


@pytest.mark.slow
def test_the_two_calls_of_a_chat_have_the_opening(tmp_path, tokenizer):
    folder = save_thinker(tmp_path / "merged", tokenizer, writes_separator=False)
    write_model_card(folder)
    assert run_alone(snippets(folder)["two calls"], folder, tmp_path) == ANSWER
