"""Answers with a warmup first, against the plain way in two calls, and one prompt at a time."""

from __future__ import annotations

import json

import pytest
import torch
from folders import SEPARATOR, random_adapter, warmup_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

from warmup_peft import warmup_generate
from warmup_peft.inference.decoding import (
    WARMUP_CONFIG_NAME,
    WarmupConfig,
    append_warmups,
    end_token_ids,
    separator_token_ids,
)
from warmup_peft.method.branches import Tokens, Warmups

PROMPTS = ["Q: one?", "A longer question: two?", "x", "Q: what follows three?", "?", "Tell me."]
PAD = 0
NUM_ANSWER_TOKENS = 6


@pytest.fixture(scope="module")
def base(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


@pytest.fixture(params=["base", "adapter"])
def model(request, base, model_folder, lora):
    return base if request.param == "base" else random_adapter(model_folder, lora)


@pytest.fixture
def config(tokenizer) -> WarmupConfig:
    return warmup_config(tokenizer)


@pytest.fixture
def batch(tokenizer):
    return tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")


def greedy(model, ids: list[int], max_new_tokens: int) -> list[int]:
    return model.generate(
        input_ids=torch.tensor([ids]), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=PAD
    )[0, len(ids) :].tolist()


def cut(ids: list[int], end_ids: tuple[int, ...], separator: list[int]) -> list[int]:
    """What stands before the first end token or separator."""
    for i in range(len(ids)):
        if ids[i] in end_ids or ids[i : i + len(separator)] == separator:
            return ids[:i]
    return ids


def two_calls(model, prompt_ids: list[int], config: WarmupConfig) -> tuple[list[int], list[int]]:
    """Warmup and answer of one prompt, by `model.generate` alone."""
    written = greedy(model, prompt_ids, config.max_warmup_length)
    warmup = cut(written, end_token_ids(model), config.warmup_separator_ids)
    return warmup, greedy(model, prompt_ids + warmup + config.warmup_separator_ids, NUM_ANSWER_TOKENS)


def padded_right(ids: list[int], width: int) -> list[int]:
    return ids + [PAD] * (width - len(ids))


# ---- warmup_generate ----


def test_equals_two_calls_one_prompt_at_a_time(model, batch, config, tokenizer):
    with_warmup = warmup_generate(
        model, **batch, warmup_config=config, return_warmup=True, max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD
    )
    plain = [two_calls(model, tokenizer(prompt)["input_ids"], config) for prompt in PROMPTS]
    width = max(len(answer) for _, answer in plain)
    for row, prompt, (warmup, answer) in zip(with_warmup.tolist(), PROMPTS, plain, strict=True):
        whole = tokenizer(prompt)["input_ids"] + warmup + config.warmup_separator_ids + padded_right(answer, width)
        assert row == [PAD] * (len(row) - len(whole)) + whole
    assert len({len(warmup) for warmup, _ in plain}) > 1  # ragged, or the test sees too little
    assert len({len(answer) for _, answer in plain}) > 1


def test_returns_prompt_and_answer_only(model, batch, config, tokenizer):
    sequences = warmup_generate(
        model, **batch, warmup_config=config, max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD
    )
    width = batch["input_ids"].size(1)
    answers = [two_calls(model, tokenizer(prompt)["input_ids"], config)[1] for prompt in PROMPTS]
    assert torch.equal(sequences[:, :width], batch["input_ids"])
    longest = max(map(len, answers))
    assert sequences[:, width:].tolist() == [padded_right(answer, longest) for answer in answers]


def test_without_a_mask_every_token_is_real(base, config, tokenizer):
    ids = tokenizer("Q: one?", return_tensors="pt")["input_ids"]
    keywords = dict(warmup_config=config, max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD)
    assert torch.equal(
        warmup_generate(base, ids, **keywords), warmup_generate(base, ids, torch.ones_like(ids), **keywords)
    )


def test_takes_the_folder_for_the_configuration(base, batch, config, tmp_path):
    config.save(tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        assert torch.equal(
            warmup_generate(base, **batch, warmup_config=folder, max_new_tokens=4, pad_token_id=PAD),
            warmup_generate(base, **batch, warmup_config=config, max_new_tokens=4, pad_token_id=PAD),
        )


def test_max_new_tokens_counts_the_answer_alone(base, batch, config):
    sequences = warmup_generate(base, **batch, warmup_config=config, max_new_tokens=1, pad_token_id=PAD)
    assert sequences.shape == (len(PROMPTS), batch["input_ids"].size(1) + 1)


def test_several_answers_of_each_prompt(base, batch, config):
    set_seed(0)
    sequences = warmup_generate(
        base, **batch, warmup_config=config, do_sample=True, num_return_sequences=3, max_new_tokens=4, pad_token_id=PAD
    )
    assert len(sequences) == 3 * len(PROMPTS)
    width = batch["input_ids"].size(1)
    assert torch.equal(sequences[::3, :width], batch["input_ids"])
    assert torch.equal(sequences[2::3, :width], batch["input_ids"])


@pytest.mark.parametrize("law", [{"top_k": 1}, {"temperature": 1e-4}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_the_law_of_sampling_holds_for_the_warmup_too(base, batch, config, law):
    """Each of these laws leaves the likeliest token alone, so sampling must do what greedy decoding does."""
    keywords = dict(warmup_config=config, return_warmup=True, max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD)
    set_seed(0)
    sampled = warmup_generate(base, **batch, do_sample=True, **law, **keywords)
    assert torch.equal(sampled, warmup_generate(base, **batch, do_sample=False, **keywords))


def test_sampled_warmups_differ_from_greedy_ones(base, batch, config):
    keywords = dict(warmup_config=config, return_warmup=True, max_new_tokens=1, pad_token_id=PAD)
    set_seed(0)
    sampled = warmup_generate(base, **batch, do_sample=True, **keywords)
    set_seed(0)
    assert torch.equal(sampled, warmup_generate(base, **batch, do_sample=True, **keywords))
    greedy_ones = warmup_generate(base, **batch, do_sample=False, **keywords)
    assert sampled[:, :-1].tolist() != greedy_ones[:, :-1].tolist()


@pytest.mark.parametrize(
    ("ids", "mask", "row"),
    [
        ([[5, 6], [0, 0], [7, 8]], [[1, 1], [0, 0], [1, 1]], 1),
        ([[], []], [[], []], 0),
    ],
)
def test_empty_prompt_is_refused(base, config, ids, mask, row):
    with pytest.raises(ValueError, match=rf"^Prompt {row} is empty\. Give every prompt at least one token"):
        warmup_generate(base, torch.tensor(ids), torch.tensor(mask), warmup_config=config)


def test_training_mode_generation_defaults_and_gradients_are_left_alone(base, batch, config):
    defaults = base.generation_config
    base.train()
    sequences = warmup_generate(base, **batch, warmup_config=config, max_new_tokens=2, pad_token_id=PAD)
    assert base.training
    assert base.generation_config is defaults
    assert not sequences.requires_grad
    base.eval()


# ---- Parts ----


def test_warmups_and_separator_are_appended_by_hand():
    prompt = Tokens(torch.tensor([[0, 5], [6, 7]]), torch.tensor([[False, True], [True, True]]))
    warmups = Warmups(torch.tensor([[[8, 9]], [[8, 1]]]), torch.tensor([[2], [0]]), torch.tensor([[2], [1]]))
    context = append_warmups(prompt, warmups, WarmupConfig("||", [3, 3], 2), pad_id=4)
    assert context.ids.tolist() == [[5, 8, 9, 3, 3], [4, 6, 7, 3, 3]]
    assert context.mask.tolist() == [[True] * 5, [False, True, True, True, True]]


def test_end_tokens_are_the_models_and_the_tokenizers(base, tokenizer):
    assert end_token_ids(base) == (1, *range(200, 270))
    assert end_token_ids(base, tokenizer) == (1, *range(200, 270))


def word_tokenizer(**special) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "||": 2, "<bos>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


def test_separator_ids_have_no_special_tokens(tokenizer):
    assert tokenizer.decode(separator_token_ids(tokenizer, SEPARATOR)) == SEPARATOR
    assert separator_token_ids(word_tokenizer(bos_token="<bos>"), " || ") == [2]


@pytest.mark.parametrize("separator", ["  ", "###", "|| ###"])
def test_separator_that_cannot_be_written_is_refused(separator):
    with pytest.raises(ValueError, match=r"^warmup_separator='.*' cannot be written by this tokenizer.*Choose a sep"):
        separator_token_ids(word_tokenizer(), separator)


# ---- WarmupConfig ----


def test_config_comes_back_as_it_was_saved(config, tmp_path):
    assert not WarmupConfig.is_in(tmp_path)
    config.save(tmp_path)
    assert WarmupConfig.is_in(tmp_path)
    assert WarmupConfig.load(tmp_path) == config
    assert json.loads((tmp_path / WARMUP_CONFIG_NAME).read_text())["warmup_separator"] == SEPARATOR


def test_missing_config(tmp_path):
    with pytest.raises(ValueError, match=rf"holds no {WARMUP_CONFIG_NAME}.*Name the folder"):
        WarmupConfig.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", '{"warmup_separator": " | ", "warm', "[]", "null", '{"warmup_separator": " | "}', '{"unknown": 1}'],
)
def test_broken_config(tmp_path, text):
    (tmp_path / WARMUP_CONFIG_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"{WARMUP_CONFIG_NAME} cannot be read \("):
        WarmupConfig.load(tmp_path)
