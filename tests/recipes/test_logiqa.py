"""The LogiQA recipe's files: they parse, they are what their scripts make, they have the sizes that 4 bit needs."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoTokenizer
from worlds import ROOT, SPLITS, read_splits, run_script

from warmup_peft.evaluation.logiqa import logiqa
from warmup_peft.training.config import parse_training

LOGIQA = ROOT / "recipes" / "logiqa"
RELAY = LOGIQA / "relay"
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "accelerate")
FOUR_BIT = ("tiny", "relay", "qlora", "paper")  # every recipe's profiles of these names


def test_there_are_recipes():
    assert {path.name for path in RECIPES} >= {"relay.yaml", "qlora.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_go_through_the_real_parser(path):
    script, options, args, model = parse_training(["--config", str(path), "--bf16", "false"])
    assert options.task is not None
    assert model.dtype == "bfloat16"  # also the dtype of 4-bit arithmetic, which TRL would leave at float32
    assert model.lora_dropout == 0.0  # above it prompts cannot be shared
    if path.stem in FOUR_BIT and path.parent.name != "thinking":
        assert (args.num_warmups, args.max_warmup_length, args.warmup_separator) == (4, 8, " || ")  # the paper's
    if path.stem in FOUR_BIT:
        assert model.load_in_4bit
        assert model.use_bnb_nested_quant
        assert script.dataset_test_split == "test"


@pytest.mark.parametrize("name", ["relay", "qlora", "paper"])
def test_logiqa_profiles_name_the_task(name):
    _, options, _, _ = parse_training(["--config", str(LOGIQA / f"{name}.yaml"), "--bf16", "false"])
    assert options.task == "logiqa"


def test_the_puzzles_are_what_their_script_makes(tmp_path):
    run_script(RELAY / "make_data.py", "--folder", str(tmp_path))
    for name in SPLITS:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (RELAY / f"{name}.jsonl").read_bytes(), name


@pytest.mark.slow
def test_the_tokenizer_is_what_its_script_makes(tmp_path):
    run_script(RELAY / "make_tokenizer.py", "--folder", str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (RELAY / "base" / name).read_bytes(), name


@pytest.mark.slow
def test_the_base_writes_in_4_bit_what_it_was_taught():
    """Asserts in the script: what is written, in float32 and NF4, and that it cannot answer directly."""
    run_script(RELAY / "make_base.py", "--check")


def test_sizes():
    config = AutoConfig.from_pretrained(RELAY / "base")
    head_width = config.head_dim * config.num_key_value_heads
    for size in (config.hidden_size, config.intermediate_size, config.vocab_size, head_width):
        assert size % 64 == 0
    assert (RELAY / "base" / "model.safetensors").stat().st_size <= 2 * 2**20


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_following_the_chain_tells_the_options_apart(split):
    """Every option ends one of the four chains, and the right one ends the chain that is asked for."""
    for line in (RELAY / f"{split}.jsonl").read_text().splitlines():
        row = json.loads(line)
        tells = dict(fact.split(" tells ") for fact in row["text"].rstrip(".").split(". "))
        assert len(tells) == 16
        assert set(row["options"]) == set(tells.values()) - set(tells)
        person, steps = row["question"].split()[0], 0
        while person in tells:
            person, steps = tells[person], steps + 1
        assert (person, steps) == (row["options"][row["answer"]], 4)


def test_a_chain_fits_a_warmup_and_any_text_encodes():
    tokenizer = AutoTokenizer.from_pretrained(RELAY / "base")
    assert len(tokenizer(" Bob Cid Dan Eve .")["input_ids"]) == 5
    text = "Odd “characters” — naïve, 中文, \U0001f600\t\x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_no_puzzle_is_in_two_splits():
    rows = read_splits(RELAY)
    assert {name: len(split) for name, split in rows.items()} == {"train": 8192, "validation": 256, "test": 512}
    keys = [(row["text"], row["question"]) for split in rows.values() for row in split]
    assert len(set(keys)) == len(keys)
    for split in rows.values():
        questions = logiqa(split)
        counts = [sum(question.answer == index for question in questions) for index in range(4)]
        assert max(counts) - min(counts) <= 1
