"""The thinking format, read from every chat template that TRL ships, and rows in it."""

from __future__ import annotations

from importlib.resources import files

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from warmup_peft.evaluation.answering import all_continuations
from warmup_peft.inference import chat
from warmup_peft.inference.folder import WarmupConfig

TEMPLATES = {file.name.removesuffix(".jinja"): file for file in files("trl").joinpath("chat_templates").iterdir()
             if file.name.endswith(".jinja")}  # fmt: skip
QWEN = ("<think>\n", "</think>\n\n", "<|im_end|>\n", "\n")
GEMMA = ("<|channel>thought\n", "<channel|>", "<turn|>\n", "\n")
DEEPSEEK = ("", "</think>\n\n", "<｜end▁of▁sentence｜>", "\n")
THINKING = {  # opening, separator, what stands behind the answer, and between a thought and what closes it
    "qwen3": QWEN,
    "qwen3_5_think": ("", *QWEN[1:]),
    "qwen3_6": ("", *QWEN[1:]),
    "qwen3_8": ("", *QWEN[1:]),
    "nemotron_3_nano": ("", "</think>\n", "<|im_end|>\n", "\n"),
    "nemotron_3_super": ("", "</think>\n", "<|im_end|>\n", "\n"),
    "nemotron_3_ultra": ("", "</think>", "<|im_end|>\n", ""),
    "nemotron_3_5_lightning": ("", "</think>", "<|im_end|>\n", ""),
    "gptoss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|return|>",
        "",
    ),
    "glm4moe": ("\n<think>", "</think>\n", "", ""),
    "lfm2_2_5": ("<think>", "</think>", "<|im_end|>\n", ""),
    "lfm2_2_5_v2": ("<think>", "</think>", "<|im_end|>\n", ""),
    "lfm2_2_5_vl": ("<think>", "</think>", "<|im_end|>\n", ""),
    "gemma4_v5": GEMMA,
    "diffusion_gemma": GEMMA,
    "muse_glimmer": (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>", "<|eot|>", ""),
    "deepseek_r1_distill": DEEPSEEK,
    "deepseekv3": DEEPSEEK,
}
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|end|>", "<|start|>", "<|channel|>", "<|message|>",
    "<|return|>", "<|channel>", "<channel|>", "<turn|>", "<|turn>", "<|eom|>", "<|eot|>", "<|user|>", "<|assistant|>",
    "<｜Assistant｜>", "<｜User｜>", "<｜end▁of▁sentence｜>",
]  # fmt: skip
HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Ann knows. Who hears it last?"},
    {"role": "assistant", "content": "Eve", "reasoning_content": "EARLIER"},
    {"role": "user", "content": "And from Kay?"},
]
ANSWER = {"role": "assistant", "content": "Answer: Ned"}


@pytest.fixture
def thinker(tokenizer) -> PreTrainedTokenizerFast:
    """A byte tokenizer with the special tokens of all these templates."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        bos_token="<|im_start|>",
    )
    copy.add_special_tokens({"additional_special_tokens": SPECIAL})
    return copy


def with_template(thinker, name: str) -> PreTrainedTokenizerFast:
    thinker.chat_template = TEMPLATES[name].read_text(encoding="utf-8")
    return thinker


def names(knows_thoughts: bool) -> list[str]:
    return sorted(name for name in TEMPLATES if (name.removesuffix("_training") in THINKING) == knows_thoughts)


def test_trl_still_ships_these_templates():
    assert set(THINKING) <= set(TEMPLATES)
    assert len(names(knows_thoughts=False)) > 30


@pytest.mark.parametrize("name", names(knows_thoughts=True))
def test_the_format_is_read_from_the_template(thinker, name):
    found = chat.find_format(with_template(thinker, name), is_chat=True)
    expected = THINKING[name.removesuffix("_training")]
    if name == "glm4moe_training":  # which trains the token that begins the next turn
        expected = (*expected[:2], "<|user|>", "")
    assert found.thinking == chat.ThinkingTexts(*expected)
    assert (found.opening, found.separator) == expected[:2]
    assert thinker.decode(found.separator_ids[:1]) in SPECIAL


@pytest.mark.parametrize("name", names(knows_thoughts=False))
def test_templates_without_thoughts_are_plain(thinker, name):
    found = chat.find_format(with_template(thinker, name), is_chat=True)
    assert found.thinking is None
    assert (found.opening, found.separator) == ("", " || ")


@pytest.mark.parametrize("name", names(knows_thoughts=True))
@pytest.mark.parametrize("data", ["no thought", "in a key", "in the content"])
def test_rows_are_what_the_model_itself_would_write(thinker, name, data):
    """Prompt and opening as at inference, the data's thought apart, and a target without an empty block."""
    found = chat.find_format(with_template(thinker, name), is_chat=True)
    answer = dict(ANSWER)
    if data == "in a key":
        answer["reasoning_content"] = "Lee Max"
    if data == "in the content":
        answer["content"] = f"{found.opening.lstrip() or '<think>'}Lee Max{found.separator}{answer['content']}"
    row = chat.thinking_row(thinker, HISTORY, answer, found, {})
    prompt = thinker.apply_chat_template(HISTORY, tokenize=False, add_generation_prompt=True)
    assert thinker.decode(row.prompt_ids) == prompt + found.opening
    end = {"": "<|eos|>", "<turn|>\n": "<turn|>", "<|im_end|>\n": "<|im_end|>"}
    assert thinker.decode(row.target_ids) == "Answer: Ned" + end.get(found.thinking.end, found.thinking.end)
    thought = None if data == "no thought" else "Lee Max" + found.thinking.thought_end
    assert (None if row.thought_ids is None else thinker.decode(row.thought_ids)) == thought
    whole = [*HISTORY, {**ANSWER, "reasoning_content": "Lee Max"}]
    rendered = thinker.apply_chat_template(whole, tokenize=False)
    if thought is not None and "Lee Max" in rendered:  # DeepSeek's templates drop it
        joined = [*row.prompt_ids, *row.thought_ids, *found.separator_ids, *row.target_ids]
        assert rendered.startswith(thinker.decode(joined).removesuffix("<|eos|>"))


