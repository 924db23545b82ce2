"""Answers with a warmup first, against the plain way in two calls, and one prompt at a time."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import pytest
import torch
from architectures import build
from folders import random_adapter, warmup_config
from thinning import every
from transformers import AutoModelForCausalLM, GenerationConfig, set_seed

from warmup_peft import warmup_generate
from warmup_peft.inference.decoding import decode_prepared
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import end_token_ids

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
        warmup_generate(base, ids, **keywords),
        warmup_generate(base, ids, attention_mask=torch.ones_like(ids), **keywords),
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


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"temperature": 1e-4}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_sampling_options_apply_to_the_warmup_too(base, batch, config, sampling):
    """Each of these options leaves only the most likely token, so sampling must equal greedy decoding."""
    keywords = dict(warmup_config=config, return_warmup=True, max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD)
    set_seed(0)
    sampled = warmup_generate(base, **batch, do_sample=True, **sampling, **keywords)
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
        warmup_generate(base, torch.tensor(ids), attention_mask=torch.tensor(mask), warmup_config=config)


def test_training_mode_generation_defaults_and_gradients_are_left_alone(base, batch, config):
    defaults = base.generation_config
    base.train()
    sequences = warmup_generate(base, **batch, warmup_config=config, max_new_tokens=2, pad_token_id=PAD)
    assert base.training
    assert base.generation_config is defaults
    assert not sequences.requires_grad
    base.eval()


# ---- As `generate` would, without the warmup in sight ----


def separate_answers(model, config, tokenizer, **options):
    """Each prompt alone: its greedy warmup, and what plain `generate` answers after it with the same options."""
    answers = []
    for prompt in PROMPTS:
        context = torch.tensor([two_calls_context(model, tokenizer(prompt)["input_ids"], config)])
        sequences = model.generate(input_ids=context, pad_token_id=PAD, **options)
        answers += [row[context.size(1) :].tolist() for row in sequences]
    return answers


def two_calls_context(model, prompt_ids, config):
    return prompt_ids + two_calls(model, prompt_ids, config)[0] + config.warmup_separator_ids


def ended(rows, end_ids):
    """Each row up to its first end token; beam search fills what follows with one or another."""
    ends = [next((i for i, token in enumerate(row) if token in end_ids), len(row)) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends)]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0},
        {"num_beams": 2, "early_stopping": True, "min_new_tokens": 3},
        {"min_new_tokens": 4},
        {"bad_words_ids": [[120], [60]]},
    ],
    ids=str,
)
def test_options_of_generate_hold_for_the_answer(base, batch, config, tokenizer, options):
    options = {"max_new_tokens": NUM_ANSWER_TOKENS, "do_sample": False, **options}
    sequences = warmup_generate(base, **batch, warmup_config=config, pad_token_id=PAD, **options)
    answers = ended(sequences[:, batch["input_ids"].size(1) :].tolist(), end_token_ids(base))
    assert answers == ended(separate_answers(base, config, tokenizer, **options), end_token_ids(base))


def test_no_processor_or_criterion_sees_the_warmup(base, batch, config):
    """They see prompt and answer only, also in the length."""
    seen = []

    def watch(input_ids, scores, **_):
        seen.append(input_ids.clone())
        return scores

    width = batch["input_ids"].size(1)
    warmup_generate(base, **batch, warmup_config=config, max_new_tokens=3, pad_token_id=PAD, logits_processor=[watch])
    assert [ids.size(1) for ids in seen] == [width, width + 1, width + 2]
    assert all(torch.equal(ids[:, :width], batch["input_ids"]) for ids in seen)


def test_max_length_counts_prompt_and_answer(base, batch, config):
    width = batch["input_ids"].size(1)
    sequences = warmup_generate(base, **batch, warmup_config=config, max_length=width + 2, pad_token_id=PAD)
    assert sequences.size(1) == width + 2


def test_stop_strings(base, config, tokenizer):
    """The answer ends with the first character that a whole answer has in its middle."""
    keywords = dict(warmup_config=config, max_new_tokens=12, pad_token_id=PAD, do_sample=False, eos_token_id=1)
    found = 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        width = ids["input_ids"].size(1)
        whole = warmup_generate(base, **ids, **keywords)[0, width:].tolist()
        places = [i for i, token in enumerate(whole[:-1]) if tokenizer.decode(token).isascii() and token > 1]
        if not places:
            continue
        stop = tokenizer.decode(whole[places[0]])
        cut_short = warmup_generate(base, **ids, **keywords, stop_strings=[stop], tokenizer=tokenizer)
        assert cut_short[0, width:].tolist() == whole[: places[0] + 1]
        found += 1
    assert found > 1


class Collect:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.given, self.ended = [], False

    def put(self, value):
        self.given.append(value.clone())

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_answer_token_by_token(base, config, tokenizer):
    ids = tokenizer("Q: what follows three?", return_tensors="pt")
    streamer = Collect()
    sequences = warmup_generate(
        base, **ids, warmup_config=config, max_new_tokens=4, pad_token_id=PAD, do_sample=False, streamer=streamer
    )
    assert streamer.ended
    answer = sequences[0, ids["input_ids"].size(1) :].tolist()
    assert [token for part in streamer.given for token in part.flatten().tolist()][-len(answer) :] == answer


def test_a_dictionary_has_the_same_sequences(base, batch, config):
    keywords = dict(warmup_config=config, max_new_tokens=4, pad_token_id=PAD, do_sample=False)
    plain = warmup_generate(base, **batch, **keywords)
    output = warmup_generate(base, **batch, **keywords, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(output.sequences, plain)
    assert len(output.scores) == plain.size(1) - batch["input_ids"].size(1)


def test_passed_to_generate_it_does_the_same(model, batch, config):
    keywords = dict(warmup_config=config, max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD, do_sample=False)
    called = warmup_generate(model, **batch, **keywords)
    passed = model.generate(**batch, custom_generate=warmup_generate, **keywords)
    assert torch.equal(passed, called)
    whole = model.generate(**batch, custom_generate=warmup_generate, return_warmup=True, **keywords)
    assert torch.equal(whole, warmup_generate(model, **batch, return_warmup=True, **keywords))


def test_no_token_is_encoded_twice(base, batch, config):
    """Forwards over the prompt, each warmup token, the separator with the last of them, each answer token."""
    widths = []
    forward = base.forward

    def watched(*args, **kwargs):
        widths.append(kwargs["input_ids"].size(1))
        return forward(*args, **kwargs)

    base.forward = watched
    try:
        sequences = warmup_generate(
            base, **batch, warmup_config=config, max_new_tokens=4, min_new_tokens=4, pad_token_id=PAD, do_sample=False
        )
    finally:
        base.forward = forward
    width, num_separator = batch["input_ids"].size(1), len(config.warmup_separator_ids)
    assert sequences.size(1) == width + 4
    written = widths.index(num_separator + 1)  # forwards before the separator: the prompt and all but the last token
    assert widths == [width, *[1] * (written - 1), num_separator + 1, 1, 1, 1]
    assert written <= config.max_warmup_length


def test_a_limit_of_zero_is_plain_generate(base, batch, config):
    keywords = dict(max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD, do_sample=False)
    off = dataclasses.replace(config, max_warmup_length=0)
    assert torch.equal(
        warmup_generate(base, **batch, warmup_config=off, **keywords), base.generate(**batch, **keywords)
    )


def test_the_answer_that_most_warmups_give(base, batch, config):
    """Every prompt's answer is the most frequent of those that single calls with the same seed give."""
    keywords = dict(warmup_config=config, max_new_tokens=2, pad_token_id=PAD, do_sample=False)
    set_seed(3)
    voted = warmup_generate(base, **batch, num_warmups=7, **keywords)
    assert voted.shape == (len(PROMPTS), batch["input_ids"].size(1) + 2)
    repeated = {name: x.repeat_interleave(7, 0) for name, x in batch.items()}
    set_seed(3)
    decode = functools.partial(decode_prepared, warmup_config=config, sample_warmup=True)
    rows = base.generate(**repeated, custom_generate=decode, max_new_tokens=2, pad_token_id=PAD, do_sample=False)
    for row, prompt in enumerate(voted.tolist()):
        answers = [tuple(answer) for answer in rows[7 * row : 7 * row + 7, batch["input_ids"].size(1) :].tolist()]
        most = max(answers.count(answer) for answer in answers)
        winner = next(answer for answer in answers if answers.count(answer) == most)
        assert tuple(prompt[batch["input_ids"].size(1) :]) == winner


