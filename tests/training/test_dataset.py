"""What a trainer is given, made into what it needs: rows, prompts, settings and fingerprints."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import EXAMPLES
from datasets import Dataset, IterableDataset, load_dataset
from peft import get_peft_model
from trainers import make_trainer, randomise_adapter, record_warmups
from transformers import (
    AutoModelForCausalLM,
)
from trl import SFTConfig

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.training.dataset import (
    base_fingerprint,
    checksums,
    own_settings,
    prompts_of,
    record_of_rows,
    tokenizer_fingerprint,
)


def test_a_prompt_ends_at_the_first_supervised_label():
    rows = Dataset.from_dict(
        {"input_ids": [[5, 6, 7], [8, 9]], "labels": [[-100, -100, 7], [-100, 9]], "more": [1, 2]}
    )
    assert [ids.tolist() for ids in prompts_of(rows)] == [[5, 6], [8]]


@pytest.fixture
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def test_the_base_is_known_by_its_weights_whatever_the_adapter(model, lora):
    before = base_fingerprint(model)
    adapted = get_peft_model(model, lora)
    assert base_fingerprint(adapted) == before
    randomise_adapter(adapted)
    assert base_fingerprint(adapted) == before


def test_other_adapters_do_not_matter(model, lora):
    before = base_fingerprint(model)
    adapted = get_peft_model(model, lora)
    adapted.add_adapter("second", lora)
    assert base_fingerprint(adapted) == before
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    assert base_fingerprint(adapted) == before


def test_the_scales_of_4_bit_weights_matter(model_folder, nf4):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, quantization_config=nf4)
    before = base_fingerprint(model)
    model.model.layers[0].mlp.up_proj.weight.quant_state.absmax += 1
    assert base_fingerprint(model) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.model.norm.weight.data.add_(1e-3),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.model.embed_tokens.weight.data[300:].mul_(2),
        lambda m: m.config.rope_parameters.update(rope_theta=5.0),
    ],
)
def test_other_weights_are_another_base(model, change):
    before = base_fingerprint(model)
    with torch.no_grad():
        change(model)
    assert base_fingerprint(model) != before


def swap(weight):
    weight[3:5] = weight[3:5].flip(0).clone()


@pytest.mark.parametrize(
    "change",
    [lambda weight: weight[1].add_(1e-3), lambda weight: weight[-2].add_(1e-3), lambda weight: weight[7].neg_(), swap],
    ids=["second value", "last but one", "sign", "two swapped"],
)
@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_every_value_matters(model, name, change):
    before = base_fingerprint(model)
    weight = model.get_parameter(name).data.view(-1)
    weight.copy_(torch.arange(1, len(weight) + 1))
    known = base_fingerprint(model)
    change(weight)
    assert len({before, known, base_fingerprint(model)}) == 3


def test_weights_in_buffers_matter_and_what_is_not_saved_does_not(model):
    """GPTQ and AWQ keep their weights in buffers."""
    model.model.register_buffer("qweight", torch.arange(6, dtype=torch.int32))
    before = base_fingerprint(model)
    model.model.rotary_emb.inv_freq.add_(1)
    assert base_fingerprint(model) == before
    model.model.qweight[3] = 7
    assert base_fingerprint(model) != before


def test_checksums_do_not_depend_on_how_a_tensor_lies_in_memory():
    values = torch.randn(1000, 37)
    assert checksums(values.T.contiguous().T) == checksums(values)
    assert checksums(values[:0]) == [0]
    assert checksums(torch.tensor(1.0)) != checksums(torch.tensor(2.0))


def test_other_tokens_are_another_tokenizer(model_folder, tokenizer):
    same = type(tokenizer).from_pretrained(model_folder)
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tokenizer)
    same.add_tokens(["<new>"])
    assert tokenizer_fingerprint(same) != tokenizer_fingerprint(tokenizer)


def test_a_formatting_function_may_return_prompt_and_completion(model_folder, tokenizer, lora, tmp_path):
    rows = Dataset.from_list([{"question": row["prompt"], "answer": row["completion"]} for row in EXAMPLES])
    trainer = WarmupSFTTrainer(
        model_folder,
        WarmupSFTConfig(str(tmp_path), bf16=False, report_to="none"),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora,
        formatting_func=lambda row: {"prompt": row["question"], "completion": row["answer"]},
    )
    assert trainer.train_dataset[0]["labels"].count(-100) == len(EXAMPLES[0]["prompt"])


def test_a_formatting_function_takes_a_stream_without_features(model_folder, tokenizer, lora, tmp_path):
    rows = [{"question": row["prompt"], "answer": row["completion"]} for row in EXAMPLES]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None
    trainer = WarmupSFTTrainer(
        model_folder,
        WarmupSFTConfig(str(tmp_path), bf16=False, report_to="none", max_steps=1, gradient_checkpointing=False),
        train_dataset=stream,
        processing_class=tokenizer,
        peft_config=lora,
        formatting_func=lambda row: {"prompt": row["question"], "completion": row["answer"]},
    )
    first = next(iter(trainer.train_dataset))
    assert first["labels"].count(-100) == len(EXAMPLES[0]["prompt"])
    assert "question" not in first
    assert trainer.train().global_step == 1


def test_conversations_work_as_in_trl(model_folder, tokenizer, lora, tmp_path):
    tokenizer = tokenizer.__class__.from_pretrained(model_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in EXAMPLES
    ]
    trainer = make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora)
    labels = trainer.train_dataset[0]["labels"]
    assert tokenizer.decode([label for label in labels if label != -100]) == " A<|eos|>"
    sampled = record_warmups(trainer)
    trainer.train()
    assert {tokenizer.decode(ids) for ids, _ in sampled} == {f"u:{row['prompt']}<|eos|>a:" for row in EXAMPLES}


def test_rows_that_max_length_cuts_are_counted(model_folder, tokenizer, lora, tmp_path, caplog):
    """Prompts of 7, 24, 1 and 22 bytes at 8 tokens: two rows have no target left, and " A" loses its end token."""
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_length=8)
    assert len(trainer.train_dataset) == 2
    assert "of 4 rows of the train dataset 2 are dropped (no target left) and 1 lose the end" in caplog.text
    with pytest.raises(ValueError, match=r"No row of the train dataset is left.*shortest row has 6"):
        make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_length=1)


def test_keep_end_is_reported_as_cutting_the_prompt(model_folder, tokenizer, lora, tmp_path, caplog):
    """Rows of 10, 33, 6 and 28 bytes at 12 tokens; the second target has 9, so 3 tokens of its prompt are left."""
    settings = {"peft_config": lora, "truncation_mode": "keep_end"}
    trainer = make_trainer(model_folder, tmp_path, tokenizer, max_length=12, **settings)
    kept = trainer.train_dataset[1]
    assert tokenizer.decode(kept["input_ids"]) == "wo? no, two<|eos|>"
    assert kept["labels"].count(-100) == 3
    said = "of 4 rows of the train dataset 0 are dropped (no target left) and 2 lose the beginning of their prompt"
    assert said in caplog.text
    with pytest.raises(ValueError, match=r"^max_length=9 leaves nothing of the prompt in 1 of 4 rows.*Set max_length"):
        make_trainer(model_folder, tmp_path, tokenizer, max_length=9, **settings)


@pytest.mark.parametrize("is_stream", [False, True])
def test_tokenized_rows_with_a_completion_mask_train_on_the_completion(
    model_folder, tokenizer, lora, tmp_path, is_stream
):
    rows = Dataset.from_list([{"input_ids": [40, 41, 42, 43], "completion_mask": [0, 0, 1, 1]}] * 4)
    trainer = WarmupSFTTrainer(
        model_folder,
        WarmupSFTConfig(str(tmp_path), bf16=False, report_to="none", max_steps=1),
        train_dataset=rows.to_iterable_dataset() if is_stream else rows,
        processing_class=tokenizer,
        peft_config=lora,
    )
    assert next(iter(trainer.train_dataset))["labels"] == [-100, -100, 42, 43]


def test_a_setting_that_was_changed_later_is_checked_and_understood(model_folder, tokenizer, lora, tmp_path):
    args = WarmupSFTConfig(str(tmp_path), bf16=False, report_to="none")
    args.prefix_sharing = "false"
    assert own_settings(args, []).prefix_sharing == "never"
    args.num_warmups = 0
    with pytest.raises(ValueError, match="num_warmups=0 cannot work"):
        own_settings(args, [])


def test_the_anchor_is_on_where_there_is_something_to_switch_off(model_folder, tokenizer, lora, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    for kind, peft_config, source, beta in (
        (model_folder, lora, "policy", 0.3),
        (model, None, "policy", 0.0),
        (model, None, "base", 0.3),
    ):
        trainer = make_trainer(
            kind, tmp_path, tokenizer, peft_config=peft_config, warmup_source=source, warmup_anchor=None
        )
        assert trainer.args.warmup_anchor == beta


@pytest.mark.parametrize("streamed_first", [False, True])
def test_a_config_is_not_changed_by_its_trainer(model_folder, tokenizer, lora, tmp_path, streamed_first):
    """Used for two trainers, it trains the second as if the first had not been there."""
    args = WarmupSFTConfig(
        str(tmp_path / "run"), bf16=False, report_to="none", max_steps=1, model_init_kwargs={"dtype": "float32"}
    )
    before = copy.deepcopy(vars(args))
    rows = Dataset.from_list(EXAMPLES)
    first = rows.to_iterable_dataset() if streamed_first else rows
    trainer = WarmupSFTTrainer(model_folder, args, train_dataset=first, processing_class=tokenizer, peft_config=lora)
    assert trainer.args.warmup_anchor == 0.3
    assert vars(args).keys() == before.keys()
    assert {k for k in before if str(vars(args)[k]) != str(before[k])} == set()
    assert trainer.model.peft_config["default"] is not lora  # TRL writes into it where a chat template adds tokens
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    second = WarmupSFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    assert second.args.warmup_anchor == 0.0  # the whole model is trained on its own samples: the paper


def test_a_plain_sftconfig_is_taken(model_folder, tokenizer, lora, tmp_path, examples):
    args = SFTConfig(str(tmp_path), bf16=False, report_to="none", learning_rate=3e-4)
    trainer = WarmupSFTTrainer(model_folder, args, None, examples, processing_class=tokenizer, peft_config=lora)
    assert trainer.args.learning_rate == 3e-4
    assert trainer.args.num_warmups == 4


def test_fresh_evaluation_rows_are_formatted_too(model_folder, tokenizer, lora, tmp_path, examples):
    trainer = WarmupSFTTrainer(
        model_folder,
        WarmupSFTConfig(str(tmp_path), bf16=False, report_to="none", disable_tqdm=True, eval_strategy="steps"),
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=tokenizer,
        peft_config=lora,
        formatting_func=lambda row: {"prompt": f"<<{row['prompt']}>>", "completion": row["completion"]},
    )
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate(examples)["eval_loss"]


def test_what_a_dataset_says_about_itself(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Q", "completion": " A"}\n' * 3)
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    found = record_of_rows(rows)
    assert found == {"source": "a json file, split train", "train_rows": 3, "fingerprint": rows._fingerprint}
    assert str(tmp_path) not in str(found)
    rows.info.download_checksums = {"hf://datasets/me/mine@0a1b/train.parquet": {}}
    assert record_of_rows(rows)["source"] == "me/mine, split train"
    assert record_of_rows(Dataset.from_list([{"prompt": "Q"}]))["source"] == "rows of a script"
    assert record_of_rows(rows.to_iterable_dataset()) == {}
