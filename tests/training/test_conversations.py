"""Conversations as training rows: the format that is found, the rows that are made, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES, tiny_config
from datasets import Dataset
from trainers import make_trainer, record_warmups
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.inference.decoding import warmup_generate

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PROMPT = "<|im_start|>user\nQ: {}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def thinking_folder(tmp_path_factory, tokenizer) -> str:
    """A tiny random Llama whose tokenizer has a chat template that knows thoughts."""
    folder = tmp_path_factory.mktemp("tiny-thinker")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token="<|pad|>",
        eos_token="<|eos|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]})
    tokenizer.chat_template = TEMPLATE
    set_seed(0)
    model = LlamaForCausalLM(tiny_config())
    for parameter in model.parameters():
        parameter.data.mul_(8.0) if parameter.dim() > 1 else None
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<|im_end|>"), *range(200, 250)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **more}


ROWS = [{"prompt": [user(f"Q: {text}")], "completion": [assistant(text.upper())]} for text in ("one", "three", "x")]
MESSAGES = [{"messages": [*row["prompt"], *row["completion"]]} for row in ROWS]
WITH_THOUGHTS = [{"messages": [row["prompt"][0], assistant(row["completion"][0]["content"], reasoning_content="hm")]}
                 for row in ROWS]  # fmt: skip
DEFAULTS = {"warmup_separator": None}


def trainer_of(folder, tmp_path, rows, lora, **settings):
    return make_trainer(folder, tmp_path, None, rows=rows, peft_config=lora, **{**DEFAULTS, **settings})


@pytest.mark.parametrize("rows", [ROWS, MESSAGES, WITH_THOUGHTS], ids=["prompt", "messages", "thoughts"])
def test_rows_of_a_thinking_model(thinking_folder, tmp_path, lora, rows):
    trainer = trainer_of(thinking_folder, tmp_path, rows, lora)
    tokenizer = trainer.processing_class
    assert (trainer.args.warmup_format, trainer.args.learn_separator) == ("thinking", True)
    for row, text in zip(trainer.train_dataset, ("one", "three", "x")):
        start = sum(label == -100 for label in row["labels"])
        assert tokenizer.decode(row["input_ids"][:start]) == PROMPT.format(text) + "<think>\n"
        assert tokenizer.decode(row["input_ids"][start:]) == text.upper() + "<|im_end|>"
        assert row["labels"][start:] == row["input_ids"][start:]
    closing = tokenizer.convert_tokens_to_ids("</think>")
    assert trainer.sampling.closing_id == closing
    assert {closing, tokenizer.convert_tokens_to_ids("<|im_end|>"), 1} < set(trainer.sampling.end_token_ids)


@pytest.mark.parametrize("warmup_format", ["thinking", "plain"])
def test_contents_in_parts_are_the_same_rows(thinking_folder, tmp_path, lora, warmup_format):
    parts = [{name: [{**row[name][0], "content": [{"type": "text", "text": row[name][0]["content"]}]}] for name in row}
             for row in ROWS]  # fmt: skip
    ids = [trainer_of(thinking_folder, tmp_path, rows, lora, warmup_format=warmup_format).train_dataset["input_ids"]
           for rows in (ROWS, parts)]  # fmt: skip
    assert list(ids[0]) == list(ids[1])


def test_a_streamed_conversation_is_the_same_row(thinking_folder, tmp_path, lora):
    whole = trainer_of(thinking_folder, tmp_path, ROWS, lora).train_dataset
    config = WarmupSFTConfig(str(tmp_path / "stream"), max_steps=1, bf16=False, report_to="none")
    stream = WarmupSFTTrainer(
        thinking_folder, config, train_dataset=Dataset.from_list(ROWS).to_iterable_dataset(), peft_config=lora
    ).train_dataset
    assert [row["input_ids"] for row in stream] == list(whole["input_ids"])


def test_plain_stays_plain(thinking_folder, tmp_path, lora):
    """Where it is asked for, and where the separator is one's own."""
    for settings in ({"warmup_format": "plain"}, {"warmup_separator": " || "}):
        trainer = trainer_of(thinking_folder, tmp_path, MESSAGES, lora, **settings)
        assert (trainer.args.warmup_format, trainer.args.learn_separator) == ("plain", False)
        assert trainer.args.warmup_separator == " || "
        row = trainer.train_dataset[0]
        start = sum(label == -100 for label in row["labels"])
        assert trainer.processing_class.decode(row["input_ids"][:start]) == PROMPT.format("one")


