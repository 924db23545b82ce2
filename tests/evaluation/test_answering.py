"""Token ids of prompts, conversations and answers, and the thoughts that are no part of an answer."""

from __future__ import annotations

import copy
from importlib.resources import files

import pytest
from chat_world import CONVERSATIONS, RENDERED
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from warmup_peft.evaluation.answering import all_continuations, prompt_ids, thought_marks, without_thought
from warmup_peft.evaluation.prompt_completion import prompt_completion
from warmup_peft.inference.folder import WarmupConfig

QUESTIONS = prompt_completion(CONVERSATIONS)
OPENING, SEPARATOR = "<think>\n", "</think>\n\n"


@pytest.fixture(scope="module")
def thinker(chat_folder):
    return AutoTokenizer.from_pretrained(chat_folder)


@pytest.fixture(scope="module")
def config(thinker):
    opening, separator = (thinker(text, add_special_tokens=False)["input_ids"] for text in (OPENING, SEPARATOR))
    return WarmupConfig(SEPARATOR, separator, 4, separator[:1], OPENING, opening, uses_chat_template=True)


def test_continuation_that_merges_with_the_prompt_is_encoded_alone():
    """With a merge of b and c, 'ab' + 'c' would be encoded as a, bc: the prompt's own ids would not be kept."""
    vocabulary = {"a": 0, "b": 1, "c": 2, "bc": 3}
    merging = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c")])))
    assert merging("abc")["input_ids"] == [0, 3]
    assert all_continuations(merging, "ab", ["c"]) == [[2]]
    assert all_continuations(merging, "a", ["bc"]) == [[3]]
    assert all_continuations(merging, "ac", ["ab"]) == [[0, 1]]


def test_token_ids_of_conversations(thinker, config):
    assert [thinker.decode(ids) for ids in prompt_ids(thinker, QUESTIONS)] == [
        RENDERED.format(f"{name}?") for name in ("one", "two", "three", "four")
    ]
    (opened, *_) = prompt_ids(thinker, QUESTIONS, config)
    assert thinker.decode(opened) == RENDERED.format("one?") + OPENING
    assert thinker.batch_decode(all_continuations(thinker, QUESTIONS[0].prompt, ["ONE"])) == ["ONE"]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("ONE<|im_end|>", "ONE<|im_end|>"),
        (f"{OPENING}hm\n{SEPARATOR}ONE", "ONE"),
        (f"{OPENING}\n{SEPARATOR}ONE", "ONE"),
        (f"hm{SEPARATOR}so{SEPARATOR}ONE", "ONE"),
        (f"{OPENING}hm</think>ONE", "ONE"),  # closed in other words than the template's
        (f"{OPENING}hm, ONE", ""),  # cut in its thought
        ("", ""),
    ],
)
def test_thoughts_are_no_part_of_an_answer(thinker, written, spoken):
    marks = thought_marks(thinker)
    ids = thinker(written, add_special_tokens=False)["input_ids"]
    assert thinker.decode(without_thought(ids, marks, thinker)) == spoken


CHANNELS = files("trl").joinpath("chat_templates", "gptoss.jinja")


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>ONE", "ONE"),
        ("<|channel|>final<|message|>ONE", "ONE"),
        ("<|channel|>analysis<|message|>hm, ONE", ""),
    ],
)
def test_a_template_that_begins_thoughts_and_answers_with_the_same_token(thinker, written, spoken):
    own = copy.deepcopy(thinker)
    own.add_tokens(["<|channel|>", "<|message|>", "<|end|>", "<|start|>"])
    own.chat_template = CHANNELS.read_text(encoding="utf-8")
    ids = own(written, add_special_tokens=False)["input_ids"]
    assert own.decode(without_thought(ids, thought_marks(own), own)) == spoken


def test_a_conversation_that_the_template_refuses_names_its_row(thinker):
    own = copy.deepcopy(thinker)
    own.chat_template = "{% if messages[0].content == 'two?' %}{{ raise_exception('No two') }}{% endif %}"
    with pytest.raises(ValueError, match=r"^The chat template fails on row 2 \(No two\)"):
        prompt_ids(own, QUESTIONS)


def test_a_template_without_thoughts_has_no_marks(thinker):
    plain = AutoTokenizer.from_pretrained(thinker.name_or_path)
    plain.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert thought_marks(plain) is None
    plain.chat_template = None
    assert thought_marks(plain) is None
