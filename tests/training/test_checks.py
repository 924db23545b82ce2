"""Refusals before long work: each names the trouble and the fix, and none waits until a model is loaded."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from conftest import EXAMPLES, tiny_config
from datasets import Dataset, IterableDataset
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import LlamaForCausalLM, ProcessorMixin, T5Config
from trl import SFTConfig, SFTTrainer

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.method.model import keep_initial_weights
from warmup_peft.training.checks import (
    adapter_configs,
    check_adapters,
    check_columns,
    check_context,
    check_one_device,
    check_parallelism,
    check_sharding,
    check_spans,
    check_trainer_arguments,
    checked_stream,
)


class ModelWasLoaded(Exception):
    pass


@pytest.fixture
def no_model(monkeypatch):
    """Trainers that get as far as loading the model say so."""

    def loading(*_, **__):
        raise ModelWasLoaded

    monkeypatch.setattr("trl.trainer.sft_trainer.create_model_from_path", loading)


@pytest.fixture
def build(no_model, model_folder, tokenizer, lora, tmp_path):
    """A trainer's call that works but for the changes."""

    def call(settings=None, **changes):
        args = WarmupSFTConfig(str(tmp_path / "run"), bf16=False, report_to="none", **(settings or {}))
        defaults = dict(
            model=model_folder,
            args=args,
            train_dataset=Dataset.from_list(EXAMPLES),
            processing_class=tokenizer,
            peft_config=lora,
        )
        return WarmupSFTTrainer(**{**defaults, **changes})

    return call


def settings(**changes) -> SimpleNamespace:
    defaults = dict(
        assistant_only_loss=False,
        warmup_anchor=0.0,
        warmup_source="policy",
        deepspeed_plugin=None,
        fsdp=None,
        fsdp_plugin_args=None,
        use_cpu=False,
        num_beams=1,
        eval_generate=0,
        use_vllm=False,
        parallelism_config=None,
        model_init_kwargs=None,
        trust_remote_code=False,
    )
    return SimpleNamespace(**{**defaults, **changes})


def test_a_good_call_gets_as_far_as_the_model(build):
    with pytest.raises(ModelWasLoaded):
        build()


# ---- Hooks and processors ----


@pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"])
def test_hooks_on_logits_are_refused(build, name):
    with pytest.raises(ValueError, match=f"^{name} works on the logits.*Leave {name} out"):
        build(**{name: lambda *_: None})


def test_vision_language_processor_is_refused(build):
    with pytest.raises(ValueError, match="Vision-language models are not supported"):
        build(processing_class=object.__new__(ProcessorMixin))


def test_checks_can_be_called_without_a_trainer(model_folder, examples, lora):
    good = {"model": model_folder, "train_dataset": examples, "peft_config": lora}
    check_trainer_arguments(good, settings())
    with pytest.raises(ValueError, match=r"^compute_metrics works on the logits"):
        check_trainer_arguments({**good, "compute_metrics": len}, settings())
    with pytest.raises(ValueError, match=r"^The validation dataset is empty"):
        check_trainer_arguments({**good, "eval_dataset": {"validation": Dataset.from_list([])}}, settings())