def test_an_opening_of_ones_own_ends_every_prompt(model_folder, tokenizer, tmp_path, lora):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_opening="<w>")
    for row, example in zip(trainer.train_dataset, EXAMPLES):
        start = sum(label == -100 for label in row["labels"])
        assert tokenizer.decode(row["input_ids"][:start]) == example["prompt"] + "<w>"
        assert tokenizer.decode(row["input_ids"][start:]) == example["completion"] + "<|eos|>"


def test_chat_template_kwargs_reach_the_template_and_the_folder(thinking_folder, tmp_path, lora):
    rows = [{**row, "chat_template_kwargs": {"enable_thinking": True}} for row in ROWS]
    trainer = trainer_of(thinking_folder, tmp_path, rows, lora)
    trainer.save_model()
    config = json.loads(Path(trainer.args.output_dir, "warmup_config.json").read_text())
    assert config["chat_template_kwargs"] == {"enable_thinking": True}
    assert (config["uses_chat_template"], config["writes_separator"]) == (True, True)
    assert (config["warmup_opening"], config["warmup_separator"]) == ("<think>\n", "</think>\n\n")


def test_chat_template_kwargs_that_a_row_leaves_out_are_not_given(thinking_folder, tmp_path, lora):
    """A table of rows fills them in with None, which this template takes for false."""
    given = [{"enable_thinking": True}, {"other": 1}, {"enable_thinking": None}]
    rows = [{**row, "chat_template_kwargs": kwargs} for row, kwargs in zip(ROWS, given)]
    trainer = trainer_of(thinking_folder, tmp_path, rows, lora)
    assert all("</think>" not in trainer.processing_class.decode(ids) for ids in trainer.train_dataset["input_ids"])


def test_a_prompt_with_or_without_its_opening_is_decoded_alike(thinking_folder, tmp_path, lora):
    """One row of a batch that ends with the opening, one that does not, and either alone."""
    trainer = trainer_of(thinking_folder, tmp_path, ROWS, lora, max_warmup_length=4)
    tokenizer, config = trainer.processing_class, trainer.warmup_config
    model = AutoModelForCausalLM.from_pretrained(thinking_folder, dtype=torch.float32)
    texts = [PROMPT.format("one"), PROMPT.format("one") + "<think>\n"]
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    options = {"warmup_config": config, "max_new_tokens": 4, "return_warmup": True, "do_sample": False}
    both = warmup_generate(model, **batch, **options)
    shown = tokenizer.batch_decode(both)
    assert shown[0] == shown[1]
    assert "</think>\n\n" in shown[0]
    for text in texts:
        alone = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        assert tokenizer.decode(warmup_generate(model, **alone, **options)[0]) == shown[0]
    longer = [PROMPT.format("a longer one"), texts[1]]
    ragged = tokenizer(longer, return_tensors="pt", padding=True, return_token_type_ids=False)
    padded = tokenizer.decode(warmup_generate(model, **ragged, **options)[1])
    assert padded.count("<think>") == 1  # the left is filled with padding
    plain = warmup_generate(model, **batch, **{**options, "return_warmup": False})
    assert [row.removeprefix("<|pad|>" * 20)[: len(text)] for row, text in
            zip((tokenizer.decode(x[x != 0]) for x in plain), texts)] == texts  # fmt: skip


def test_it_trains(thinking_folder, tmp_path, lora):
    trainer = trainer_of(thinking_folder, tmp_path, MESSAGES, lora, warmup_anchor=0.3, objective="jensen", max_steps=2)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


# ---- Bad input ----

BAD = [
    ([user("one")], "ends with a message of 'user', so it has no answer to train on"),
    ([{"role": "system", "content": "s"}, assistant("A")], "has nothing before its answer but a system prompt"),
    ([user("one"), assistant("A"), assistant("B")], "has two answers of the assistant in a row"),
]


