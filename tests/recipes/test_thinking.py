"""The thinking recipe: its tokenizer and template, its data, what its measures count, and its base's sizes."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from transformers import AutoTokenizer
from worlds import ROOT, SPLITS, check_base, read_splits, run_script

from warmup_peft.evaluation.metric import Answers
from warmup_peft.evaluation.metrics import METRICS
from warmup_peft.evaluation.tasks import find_task, read_questions
from warmup_peft.inference.chat import find_format
from warmup_peft.training.config import parse_training

RECIPE = ROOT / "recipes" / "thinking"
TOKENIZER = AutoTokenizer.from_pretrained(RECIPE / "base")
QUESTION = [{"role": "user", "content": "Facts: Kay tells Lee. Ann knows. Who hears it last?"}]
ANSWER = {"role": "assistant", "content": "It is Eve."}
THOUGHT = "So Bob Cid Dan Eve."


@pytest.fixture(scope="module")
def measure():
    """The script as a module. It imports others by bare names, which other recipes have too."""
    before = dict(sys.modules)
    sys.path.insert(0, str(RECIPE))
    path = list(sys.path)
    for name in ("make_base", "make_data", "make_tokenizer", "world", "measure"):
        sys.modules.pop(name, None)
    yield importlib.import_module("measure")
    for name in ("make_base", "make_data", "make_tokenizer", "world", "measure"):
        sys.modules.pop(name, None)
        if name in before:
            sys.modules[name] = before[name]
    sys.path[:] = [folder for folder in path if folder != str(RECIPE)]


@pytest.mark.slow
def test_the_tokenizer_is_what_its_script_makes(tmp_path):
    run_script(RECIPE / "make_tokenizer.py", "--folder", str(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (RECIPE / "base" / name).read_bytes(), name


@pytest.mark.slow
def test_the_rows_are_what_their_script_makes(tmp_path):
    run_script(RECIPE / "make_data.py", "--folder", str(tmp_path))
    for name in SPLITS:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (RECIPE / "data" / f"{name}.jsonl").read_bytes(), name


def test_sizes():
    check_base(RECIPE / "base")


def test_following_the_facts_gives_the_answer():
    splits = read_splits(RECIPE / "data")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4000, "validation": 256, "test": 512}
    questions = set()
    for row in (row for rows in splits.values() for row in rows):
        (question,), (answer,) = row["prompt"], row["completion"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert set(answer) == {"role", "content"}  # no thoughts
        text = question["content"].removeprefix("Facts: ").removesuffix(" knows. Who hears it last?")
        facts, asked = text.rsplit(" ", 1)
        tells = dict(fact.split(" tells ") for fact in facts.rstrip(".").split(". "))
        person, links = asked, 0
        while person in tells:
            person, links = tells[person], links + 1
        assert (f"Answer: {person}", links) == (answer["content"], 4)
        questions.add(question["content"])
    assert len(questions) == 4768  # so no question is in two splits


def render(messages: list[dict], **template) -> str:
    return TOKENIZER.apply_chat_template(messages, tokenize=False, **template)


def test_a_thought_stands_in_its_block_and_no_thought_leaves_it_empty():
    prompt = render(QUESTION, add_generation_prompt=True)
    assert prompt.endswith("?<|im_end|>\n<|im_start|>assistant\n")
    with_thought = render([*QUESTION, {**ANSWER, "reasoning_content": THOUGHT}])
    assert with_thought == f"{prompt}<think>\n{THOUGHT}\n</think>\n\nIt is Eve.<|im_end|>\n"
    assert render([*QUESTION, ANSWER]) == f"{prompt}<think>\n\n</think>\n\nIt is Eve.<|im_end|>\n"
    assert render(QUESTION, add_generation_prompt=True, enable_thinking=False) == f"{prompt}<think>\n\n</think>\n\n"
    assert render(QUESTION, add_generation_prompt=True, enable_thinking=True) == prompt


def test_thoughts_of_earlier_turns_are_left_out():
    earlier = [*QUESTION, {**ANSWER, "reasoning_content": THOUGHT}, *QUESTION]
    assert "<think>" not in render(earlier, add_generation_prompt=True)
    assert "It is Eve." in render(earlier, add_generation_prompt=True)
    assert render([{"role": "system", "content": "Hi"}, *QUESTION]).startswith("<|im_start|>system\nHi<|im_end|>\n")


def test_white_space_around_a_thought_is_as_many_tokens_as_in_qwen3():
    text = render([*QUESTION, {**ANSWER, "reasoning_content": THOUGHT}]).split("assistant\n")[1]
    tokens = [TOKENIZER.decode([index]) for index in TOKENIZER(text)["input_ids"]]
    assert tokens[:2] == ["<think>", "\n"]
    start = tokens.index(".\n")
    assert tokens[start : start + 3] == [".\n", "</think>", "\n\n"]
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True).startswith("<think>\nSo Bob")


@pytest.mark.parametrize(
    ("whole", "thought", "answer", "closes"),
    [
        (f"<think>\n{THOUGHT}\n</think>\n\nAnswer: Eve", THOUGHT, "Answer: Eve", True),
        ("<think>\n\n</think>\n\nAnswer: Eve", "", "Answer: Eve", True),
        ("<think>\nSo Bob", "So Bob", "", False),
        ("Answer: Eve", "", "Answer: Eve", False),
    ],
)
def test_a_text_is_split_at_its_thought(measure, whole, thought, answer, closes):
    text = measure.Text(whole)
    assert (text.thought, text.answer, text.closes) == (thought, answer, closes)


def test_an_answer_in_any_form_names_one_person(measure):
    chat = measure.Chat("?", ("Bob", "Eve"), "Eve")
    assert measure.names_only("It is Eve.", chat)
    assert measure.names_only("Answer: Eve", chat)
    assert not measure.names_only("Bob or Eve", chat)
    assert not measure.names_only("", chat)


def test_scores_are_added_to_a_file(measure, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"settings": {"seed": 0}, "warmup": {"bleu": 1.0, "thinks": 0.0}}', encoding="utf-8")
    measure.write_scores(path, {"warmup": {"thinks": 1.0}, "sft": {"thinks": 0.5}})
    assert json.loads(path.read_text()) == {
        "settings": {"seed": 0},
        "warmup": {"bleu": 1.0, "thinks": 1.0},
        "sft": {"thinks": 0.5},
    }


@pytest.mark.parametrize("name", ["tiny", "qlora"])
def test_profiles_train_on_thoughts(name):
    script, _, args, model = parse_training(["--config", str(RECIPE / f"{name}.yaml"), "--bf16", "false"])
    assert (args.warmup_format, args.warmup_source) == ("thinking", "base")
    assert args.warmup_pool_size == args.num_warmups  # one epoch
    assert model.load_in_4bit
    assert script.dataset_test_split == "test"


def test_the_template_is_found_to_think():
    found = find_format(TOKENIZER, is_chat=True)
    assert (found.opening, found.separator) == ("<think>\n", "</think>\n\n")


def test_gsm8k_rows_become_conversations_with_the_number_alone():
    task = find_task(str(RECIPE / "gsm8k.py"))
    rows = [{"question": "How many?", "answer": "9 * 2 = <<9*2=18>>18\n#### 1,018"}]
    (question,) = read_questions(task, rows, {})
    assert question.prompt == [{"role": "user", "content": "How many?"}]
    assert question.completion == "#### 1,018"
    with pytest.raises(ValueError, match="Row 2: the column `answer` has no number"):
        read_questions(task, [*rows, {"question": "How many?", "answer": "18"}], {})


def test_numbers_are_compared_as_numbers():
    (metric,) = find_task(str(RECIPE / "gsm8k.py")).metrics
    texts = ["#### 1018", "The answer is #### 1,018.", "1018", "#### 1019", ""]
    answers = Answers(texts=texts, references=["#### 1,018"] * 5, prompts=[""] * 5, choices=None, num_options=1)
    assert list(METRICS[metric].score(answers).row_scores) == [1, 1, 0, 0, 0]


@pytest.mark.slow
def test_the_base_thinks_in_4_bit_and_cannot_answer_without():
    """Asserts in the script, in float32 and NF4."""
    run_script(RECIPE / "make_base.py", "--check")