def test_unknown_separator_is_refused_before_the_model(build, tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__call__", lambda *_, **__: {"input_ids": []})
    with pytest.raises(ValueError, match=r"^warmup_separator=' \|\| ' cannot be written by this tokenizer"):
        build()


# ---- Columns ----

WITHOUT_BOUNDARY = [
    [{"text": "Q: one? A"}],
    [{"prompt": "Q: one?", "answer": "A"}],
    [{"input_ids": [3, 4, 5]}],
]


@pytest.mark.parametrize("rows", WITHOUT_BOUNDARY, ids=lambda rows: "+".join(rows[0]))
def test_data_must_show_where_the_prompt_ends(build, rows):
    columns = ", ".join(sorted(rows[0]))
    expected = re.escape(f"The train dataset (columns {columns}) does not show where the prompt ends")
    with pytest.raises(ValueError, match=f"^{expected}.*`prompt` and `completion`"):
        build(train_dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match=f"^{expected.replace('train', 'eval', 1)}"):
        build(eval_dataset=Dataset.from_list(rows))
    with pytest.raises(ValueError, match=f"^{expected.replace('train', 'short', 1)}"):
        build(eval_dataset={"short": Dataset.from_list(rows)})


@pytest.mark.parametrize(
    ("row", "assistant_only_loss"),
    [
        ({"prompt": "one?", "completion": "A"}, False),
        (
            {"prompt": [{"role": "user", "content": "one?"}], "completion": [{"role": "assistant", "content": "A"}]},
            False,
        ),
        ({"input_ids": [3, 4], "labels": [-100, 4]}, False),
        ({"input_ids": [3, 4], "completion_mask": [0, 1]}, False),
        ({"input_ids": [3, 4], "assistant_masks": [0, 1]}, False),
        ({"messages": [{"role": "user", "content": "one?"}]}, True),
    ],
)
def test_data_that_shows_the_boundary_passes(row, assistant_only_loss):
    args = settings(assistant_only_loss=assistant_only_loss)
    check_columns("train", Dataset.from_list([row]), args)
    check_columns("train", IterableDataset.from_generator(lambda: iter([row])), args)


def test_a_transform_gets_trls_own_words(model_folder, tokenizer, lora, tmp_path):
    """As TRL's own test has it: the columns that the rows show are those of the transform."""
    rows = Dataset.from_list(EXAMPLES).with_transform(
        lambda batch: {"input_ids": [[1, 2, 3] for _ in batch["prompt"]]}
    )
    said = {}
    for trainer_class, settings_class in ((SFTTrainer, SFTConfig), (WarmupSFTTrainer, WarmupSFTConfig)):
        args = settings_class(str(tmp_path), bf16=False, report_to="none")
        with pytest.raises(ValueError, match="with_transform") as refusal:
            trainer_class(model_folder, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
        said[trainer_class] = str(refusal.value)
    assert said[WarmupSFTTrainer] == said[SFTTrainer]
    with pytest.raises(ValueError, match="with_transform"):
        WarmupSFTTrainer(
            model_folder, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=lora,
            formatting_func=lambda row: {"prompt": row["prompt"], "completion": row["completion"]},
        )  # fmt: skip


def test_a_transform_that_returns_prepared_rows_trains(model_folder, tokenizer, lora, tmp_path):
    def prepared(batch):
        return {
            "input_ids": [[40, 41, 42] for _ in batch["prompt"]],
            "labels": [[-100, -100, 42] for _ in batch["prompt"]],
        }

    args = WarmupSFTConfig(
        str(tmp_path), bf16=False, report_to="none", max_steps=1, gradient_checkpointing=False, max_warmup_length=2,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
    )  # fmt: skip
    rows = Dataset.from_list(EXAMPLES).with_transform(prepared)
    trainer = WarmupSFTTrainer(
        model_folder, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=lora
    )
    assert trainer.train().global_step == 1


def test_empty_data_is_refused(build):
    empty = Dataset.from_list([])
    with pytest.raises(ValueError, match=r"^The train dataset is empty. Give it at least one row"):
        build(train_dataset=empty)
    with pytest.raises(ValueError, match=r"^The eval dataset is empty"):
        build(eval_dataset=empty)


@pytest.mark.parametrize("column", ["image", "images"])
def test_images_are_refused(build, column):
    with pytest.raises(ValueError, match=r"^The train dataset holds images.*text-only"):
        build(train_dataset=Dataset.from_list([{"prompt": "one?", "completion": "A", column: "x.png"}]))


def test_formatting_func_may_return_prompt_and_completion(build):
    rows = Dataset.from_list([{"question": "one?", "answer": " A"}])
    with pytest.raises(ModelWasLoaded):
        build(
            train_dataset=rows,
            formatting_func=lambda row: {"prompt": row["question"], "completion": row["answer"]},
        )
    with pytest.raises(ValueError, match=r"formatting_func returns text.*Let it return"):
        build(train_dataset=rows, formatting_func=lambda row: row["question"] + row["answer"])


# ---- Adapter ----


@pytest.mark.parametrize(
    "peft_config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", alora_invocation_tokens=[5]),
    ],
    ids=["prompt tuning", "prefix tuning", "alora"],
)
def test_adapters_that_depend_on_positions_are_refused(build, peft_config):
    with pytest.raises(ValueError, match=f"^{type(peft_config).__name__} depends on where tokens stand.*plain LoRA"):
        build(peft_config=peft_config)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"], r"lm_head|.*\.q_proj", "lm_head"])