@pytest.mark.parametrize(("messages", "sentence"), BAD)
def test_conversations_without_one_question_and_one_answer(thinking_folder, tmp_path, lora, messages, sentence):
    with pytest.raises(ValueError, match=f"^Row 4 of the train dataset {sentence}"):
        trainer_of(thinking_folder, tmp_path, [*MESSAGES, {"messages": messages}], lora)


@pytest.mark.parametrize("warmup_format", ["auto", "plain"])
def test_conversations_of_a_stream_or_in_sharegpts_form_end_with_an_answer_too(
    thinking_folder, tmp_path, lora, warmup_format
):
    sentence = r"^A conversation ends with a message of 'user', so it has no answer"
    turns = [{"from": role, "value": "x"} for role in ("user", "assistant", "user")]
    with pytest.raises(ValueError, match=sentence):
        trainer_of(thinking_folder, tmp_path, [{"conversations": turns}], lora, warmup_format=warmup_format)
    stream = Dataset.from_list([{"messages": [user("one"), assistant("A"), user("two")]}]).to_iterable_dataset()
    config = WarmupSFTConfig(str(tmp_path), max_steps=1, bf16=False, report_to="none", warmup_format=warmup_format)
    with pytest.raises(ValueError, match=sentence):
        list(WarmupSFTTrainer(thinking_folder, config, train_dataset=stream, peft_config=lora).train_dataset)


def test_a_prompt_keeps_more_than_its_opening(thinking_folder, tmp_path, lora):
    """Its opening is learnt after the token before it."""
    settings = {"truncation_mode": "keep_end", "learn_separator": True}
    for max_length, is_refused in ((6, True), (7, False)):  # `<think>`, a line break, three letters and an end
        rows = [{"prompt": [user("Q: one")], "completion": [assistant("ONE")]}]
        settings["max_length"] = max_length
        if is_refused:
            with pytest.raises(ValueError, match=r"^max_length=6 leaves nothing of the prompt in 1 of 1 rows"):
                trainer_of(thinking_folder, tmp_path, rows, lora, **settings)
        else:
            trainer_of(thinking_folder, tmp_path, rows, lora, **settings).train()


def test_assistant_only_loss_is_another_target(thinking_folder, tmp_path, lora):
    with pytest.raises(ValueError, match=r"^assistant_only_loss cannot work in the thinking format"):
        trainer_of(thinking_folder, tmp_path, MESSAGES, lora, assistant_only_loss=True)


def test_a_number_is_no_message(thinking_folder, tmp_path, lora):
    rows = [{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": 2}]}]
    with pytest.raises(ValueError, match=r"^Row 1 of the train dataset has a message whose content is 1, which is no"):
        trainer_of(thinking_folder, tmp_path, rows, lora)


def test_two_messages_are_no_completion(thinking_folder, tmp_path, lora):
    row = {"prompt": [user("one")], "completion": [assistant("A"), assistant("B")]}
    with pytest.raises(ValueError, match=r"^Row 4 of the train dataset has 2 messages in its answer"):
        trainer_of(thinking_folder, tmp_path, [*ROWS, row], lora)


def test_thinking_needs_conversations_and_a_template_that_thinks(
    thinking_folder, model_folder, tokenizer, tmp_path, lora
):
    with pytest.raises(ValueError, match=r"^warmup_format=thinking needs conversations"):
        trainer_of(thinking_folder, tmp_path, EXAMPLES, lora, warmup_format="thinking")
    with pytest.raises(ValueError, match=r"^The tokenizer has no chat template, so messages cannot be read"):
        trainer_of(model_folder, tmp_path, ROWS, lora)


def test_thinking_that_a_row_switches_off(thinking_folder, tmp_path, lora, caplog):
    rows = [{**row, "chat_template_kwargs": {"enable_thinking": i < 2}} for i, row in enumerate(ROWS)]
    with pytest.raises(ValueError, match=r"^Row 3 of the train dataset switches its thought off \({'enable_thinking'"):
        trainer_of(thinking_folder, tmp_path, rows, lora)
    with pytest.raises(
        ValueError, match=r"^Row 3 of the train dataset thinks \({'enable_thinking': True}\), and the f"
    ):
        trainer_of(thinking_folder, tmp_path, [rows[2], rows[2], rows[0]], lora)
    off = [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in ROWS]
    assert trainer_of(thinking_folder, tmp_path, off, lora).args.warmup_format == "plain"
    assert "The rows switch thinking off (chat_template_kwargs), so warmups are plain text" in caplog.text
    with pytest.raises(ValueError, match=r"thinking switched off \(enable_thinking\), so warmup_format=thinking"):
        trainer_of(thinking_folder, tmp_path, off, lora, warmup_format="thinking")


def test_a_separator_of_the_data_cannot_be_learnt(model_folder, tokenizer, tmp_path, lora):
    rows = [*EXAMPLES, {"prompt": "a | b", "completion": " c"}, {"prompt": "d", "completion": " e | f | g"}]
    sentence = r"^The separator ' \| ' stands in 1 targets and 1 prompts of the 6 rows of the train dataset"
    with pytest.raises(ValueError, match=sentence):
        make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora, learn_separator=True)
    make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora)