def test_a_vote_through_generate_is_the_vote_of_a_direct_call(base, batch, config):
    keywords = dict(warmup_config=config, num_warmups=7, max_new_tokens=2, pad_token_id=PAD, do_sample=False)
    set_seed(3)
    direct = warmup_generate(base, **batch, **keywords)
    set_seed(3)
    assert torch.equal(base.generate(**batch, custom_generate=warmup_generate, **keywords), direct)
    with pytest.raises(ValueError, match="num_warmups must be 1 or more"):
        base.generate(**batch, custom_generate=warmup_generate, **{**keywords, "num_beams": 2})


def test_a_missing_configuration_is_said(base, batch):
    with pytest.raises(ValueError, match=r"^warmup_config is missing\. Pass a warmup adapter's folder"):
        base.generate(**batch, custom_generate=warmup_generate)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2},
        {"return_warmup": True},
        {"return_dict_in_generate": True},
        {"streamer": object()},
        {"num_warmups": 0},
        {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)},
    ],
    ids=" ".join,  # an object's own text differs from one process to the next
)
def test_votes_are_over_single_answers(base, batch, config, changes):
    with pytest.raises(ValueError, match="num_warmups must be 1 or more"):
        warmup_generate(base, **batch, warmup_config=config, **{"num_warmups": 3, **changes})