def test_adapter_on_lm_head_is_refused(build, targets):
    with pytest.raises(ValueError, match=r"adapter on `lm_head` is not supported.*Remove 'lm_head'"):
        build(peft_config=LoraConfig(target_modules=targets))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.q_proj", None])
def test_other_targets_pass(model_folder, targets):
    check_adapters([LoraConfig(target_modules=targets)], settings())


def test_anchor_without_adapter_is_refused(build, lora):
    with pytest.raises(ValueError, match=r"^warmup_anchor=0.3 .* has no adapter. Pass a peft_config"):
        build(settings={"warmup_anchor": 0.3}, peft_config=None)
    with pytest.raises(ModelWasLoaded):
        build(settings={"warmup_anchor": 0.3})
    with pytest.raises(ModelWasLoaded):
        build(settings={"warmup_anchor": 0.0}, peft_config=None)


def test_a_peft_models_own_adapter_counts(lora):
    model = get_peft_model(LlamaForCausalLM(tiny_config()), lora)
    check_adapters(adapter_configs(model, None), settings(warmup_anchor=0.3))
    prompt_tuned = get_peft_model(
        LlamaForCausalLM(tiny_config()), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    with pytest.raises(ValueError, match=r"^PromptTuningConfig depends"):
        check_adapters(adapter_configs(prompt_tuned, None), settings())


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "lora_ga"])
def test_adapters_that_do_not_fit_their_base_once_saved_are_refused(build, start):
    with pytest.raises(
        ValueError, match=f"^init_lora_weights='{start}' changes the base by what peft cannot compute again"
    ):
        build(peft_config=LoraConfig(task_type="CAUSAL_LM", init_lora_weights=start))


# ---- Several GPUs ----


@pytest.mark.parametrize(
    ("n_gpu", "model", "is_refused"),
    [
        (2, SimpleNamespace(), True),
        (2, SimpleNamespace(hf_device_map={"": 0}), True),
        (2, SimpleNamespace(hf_device_map={"model.embed_tokens": 0, "lm_head": 1}), False),
        (2, "a/name", False),  # TRL spreads it
        (1, SimpleNamespace(), False),
    ],
)
def test_copies_of_the_model_are_refused(n_gpu, model, is_refused):
    args = SimpleNamespace(n_gpu=n_gpu)
    if not is_refused:
        check_one_device(model, args)
        return
    with pytest.raises(ValueError, match=r"^One process sees 2 GPUs, .*CUDA_VISIBLE_DEVICES=0, .*accelerate launch"):
        check_one_device(model, args)


# ---- Model ----


def test_an_adapter_as_the_model_is_refused(build, lora, tmp_path):
    get_peft_model(LlamaForCausalLM(tiny_config()), lora).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"^The base model .*adapter is an adapter itself\. Merge it first"):
        build(model=str(tmp_path / "adapter"))


def test_encoder_decoder_is_refused(build, tmp_path):
    T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"^t5 is an encoder-decoder model.*Choose a causal language model"):
        build(model=str(tmp_path / "t5"))


# ---- Parallelism ----

FSDP2 = {"fsdp": True, "fsdp_plugin_args": {"fsdp_version": 2}}


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "Use FSDP2"),
        ({"fsdp": True, "fsdp_plugin_args": {"fsdp_version": 1}}, "Set fsdp_version to 2"),
        ({**FSDP2, "use_cpu": True}, "^accelerate shards no weights on a CPU.* Set use_cpu to false"),
        ({**FSDP2, "num_beams": 2}, "^num_beams does not work with FSDP.* Set num_beams to 1"),
        ({**FSDP2, "eval_generate": 3}, "Set eval_generate to 0"),
        ({**FSDP2, "use_vllm": True}, "Set use_vllm to false"),
        ({"parallelism_config": SimpleNamespace(cp_enabled=True, sp_enabled=False)}, "Set cp_size and sp_size to 1"),
        ({"parallelism_config": SimpleNamespace(cp_enabled=False, sp_enabled=True)}, "Set cp_size and sp_size to 1"),
    ],
)
def test_sharded_weights_and_cut_rows_are_refused(changes, fix):
    with pytest.raises(ValueError, match=fix):
        check_parallelism(settings(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        FSDP2,
        {"deepspeed_plugin": SimpleNamespace(zero_stage=2)},
        {"parallelism_config": SimpleNamespace(cp_enabled=False, sp_enabled=False)},
    ],
)
def test_other_parallelism_passes(changes):
    check_parallelism(settings(**changes))