def test_a_switched_off_template_is_plain_or_refused(thinker):
    with_template(thinker, "qwen3")
    off = {"enable_thinking": False}
    assert chat.find_format(thinker, is_chat=True, template=off).thinking is None
    with pytest.raises(ValueError, match=r"switched off \(enable_thinking\), so warmup_format=thinking cannot work"):
        chat.find_format(thinker, "thinking", is_chat=True, template=off)
    texts = chat.find_format(thinker, is_chat=True).thinking
    assert [chat.prompt_is_thought_over(thinker, each, texts) for each in ({}, off)] == [False, True]


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1"])
def test_thinking_that_the_template_does_not_know(thinker, tokenizer, name):
    """A vocabulary's own <think> and </think> are taken where they are asked for."""
    found = chat.find_format(with_template(thinker, name), "thinking", is_chat=True)
    assert (found.opening, found.separator) == ("<think>\n", "</think>\n\n")
    row = chat.thinking_row(thinker, HISTORY, ANSWER, found, {})
    assert thinker.decode(row.target_ids).startswith("Answer: Ned<|")
    tokenizer_without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|eos|>")
    tokenizer_without.chat_template = thinker.chat_template
    with pytest.raises(ValueError, match="knows no thoughts, so warmup_format=thinking cannot work"):
        chat.find_format(tokenizer_without, "thinking", is_chat=True)


def test_own_opening_and_separator_take_the_formats_place(thinker):
    with_template(thinker, "qwen3")
    assert chat.find_format(thinker, is_chat=True, separator=" ## ").thinking is None
    found = chat.find_format(thinker, "thinking", is_chat=True, opening="<think> ", separator="</think> ")
    assert (found.opening, found.separator) == ("<think> ", "</think> ")
    row = chat.thinking_row(thinker, HISTORY, ANSWER, found, {})
    assert thinker.decode(row.target_ids) == "Answer: Ned<|im_end|>"


def test_tools_stay_in_the_prompt(thinker):
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
    found = chat.find_format(with_template(thinker, "qwen3"), is_chat=True, template={"tools": tools})
    row = chat.thinking_row(thinker, HISTORY, ANSWER, found, {"tools": tools})
    assert "look_up" in thinker.decode(row.prompt_ids)
    assert "look_up" not in thinker.decode(row.target_ids)