def test_a_streamer_that_skips_the_prompt_loses_nothing_of_the_answer(base, config, tokenizer, capsys):
    ids = tokenizer("Q: what follows three?", return_tensors="pt")
    keywords = dict(warmup_config=config, max_new_tokens=4, pad_token_id=PAD, do_sample=False)
    answer = warmup_generate(base, **ids, **keywords)[0, ids["input_ids"].size(1) :]
    streamer = Collect()
    warmup_generate(base, **ids, **keywords, streamer=streamer)
    assert torch.equal(streamer.given[0], ids["input_ids"])  # what TextStreamer(skip_prompt=True) leaves out
    assert torch.cat([part.flatten() for part in streamer.given[1:]]).tolist() == answer.tolist()
    with pytest.raises(ValueError, match="Beams cannot be streamed"):
        warmup_generate(base, **ids, **keywords, streamer=streamer, num_beams=2)


@pytest.mark.parametrize("where", ["keyword", "configuration"])
def test_the_cache_is_used_whatever_is_asked(base, batch, config, where):
    keywords = dict(warmup_config=config, max_new_tokens=NUM_ANSWER_TOKENS, pad_token_id=PAD, do_sample=False)
    without = {"use_cache": False} if where == "keyword" else {"generation_config": GenerationConfig(use_cache=False)}
    if where == "configuration":
        without["generation_config"].eos_token_id = base.generation_config.eos_token_id
    assert torch.equal(
        warmup_generate(base, **batch, **keywords, **without), warmup_generate(base, **batch, **keywords)
    )


def test_stop_strings_may_stand_in_the_configuration(base, config, tokenizer):
    ids = tokenizer("Q: one?", return_tensors="pt")
    keywords = dict(warmup_config=config, max_new_tokens=12, pad_token_id=PAD, do_sample=False, tokenizer=tokenizer)
    generation_config = GenerationConfig(stop_strings=["a", "e"], eos_token_id=1)
    in_it = warmup_generate(base, **ids, **keywords, generation_config=generation_config)
    assert torch.equal(in_it, warmup_generate(base, **ids, **keywords, stop_strings=["a", "e"], eos_token_id=1))
    assert generation_config.stop_strings == ["a", "e"]


def test_a_cache_that_holds_something_is_refused(base, config, tokenizer):
    ids = tokenizer("Q: one?", return_tensors="pt")
    cache = base(**ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="Leave past_key_values out"):
        warmup_generate(base, **ids, warmup_config=config, past_key_values=cache, max_new_tokens=2)


def test_a_folder_without_settings_is_refused(base, batch, tmp_path):
    with pytest.raises(ValueError, match=r"There is no .*warmup_config.json. Pass a warmup adapter"):
        warmup_generate(base, **batch, warmup_config=tmp_path)
    with pytest.raises(ValueError, match=r"warmup_config is missing\. Pass a warmup adapter"):
        warmup_generate(base, **batch)