def test_the_launcher_may_ask_for_fsdp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="Set fsdp_version to 2"):
        check_parallelism(settings())
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_parallelism(settings())


def test_what_sharded_weights_do_not_allow(longrope, model_folder, lora):
    with pytest.raises(ValueError, match=r"^phi3 turns positions by the length of the row.* Use DDP"):
        check_sharding(longrope)
    model = get_peft_model(LlamaForCausalLM(tiny_config()), lora)
    check_sharding(model)
    keep_initial_weights(model)
    with pytest.raises(ValueError, match=r"^This adapter changes its base.* take plain LoRA"):
        check_sharding(model)


# ---- Prepared rows ----


def test_spans():
    good = [[-100, 5], [-100, -100, 5, 6]]
    check_spans("train", Dataset.from_dict({"labels": good}))
    with pytest.raises(ValueError, match=r"^Row 3 of the train dataset has no prompt.*non-empty prompt"):
        check_spans("train", Dataset.from_dict({"labels": [*good, [5, 6]]}))
    with pytest.raises(
        ValueError, match=r"^Row 3 of the eval dataset has 2 supervised spans.*one row for each answer"
    ):
        check_spans("eval", Dataset.from_dict({"labels": [*good, [-100, 5, -100, 6]]}))


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([7, 8], r"^Row 2 of the train stream has no prompt before its target"),
        ([-100, 7, -100, 8], r"^Row 2 of the train stream has 2 supervised spans"),
        ([-100, -100], r"^Row 2 of the train stream has no target"),
        ([-100] * 9 + [7], r"^Row 2 of the train stream has 10 tokens; .* \(3\) .* context of 12\. Set max_length"),
    ],
)
def test_rows_of_a_stream_are_checked_when_they_come(labels, why):
    rows = [{"input_ids": each, "labels": each} for each in ([-100, -100, 7], labels)]
    stream = iter(checked_stream("train", IterableDataset.from_generator(lambda: iter(rows)), 12, 3))
    assert next(stream)["labels"] == [-100, -100, 7]
    with pytest.raises(ValueError, match=why):
        next(stream)


def test_the_longest_row_and_its_warmup_must_fit_the_context():
    rows = Dataset.from_dict({"input_ids": [[5] * 3, [5] * 10, [5] * 4]})
    check_context("train", rows, context=16, extra_tokens=6)
    check_context("train", rows, context=None, extra_tokens=1000)
    with pytest.raises(
        ValueError,
        match=r"^Row 2 of the train dataset has 10 tokens.*\(6\).*15, as it is for 1 of 3 rows\. Set max_length to 9 ",
    ):
        check_context("train", rows, context=15, extra_tokens=6)


def trained_on(rows, model_folder, tokenizer, tmp_path, **settings):
    args = WarmupSFTConfig(str(tmp_path / "run"), bf16=False, report_to="none", **settings)
    return WarmupSFTTrainer(model_folder, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def test_a_row_without_a_prompt_is_refused(model_folder, tokenizer, tmp_path):
    rows = [*EXAMPLES, {"prompt": "", "completion": "alone"}]
    with pytest.raises(ValueError, match=f"^Row {len(EXAMPLES) + 1} of the train dataset has no prompt"):
        trained_on(rows, model_folder, tokenizer, tmp_path)


def test_a_row_that_leaves_no_room_for_its_warmup_is_refused(model_folder, tokenizer, tmp_path):
    rows = [*EXAMPLES, {"prompt": "x" * 500, "completion": "y" * 8}]
    with pytest.raises(
        ValueError, match=r"has 509 tokens.*\(12\).*context of 512, as it is for 1 of 5 rows. Set max_length to 500"
    ):
        trained_on(rows, model_folder, tokenizer, tmp_path, max_length=None)
    trained_on(rows, model_folder, tokenizer, tmp_path, max_length=500)


def test_prompts_that_all_fill_max_length_are_refused(model_folder, tokenizer, tmp_path):
    rows = [{"prompt": "x" * 20, "completion": "yy"}, {"prompt": "x" * 30, "completion": "y"}]
    with pytest.raises(ValueError, match=r"all 2 prompts fill max_length=20 .*shortest row has 23.*higher"):
        trained_on(rows, model_folder, tokenizer, tmp_path, max_length=20)