def test_a_tool_call_that_ends_in_its_own_way_keeps_its_end(thinker):
    with_template(thinker, "gptoss")
    thinker.add_special_tokens({"additional_special_tokens": [*SPECIAL, "<|call|>"]})
    calls = [{"type": "function", "function": {"name": "look_up", "arguments": {"name": "Kay"}}}]
    found = chat.find_format(thinker, is_chat=True)
    row = chat.thinking_row(thinker, HISTORY[:2], {**ANSWER, "tool_calls": calls}, found, {})
    assert thinker.decode(row.target_ids).endswith('{"name": "Kay"}<|call|>')
    with pytest.raises(ValueError, match=r"^The chat template does not write this answer behind a thought"):
        chat.thinking_row(thinker, HISTORY[:2], {**ANSWER, "content": "", "tool_calls": calls}, found, {})


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_row_has_the_ids_of_the_whole_text(scheme):
    """Also where the tokenizer puts a space before a text that it is given alone."""
    letters = ["▁", "\n", *map(chr, range(33, 127))]
    words = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    words.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    spaces = PreTrainedTokenizerFast(tokenizer_object=words)
    spaces.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]})
    with_template(spaces, "qwen3")
    answer = {**ANSWER, "reasoning_content": "Kay tells Ned."}
    found = chat.find_format(spaces, is_chat=True)
    row = chat.thinking_row(spaces, HISTORY, answer, found, {})
    ids = [*row.prompt_ids, *row.thought_ids, *found.separator_ids, *row.target_ids]
    whole = spaces(chat.render(spaces, [*HISTORY, answer]), add_special_tokens=False)["input_ids"]
    assert ids == whole[: len(ids)]
    assert spaces.decode(whole[len(ids) :]).strip() == ""
    assert [row.target_ids[:-1]] == all_continuations(spaces, HISTORY, [ANSWER["content"]])  # as `evaluate` scores it


def test_a_closing_token_is_no_white_space(tokenizer):
    """Of a model whose `</think>` is ordinary text, or every line would end its thought."""
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token="<|eos|>"
    )
    with_template(plain, "qwen3")
    found = chat.find_format(plain, is_chat=True)
    assert (found.separator, found.thinking.thought_end) == ("</think>\n\n", "\n")
    row = chat.thinking_row(plain, HISTORY, {**ANSWER, "reasoning_content": "Ned"}, found, {})
    assert (plain.decode(row.thought_ids), plain.decode(row.target_ids)) == ("Ned\n", "Answer: Ned<|eos|>")


def test_text_parts_are_read_as_text(thinker):
    with_template(thinker, "qwen3")  # which leaves lists out
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    in_parts = [{"role": "system", "content": parts}, *HISTORY[1:]]
    assert chat.prompt_token_ids(thinker, in_parts) == chat.prompt_token_ids(thinker, HISTORY)


# ---- Prompts ----


def test_prompts_end_with_the_opening_once(thinker):
    with_template(thinker, "qwen3")
    opening_ids = thinker("<think>\n")["input_ids"]
    config = WarmupConfig("</think>", [1], 8, warmup_opening_ids=opening_ids, chat_template_kwargs={"extra": 1})
    ids = chat.prompt_token_ids(thinker, HISTORY, config)
    rendered = thinker.apply_chat_template(HISTORY, tokenize=False, add_generation_prompt=True)
    assert thinker.decode(ids) == rendered + "<think>\n"
    assert chat.prompt_token_ids(thinker, rendered + "<think>\n", config) == ids
    assert chat.prompt_token_ids(thinker, rendered) == ids[: -len(opening_ids)]


def test_a_thought_that_is_switched_off_is_refused(thinker):
    """An opening behind an empty thought would be a second one."""
    with_template(thinker, "qwen3")
    config = WarmupConfig("</think>\n\n", [1], 8, warmup_opening_ids=thinker("<think>\n")["input_ids"])
    with pytest.raises(ValueError, match=r"^The chat template, given {'enable_thinking': False}, ends a prompt with"):
        chat.prompt_token_ids(thinker, HISTORY, config, enable_thinking=False)
    chat.prompt_token_ids(thinker, HISTORY, enable_thinking=False)


def test_messages_need_a_template(tokenizer):
    with pytest.raises(ValueError, match="no chat template, so messages cannot be read"):
        chat.prompt_token_ids(tokenizer, HISTORY)


# ---- Texts that the tokenizer cannot write ----


def word_tokenizer(**special) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "||": 2, "<bos>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


def test_separator_ids_have_no_special_tokens(tokenizer):
    assert tokenizer.decode(chat.find_format(tokenizer).separator_ids) == " || "
    assert chat.find_format(word_tokenizer(bos_token="<bos>")).separator_ids == (2,)


@pytest.mark.parametrize("separator", ["  ", "###", "|| ###"])
def test_separator_that_cannot_be_written_is_refused(separator):
    with pytest.raises(ValueError, match=r"^warmup_separator='.*' cannot be written by this tokenizer.*Choose a text"):
        chat.find_format(word_tokenizer(), separator=separator)