def test_a_separator_of_messages_cannot_be_learnt(thinking_folder, tmp_path, lora):
    rows = [*MESSAGES, {"messages": [user("d"), assistant("e || f")]}]
    with pytest.raises(ValueError, match=r"^The separator ' \|\| ' stands in 1 targets and 0 prompts of the 4 rows"):
        trainer_of(thinking_folder, tmp_path, rows, lora, warmup_format="plain", learn_separator=True)


# ---- Thoughts of the data ----


def test_a_rows_own_thought_is_its_first_warmup(thinking_folder, tmp_path, lora, caplog):
    """In training only, ended as the model would end it; rows without one, or with too long a one, sample all."""
    thoughts = ["hm", "", "much too long"]
    rows = [
        {"messages": [*row["prompt"], {**row["completion"][0], "reasoning_content": thought}]}
        for row, thought in zip(ROWS, thoughts)
    ]
    trainer = trainer_of(thinking_folder, tmp_path, rows, lora, warmup_from_data=True, max_warmup_length=6)
    assert "2 of 3 rows have a thought, and 1 of them are longer than max_warmup_length=6" in caplog.text
    tokenizer, closing = trainer.processing_class, trainer.sampling.closing_id
    sampled = record_warmups(trainer)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    firsts = {tokenizer.decode(prompt): samples[0] for prompt, samples in sampled}
    own = firsts[PROMPT.format("one") + "<think>\n"]
    assert (tokenizer.decode(own.ids), own.decided) == ("hm\n", [*own.ids, closing])
    assert all(first.ids != own.ids for prompt, first in firsts.items() if "one" not in prompt)
    sampled.clear()
    trainer.evaluate(trainer.train_dataset)
    assert all(samples[0].ids != own.ids for _, samples in sampled)


def test_a_thought_belongs_to_its_target(thinking_folder, tmp_path, lora, caplog):
    """Rows that share their prompt share their thoughts only if they share their target."""
    given = [("one", "A", "hm"), ("one", "B", "so"), ("two", "A", "hm"), ("two", "A", "so"), ("x", "A", "ah")]
    rows = [{"messages": [user(question), assistant(answer, reasoning_content=thought)]}
            for question, answer, thought in given]  # fmt: skip
    trainer = trainer_of(thinking_folder, tmp_path, rows, lora, warmup_from_data=True)
    assert "2 thoughts are not used, since rows with the same prompt have other targets" in caplog.text
    known = [trainer.processing_class.decode(ids) for ids in trainer._data_warmups._ids.values()]
    assert known == ["so\n", "ah\n"]


def test_thoughts_of_the_data_need_the_thinking_format(thinking_folder, model_folder, tokenizer, tmp_path, lora):
    with pytest.raises(ValueError, match=r"^warmup_from_data takes the thoughts of conversations"):
        make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_from_data=True)
    with pytest.raises(ValueError, match=r"^warmup_from_data=True cannot work. warmup_source base"):
        trainer_of(thinking_folder, tmp_path, ROWS, lora, warmup_from_data=True, warmup_source="base")