# ---- Models that keep something else than all keys and values ----


def greedy_over_whole_rows(model, row: list[int], limit: int, ends: list[int]) -> list[int]:
    """Tokens up to an end token, which is left out; each from a forward over the whole unpadded row."""
    written = []
    while len(written) < limit:
        token = model(input_ids=torch.tensor([row + written])).logits[0, -1].argmax().item()
        if token in ends:
            break
        written.append(token)
    return written


@pytest.mark.parametrize(
    ("name", "changes"),
    every(
        3,
        [
            ("qwen3_5_text", {}),
            ("bamba", {}),
            ("falcon_h1", {}),
            ("lfm2", {}),
            ("nemotron_h", {}),
            ("olmo_hybrid", {}),
            ("mpt", {"initializer_range": 0.1}),  # positions by column
            ("jamba", {}),
            ("mamba", {}),
            ("gemma3_text", {"sliding_window": 8}),
            ("mistral", {"sliding_window": 8}),
            ("llama", {}),
        ],
    ),
)
@torch.no_grad()
def test_a_batch_is_answered_as_its_rows_alone(name, changes):
    """Prompts and warmups of different lengths, against a loop that knows neither cache nor padding."""
    model = build(name, **changes)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    config = SimpleNamespace(warmup_separator_ids=[5, 6], max_warmup_length=6, end_token_ids=[*range(8, 128, 4)])
    mask = torch.arange(12) >= 12 - torch.tensor([[2], [5], [9], [12]])
    ids = torch.randint(7, 60, mask.shape, generator=torch.Generator().manual_seed(1)).masked_fill(~mask, 0)
    found = warmup_generate(
        model, ids, attention_mask=mask.long(), warmup_config=config, max_new_tokens=6, do_sample=False,
        return_warmup=True,
    )  # fmt: skip
    lengths = set()
    for row, each in enumerate(found.tolist()):
        prompt = ids[row][mask[row]].tolist()
        context = prompt + greedy_over_whole_rows(model, prompt, 6, [1, *config.end_token_ids]) + [5, 6]
        lengths.add(len(context) - len(prompt))
        expected = context + greedy_over_whole_rows(model, context, 6, [1])
        assert [token for token in each if token > 1] == [token for token in expected if token > 1]
    assert len(lengths) > 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gemma3_text", {"cache_implementation": "static"}),
        ("mistral", {"cache_implementation": "static"}),
        ("gemma3_text", {"num_beams": 3, "use_cache": False}),
        ("mpt", {"num_beams": 3}),
        ("mamba", {"num_beams": 3}),
        ("minimax", {}),
    ],
)
@torch.no_grad()
def test_what_generate_takes_holds_where_the_context_is_encoded_anew(name, settings):
    """Against plain `generate` after [prompt | warmup | separator], one row at a time."""
    model = build(name, **{"sliding_window": 64} if name == "mistral" else {})
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    config = SimpleNamespace(warmup_separator_ids=[5, 6], max_warmup_length=6, end_token_ids=[*range(8, 128, 4)])
    ids = torch.randint(7, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 5, "do_sample": False, **settings}
    found = warmup_generate(model, ids, warmup_config=config, return_warmup=True, **options)
    for row, each in enumerate(found.tolist()):
        prompt = ids[row].tolist()
        context = prompt + greedy_over_whole_rows(model, prompt, 6, [1, *config.end_token_ids]) + [5, 6]
        options.pop("cache_implementation", None)
        expected = model.generate(torch.tensor([context]), **options)[0].tolist()
        assert [token for token in each if token > 1] == [token for token in expected if token > 1]


@torch.no_grad()
def test_longrope_writes_each_warmup_as_if_it_were_alone(longrope):
    prompts = [list(range(7, 7 + length)) for length in (30, 4, 20, 12)]
    config = SimpleNamespace(warmup_separator_ids=[5, 6], max_warmup_length=6, end_token_ids=[1])
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    found = warmup_generate(
        longrope, ids, attention_mask=mask, warmup_config=config, max_new_tokens=1, do_sample=False, return_warmup=True
    )
    for row, prompt in zip(found.tolist(), prompts):
        warmup = greedy_over_whole_rows(longrope, prompt, 6, [1])
        assert [token for token in row if token][: len(prompt) + len(warmup)] == prompt + warmup
