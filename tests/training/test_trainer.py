"""The trainer against a plain loop written from the equations: losses and gradients, in float32."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES, TINY_SIZES
from datasets import Dataset, IterableDataset
from folders import puzzles, relative_difference, write_rows
from peft import LoraConfig
from trainers import make_trainer, randomise_adapter, record_warmups
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from trl import SFTConfig, SFTTrainer

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer, merge_adapter, warmup_generate
from warmup_peft.cli.main import main
from warmup_peft.inference.folder import TrainingRecord, WarmupConfig
from warmup_peft.inference.loading import load_folder
from warmup_peft.method.branches import Tokens, split_examples
from warmup_peft.method.prefix import SharedPrefix
from warmup_peft.method.scoring import PlainRows


def others(values, i):
    return [value for j, value in enumerate(values) if j != i]


def mean(values):
    return sum(values) / len(values)


def plain_credit(objective, rewards, penalties, ratios, gains):
    """Weights and advantages of one example, number by number, from the table of `objective.py`."""
    count = len(rewards)
    share = [math.exp(r + x) for r, x in zip(rewards, ratios)]
    share = [x / sum(share) for x in share]
    p = [math.exp(r) for r in rewards]
    if objective == "latro":
        rewards = [r - penalty for r, penalty in zip(rewards, penalties)]
    lead = [(r - mean(others(rewards, i))) / count if count > 1 else 0.0 for i, r in enumerate(rewards)]
    return {
        "warmup": lambda: ([1 / count] * count, [0.0] * count),
        "jensen": lambda: ([1 / count] * count, lead),
        "latro": lambda: ([1 / count] * count, lead),
        "log_mean_exp": lambda: (share, [math.log(mean(p) / mean(others(p, i))) for i in range(count)]),
        "verifree": lambda: ([x / count for x in p], [(x - mean(others(p, i))) / count for i, x in enumerate(p)]),
        "posterior": lambda: (share, share),
        "rlpr": lambda: ([1 / count] * count, [min(max(gain, 0.0), 1.0) / count for gain in gains]),
    }[objective]()


def plain_value(objective, rewards, ratios):
    if objective == "verifree":
        return mean([math.exp(r) for r in rewards])
    if objective in ("log_mean_exp", "posterior"):
        return math.log(mean([math.exp(r + x) for r, x in zip(rewards, ratios)]))
    return mean(rewards)


def plain_loss(model, drawn, targets, separator_ids, args):
    """Nats per target token: one unpadded row at a time, straight from the equations of `objective.py`.

    Returns:
        A tensor with the right gradient, and the right value.
    """
    beta, from_base = args.warmup_anchor, args.warmup_source == "base"
    surrogate, value, num_targets = 0.0, 0.0, 0
    for (prompt_ids, draws), target_ids in zip(drawn, targets):
        num_targets += len(target_ids)

        def target_logps(warmup_ids, prompt_ids=prompt_ids, target_ids=target_ids):
            row = torch.tensor([prompt_ids + warmup_ids + separator_ids + target_ids])
            logp = model(row).logits[0].log_softmax(-1)
            return torch.stack([logp[t - 1, row[0, t]] for t in range(row.size(1) - len(target_ids), row.size(1))])

        rewards, warmup_logps, anchors, gains = [], [], [], []
        with torch.no_grad():
            alone = target_logps([]).exp().mean()
        for draw in draws:
            logps = target_logps(draw.ids)
            rewards.append(logps.sum())
            gains.append((logps.detach().exp().mean() - alone).item())
            row = torch.tensor([prompt_ids + draw.decided])
            law = model(row).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
            warmup_logps.append(sum((law[t, token] for t, token in enumerate(draw.decided)), torch.zeros(())))
            if from_base:
                anchors.append(draw.logp - warmup_logps[-1])
            elif beta:
                with torch.no_grad(), model.disable_adapter():
                    reference = model(row).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
                anchors.append((law.exp() * (law - reference)).sum())
        numbers = [r.item() for r in rewards]
        ratios = [(w.item() - d.logp) if from_base else 0.0 for w, d in zip(warmup_logps, draws)]
        penalties = [beta * a.item() for a in anchors]
        weights, advantages = plain_credit(args.objective, numbers, penalties, ratios, gains)
        if args.normalize_advantages:
            spread = statistics.pstdev(advantages)
            advantages = [(a - mean(advantages)) / (spread + 1e-4) / len(advantages) for a in advantages]
        if args.advantage_clip is not None:
            advantages = [min(max(a, -args.advantage_clip), args.advantage_clip) for a in advantages]
        surrogate = surrogate - sum(w * r + a * p for w, r, a, p in zip(weights, rewards, advantages, warmup_logps))
        value -= plain_value(args.objective, numbers, ratios)
        if beta:
            surrogate, value = surrogate + beta * mean(anchors), value + beta * mean(anchors).item()
    return surrogate / num_targets, value / num_targets


def gradients(model):
    return torch.cat([p.grad.flatten().float() for _, p in sorted(model.named_parameters()) if p.grad is not None])


def targets_of(tokenizer, rows=EXAMPLES):
    return [tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id] for row in rows]


@pytest.mark.parametrize(
    ("num_warmups", "beta", "settings"),
    [
        (3, 0.0, {"prefix_sharing": "true"}),
        (3, 0.0, {"prefix_sharing": "false"}),
        (1, 0.5, {"prefix_sharing": "true"}),
        (1, 0.5, {"prefix_sharing": "false"}),
        (3, 0.5, {"prefix_sharing": "true", "gradient_checkpointing": True}),
        (3, 0.5, {"prefix_sharing": "false", "gradient_checkpointing": True}),
        (3, 0.5, {"temperature": 0.3}),  # some warmups of an example coincide
        (3, 0.0, {"warmup_sampling": "beam", "warmup_num_beams": 4}),
    ],
)
def test_loss_and_gradients_equal_a_plain_loop(model_folder, tokenizer, lora, tmp_path, num_warmups, beta, settings):
    """Ragged prompts and targets, always after a `generate` (that is where the warmups come from)."""
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, num_warmups=num_warmups, warmup_anchor=beta, **settings
    )
    check_against_plain_loop(trainer, tokenizer)


METHODS = [  # every preset, with what it is used with
    {"objective": "warmup", "warmup_anchor": 0.5},
    {"objective": "jensen"},
    {"objective": "log_mean_exp"},
    {"objective": "latro", "warmup_anchor": 0.5},
    {"objective": "verifree"},
    {"objective": "posterior"},
    {"objective": "rlpr"},
    {"objective": "warmup", "warmup_anchor": 0.5, "warmup_source": "base"},
    {"objective": "posterior", "warmup_anchor": 0.5, "warmup_source": "base"},
    {"objective": "posterior", "warmup_source": "base"},
    {"objective": "jensen", "warmup_anchor": 0.5, "warmup_dropout": 0.4},
    {"objective": "warmup", "warmup_anchor": 0.5, "warmup_source": "base", "warmup_dropout": 0.4},
    {"objective": "log_mean_exp", "normalize_advantages": True, "advantage_clip": 0.2},
]
BACKENDS = {
    "shared": {"prefix_sharing": "true"},
    "plain": {"prefix_sharing": "false"},
    "checkpointed": {"prefix_sharing": "true", "gradient_checkpointing": True},
    "4bit": {},
}


def name_of(method):
    return "-".join(f"{value}" for key, value in method.items() if key not in ("prefix_sharing", "warmup_pool_size"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_every_objective_equals_a_plain_loop(model_folder, tokenizer, lora, nf4, tmp_path, method, backend):
    quantization = nf4 if backend == "4bit" else None
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, quantization_config=quantization,
        warmup_pool_size=6, **method, **BACKENDS[backend],
    )  # fmt: skip
    for parameter in trainer.model.parameters():  # TRL makes 4-bit adapters bfloat16; compare in float32
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    check_against_plain_loop(trainer, tokenizer)


def check_against_plain_loop(trainer, tokenizer):
    model = trainer.model
    randomise_adapter(model)
    if trainer.args.warmup_source == "base":
        trainer.draw_warmups()
    drawn = record_warmups(trainer)
    if trainer.args.gradient_checkpointing:  # `Trainer.train` would do it
        model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        assert model.is_gradient_checkpointing
    model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    ours = gradients(model)
    model.zero_grad()

    by_prompt = {
        tuple(tokenizer(row["prompt"])["input_ids"]): target for row, target in zip(EXAMPLES, targets_of(tokenizer))
    }
    targets = [by_prompt[tuple(prompt_ids)] for prompt_ids, _ in drawn]
    separator_ids = tokenizer(trainer.args.warmup_separator)["input_ids"]
    surrogate, value = plain_loss(model, drawn, targets, separator_ids, trainer.args)
    surrogate.backward()
    lengths = [len(draw.ids) for _, draws in drawn for draw in draws]
    assert len(set(lengths)) > 1  # ragged warmups, or the test sees too little
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=1e-9)
    assert relative_difference(ours, gradients(model)) < 1e-4


def make_deterministic(trainer):
    """Beam search without sampling: the same warmups for a prompt, whatever batch it is in."""
    trainer.sampling = dataclasses.replace(
        trainer.sampling, do_sample=False, num_beams=max(2, trainer.args.num_warmups)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"prefix_sharing": "false", "warmup_anchor": 0.5},
        *({"prefix_sharing": "true", "warmup_pool_size": 4, **m} for m in METHODS if "warmup_dropout" not in m),
    ],
    ids=lambda settings: f"{name_of(settings)}-{settings['prefix_sharing']}",
)
def test_accumulating_four_batches_of_one_equals_one_batch_of_four(model_folder, tokenizer, lora, tmp_path, settings):
    """One step of plain gradient descent at a rate of 1 moves the weights by the gradient."""
    moved = []
    for batch_size, steps in ((4, 1), (1, 4)):
        trainer = make_trainer(
            model_folder,
            tmp_path,
            tokenizer,
            peft_config=lora,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            warmup_pool=str(tmp_path / "pool") if "warmup_source" in settings else None,
            **settings,
        )
        randomise_adapter(trainer.model)
        if trainer.args.warmup_source == "policy":
            make_deterministic(trainer)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        after = dict(trainer.model.named_parameters())
        moved.append(torch.cat([(after[name] - before[name]).flatten() for name in sorted(before)]))
    assert moved[0].norm() > 0
    assert relative_difference(moved[1], moved[0]) < 1e-4


def test_loss_and_metrics_are_trls_on_rows_with_the_warmup_written_in(model_folder, tokenizer, lora, tmp_path):
    """K = 1: `SFTTrainer` on rows [prompt | warmup | separator | target] must log the same numbers."""
    ours = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, num_warmups=1, logging_steps=1)
    make_deterministic(ours)
    drawn = record_warmups(ours)
    ours.train()

    target_of = {
        tuple(tokenizer(row["prompt"])["input_ids"]): target for row, target in zip(EXAMPLES, targets_of(tokenizer))
    }
    rows = []
    for prompt_ids, [draw] in drawn:
        context, target = prompt_ids + draw.ids + tokenizer(" | ")["input_ids"], target_of[tuple(prompt_ids)]
        rows.append({"input_ids": context + target, "labels": [-100] * len(context) + target})
    settings = {
        "per_device_train_batch_size": 4,
        "bf16": False,
        "report_to": "none",
        "max_steps": 1,
        "logging_steps": 1,
    }
    theirs = SFTTrainer(
        model_folder,
        SFTConfig(
            str(tmp_path / "sft"), gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", **settings
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    theirs.train()
    ours_log, theirs_log = ours.state.log_history[0], theirs.state.log_history[0]
    for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy"):
        assert ours_log[key] == pytest.approx(theirs_log[key], rel=1e-4), key


def test_tokens_are_counted_as_trl_counts_them(model_folder, tokenizer, lora, tmp_path, examples):
    """Each token of the data once, however many warmups it has."""
    ours = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_steps=2, logging_steps=2)
    ours.train()
    tokens = sum(len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in EXAMPLES)
    assert ours.state.log_history[0]["num_tokens"] == 2 * tokens


def test_evaluation_repeats_itself_and_leaves_training_alone(model_folder, tokenizer, lora, tmp_path, examples):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_anchor=0.5)
    state = torch.get_rng_state()
    first, second = trainer.evaluate(examples), trainer.evaluate(examples)
    assert torch.equal(torch.get_rng_state(), state)
    assert first["eval_loss"] == second["eval_loss"]
    for key in (
        "loss",
        "entropy",
        "mean_token_accuracy",
        "warmups/mean_length",
        "warmups/stopped",
        "warmups/distinct",
    ):
        assert first[f"eval_{key}"] == pytest.approx(first[f"eval_{key}"])
    assert first["eval_warmups/kl"] == pytest.approx(0, abs=1e-6)  # a fresh adapter changes nothing


def encoding_used(trainer):
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    used = []
    encode = trainer._encoder
    trainer._encoder = lambda *args: used.append(encode(*args)) or used[-1]
    trainer.compute_loss(trainer.model, batch)
    return type(used[0])


def test_prompts_are_shared_by_default(model_folder, tokenizer, lora, tmp_path):
    assert encoding_used(make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)) is SharedPrefix


@pytest.mark.parametrize(
    ("settings", "dropout", "reason"),
    [
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, 0.0, "reentrant"),
        ({}, 0.1, "dropout"),
    ],
)
def test_what_cannot_be_shared_falls_back_or_refuses(
    model_folder, tokenizer, tmp_path, caplog, settings, dropout, reason
):
    lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=dropout)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
    assert encoding_used(trainer) is PlainRows
    assert reason in caplog.text
    with pytest.raises(ValueError, match=f"prefix_sharing=always cannot be had: .*{reason}"):
        make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, prefix_sharing="true", **settings)


@pytest.mark.parametrize(("window", "kind"), [(16, PlainRows), (256, SharedPrefix)])
def test_rows_longer_than_a_sliding_window_are_not_shared(tokenizer, lora, tmp_path, window, kind):
    config = MistralConfig(**TINY_SIZES, sliding_window=window)
    trainer = make_trainer(MistralForCausalLM(config), tmp_path, tokenizer, peft_config=lora)
    assert encoding_used(trainer) is kind


def test_everything_sfttrainer_takes_is_taken():
    ours, theirs = (inspect.signature(cls.__init__) for cls in (WarmupSFTTrainer, SFTTrainer))
    assert ours == theirs


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
    drawn = record_warmups(trainer)
    trainer.train()
    assert {tokenizer.decode(ids) for ids, _ in drawn} == {f"u:{row['prompt']}<|eos|>a:" for row in EXAMPLES}


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


def test_rows_beyond_the_context_are_refused(model_folder, tokenizer, lora, tmp_path):
    """The tiny model knows 512 positions; warmup 5 and separator 3 come on top of 505."""
    rows = [*EXAMPLES, {"prompt": "y" * 500, "completion": "four"}]
    with pytest.raises(ValueError, match=r"Row 4 .* 505 tokens; with warmup and separator \(8\).*context of 512"):
        make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora)


def test_a_saved_folder_says_how_to_decode_and_how_it_was_made(model_folder, tokenizer, lora, nf4, tmp_path):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, quantization_config=nf4)
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert json.loads((folder / "warmup_config.json").read_text()) == {
        "warmup_separator": " | ",
        "warmup_separator_ids": tokenizer(" | ")["input_ids"],
        "max_warmup_length": 5,
        "end_token_ids": [1, *range(200, 270)],
    }
    record = json.loads((folder / "warmup_training.json").read_text())
    assert record["base_model"] == model_folder
    assert record["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert "two calls" in (folder / "README.md").read_text()


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


@pytest.mark.parametrize("loaded", [False, True], ids=["by its name", "loaded"])
def test_a_local_base_is_found_from_every_folder(model_folder, tokenizer, lora, tmp_path, monkeypatch, loaded):
    monkeypatch.chdir(Path(model_folder).parent)
    name = Path(model_folder).name
    model = AutoModelForCausalLM.from_pretrained(name) if loaded else name
    trainer = make_trainer(model, tmp_path, tokenizer, peft_config=lora)
    trainer.save_model()
    monkeypatch.chdir("/")
    assert load_folder(tmp_path / "run").record.base_model == model_folder


def test_the_record_has_the_batch_size_that_fitted(model_folder, tokenizer, lora, tmp_path, monkeypatch):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, auto_find_batch_size=True)
    compute_loss = trainer.compute_loss

    def too_large(model, inputs, *positional, **keywords):
        if len(inputs["input_ids"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return compute_loss(model, inputs, *positional, **keywords)

    monkeypatch.setattr(trainer, "compute_loss", too_large)
    trainer.train()
    trainer.save_model()
    assert trainer.args.per_device_train_batch_size == 4
    assert TrainingRecord.load(tmp_path / "run").settings["batch_size"] == 2
    assert "| batch_size | 2 |" in (tmp_path / "run" / "README.md").read_text()


def test_a_chat_template_that_adds_tokens_is_trained_scored_used_and_merged(tokenizer, lora, tmp_path, capsys):
    """TRL makes the base's embeddings longer; whoever loads the adapter has to do the same."""
    base = LlamaForCausalLM(LlamaConfig(**{**TINY_SIZES, "vocab_size": len(tokenizer)}))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    chat = copy.deepcopy(tokenizer)
    chat.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
    chat.add_special_tokens({"eos_token": "<|end|>"})
    chat.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat.save_pretrained(tmp_path / "chat")
    rows = [
        {"prompt": [{"role": "user", "content": "one?"}], "completion": [{"role": "assistant", "content": "yes"}]}
    ] * 4
    trainer = make_trainer(
        str(tmp_path / "base"), tmp_path, copy.deepcopy(tokenizer), rows=rows, peft_config=lora, max_steps=2,
        learning_rate=1e-2, chat_template_path=str(tmp_path / "chat"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    assert lora.trainable_token_indices is None  # the caller's own stays as it was
    loaded = load_folder(tmp_path / "run")
    assert len(loaded.tokenizer) > len(tokenizer)
    ids = loaded.tokenizer("<|user|>one?<|end|><|assistant|>", return_tensors="pt").input_ids
    assert ids.max() >= len(tokenizer)
    with torch.no_grad():
        expected = last_states(trainer.model.eval(), ids)
        torch.testing.assert_close(last_states(loaded.model, ids), expected)
    argv = ["--adapter", str(tmp_path / "run")]
    assert main(["generate", *argv, "--prompt", "<|user|>one?<|end|><|assistant|>", "--max_new_tokens", "2"]) == 0
    data = write_rows(tmp_path / "rows.jsonl", puzzles(4))
    evaluation = ["--dataset_name", str(data), "--task", "logiqa", "--max_new_tokens", "2"]
    assert main(["evaluate", *argv, *evaluation]) == 0
    assert merge_adapter(tmp_path / "run", tmp_path / "merged").relative_logit_error < 1e-5


def last_states(model, ids):
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1]


def test_full_fine_tuning_trains_too(model_folder, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trainer = make_trainer(model, tmp_path, tokenizer, max_steps=3, learning_rate=1e-3, logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[2]["loss"] < trainer.state.log_history[0]["loss"]


SCRIPT = """
import sys
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer

model, data, output = sys.argv[1:]
rows = load_dataset("json", data_files=data, split="train")
args = SFTConfig(output, max_steps=2, per_device_train_batch_size=2, bf16=False, report_to="none", logging_steps=1,
                 eval_strategy="steps", eval_steps=1, learning_rate=1e-3)
trainer = SFTTrainer(model, args=args, train_dataset=rows, eval_dataset=rows, peft_config=LoraConfig(r=8))
trainer.train()
trainer.save_model()
"""


def test_a_trl_script_becomes_a_warmup_script_by_changing_two_names(model_folder, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, EXAMPLES)))
    changed = SCRIPT.replace("args = SFTConfig(", "args = WarmupSFTConfig(").replace(
        "= SFTTrainer(", "= WarmupSFTTrainer("
    )
    words = difflib.ndiff(SCRIPT.replace("(", " (").split(), changed.replace("(", " (").split())
    assert [w[2:] for w in words if w.startswith("+ ")] == ["WarmupSFTConfig", "WarmupSFTTrainer"]
    for name, script in (("sft", SCRIPT), ("warmup", changed)):
        path = tmp_path / f"{name}.py"
        path.write_text(script)
        command = [sys.executable, str(path), model_folder, str(data), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (tmp_path / name / "adapter_model.safetensors").is_file()
    assert (tmp_path / "warmup" / "warmup_config.json").is_file()


def wrong_scores(predictions):
    return lambda self, *args: predictions(self, *args) * 1.1


def wrong_gradients(predictions):
    def without_the_prompt(self, *args):
        self.layers = {layer: (key.detach(), value.detach()) for layer, (key, value) in self.layers.items()}
        return predictions(self, *args)

    return without_the_prompt


@pytest.mark.parametrize(
    ("fault", "reason"), [(wrong_scores, "tokens would differ"), (wrong_gradients, "the gradient would be off by")]
)
def test_the_first_batch_is_checked_against_plain_rows(
    model_folder, tokenizer, lora, tmp_path, monkeypatch, caplog, fault, reason
):
    monkeypatch.setattr(SharedPrefix, "predictions", fault(SharedPrefix.predictions))
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    assert encoding_used(trainer) is PlainRows
    assert reason in caplog.text
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, prefix_sharing="true")
    with pytest.raises(ValueError, match=f"prefix_sharing=always cannot be had: .*{reason}"):
        trainer.train()


def test_a_longer_batch_is_checked_again(model_folder, tokenizer, lora, tmp_path, monkeypatch):
    """A model that goes wrong beyond some length, as with a window that it does not speak of."""
    predictions = SharedPrefix.predictions

    def wrong_beyond_30_tokens(self, branches, predicted):
        is_long = self.prompt.ids.size(1) + branches.ids.size(-1) > 30
        return predictions(self, branches, predicted) * (1.1 if is_long else 1.0)

    monkeypatch.setattr(SharedPrefix, "predictions", wrong_beyond_30_tokens)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    kinds = []
    for length in (5, 12, 20, 12, 16):
        mask = torch.ones(2, length, dtype=torch.bool)
        prompt = Tokens(torch.arange(2 * length).view(2, length) + 30, mask)
        kinds.append(type(trainer._encoder(trainer.model, prompt, 15)))
    assert kinds == [SharedPrefix, SharedPrefix, PlainRows, SharedPrefix, PlainRows]


def test_reentrant_checkpointing_trains(model_folder, tokenizer, lora, tmp_path):
    """torch computes no gradient of a part there, so none can be tried; plain rows need none."""
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **kwargs)
    trainer.train()
    moved = [parameter for name, parameter in trainer.model.named_parameters() if "lora_B" in name]
    assert all(parameter.abs().max() > 0 for parameter in moved)  # they start at 0


def test_checks_take_no_random_numbers_from_a_training_with_dropout(model_folder, tokenizer, tmp_path):
    """An evaluation is the same the first time, when the checks are made, as ever after."""
    lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.3)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    randomise_adapter(trainer.model)
    rows = Dataset.from_list(EXAMPLES)
    state = torch.get_rng_state()
    losses = [trainer.evaluate(rows)["eval_loss"] for _ in range(3)]
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_check_leaves_no_trace(model_folder, tokenizer, lora, tmp_path):
    """Random numbers, gradients and modes of a training are what they would be without it."""
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    randomise_adapter(trainer.model)
    state = torch.get_rng_state()
    modes = [module.training for module in trainer.model.modules()]
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    prompt, _ = split_examples(batch["input_ids"], batch["labels"], batch["attention_mask"])
    torch.set_rng_state(state)
    encoded = trainer._encoder(trainer.model, prompt, 12)
    trainer._sampler._way(trainer.model, encoded, trainer.sampling)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert [module.training for module in trainer.model.modules()] == modes


def test_a_model_that_sees_what_follows_is_refused(tokenizer, tmp_path):
    sizes = {**TINY_SIZES, "max_position_embeddings": 300}
    model = BertLMHeadModel(BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    trainer = make_trainer(model, tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"bert lets a token see those behind it .* is_decoder"):
        trainer.train()


def test_running_out_of_memory_says_what_to_change(model_folder, tokenizer, lora, tmp_path, monkeypatch):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "compute_loss", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match=r"train_batch_size=4.*checkpointing.*num_warmups=3.*4bit"):
        trainer.train()


@pytest.mark.parametrize("prefix_sharing", ["true", "false"])
def test_warmups_are_drawn_in_eval_mode_also_under_checkpointing(
    model_folder, tokenizer, lora, tmp_path, prefix_sharing
):
    trainer = make_trainer(
        model_folder,
        tmp_path,
        tokenizer,
        peft_config=lora,
        prefix_sharing=prefix_sharing,
        gradient_checkpointing=True,
    )
    base, decoding = trainer.model.get_base_model(), []
    forward = base.forward

    def watched(*args, **kwargs):
        if kwargs.get("past_key_values") is not None:
            decoding.append(any(module.training for module in base.modules()))
        return forward(*args, **kwargs)

    base.forward = watched
    trainer.train()
    assert decoding
    assert not any(decoding)


def test_decoding_right_after_training_is_decoding_in_eval_mode(model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, gradient_checkpointing=True)
    trainer.train()
    ids = tokenizer("Q: what follows three?", return_tensors="pt")["input_ids"]
    assert trainer.model.training
    now = warmup_generate(trainer.model, ids, warmup_config=trainer.warmup_config, max_new_tokens=6, do_sample=False)
    assert trainer.model.training
    later = warmup_generate(
        trainer.model.eval(), ids, warmup_config=trainer.warmup_config, max_new_tokens=6, do_sample=False
    )
    assert torch.equal(now, later)


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


def test_the_anchor_leaves_frozen_adapter_weights_frozen(model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_anchor=0.5)
    frozen = [parameter for name, parameter in trainer.model.named_parameters() if "lora_A" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    trainer.train()
    assert not any(parameter.requires_grad for parameter in frozen)


def test_nan_stops_the_run_before_it_reaches_the_weights(model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_steps=2)
    score = trainer._score

    def with_a_broken_row(model, encoded, *more):
        predictions = encoded.predictions

        def broken(*args):
            logits = predictions(*args).clone()
            logits[-1] = torch.nan
            return logits

        encoded.predictions = broken
        return score(model, encoded, *more)

    trainer._score = with_a_broken_row
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    with pytest.raises(FloatingPointError, match=r"NaN at step 1, rows \[3\].*Last checkpoint: none"):
        trainer.train()
    assert all(torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters() if name in weights)


@pytest.mark.parametrize("part", ["warmup_logp_BK", "kl_BK", "gain_BK"])
def test_nan_anywhere_in_the_scores_stops_the_run(model_folder, tokenizer, lora, tmp_path, monkeypatch, part):
    objective = {"warmup_logp_BK": "jensen", "kl_BK": "warmup", "gain_BK": "rlpr"}[part]
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, objective=objective, warmup_anchor=0.3 * (part == "kl_BK")
    )
    score = trainer._score
    monkeypatch.setattr(
        trainer, "_score", lambda *a: (lambda s: s._replace(**{part: getattr(s, part) * torch.nan}))(score(*a))
    )
    with pytest.raises(FloatingPointError, match="NaN at step 1"):
        trainer.train()


@pytest.mark.parametrize("settings", [{}, {"warmup_source": "base", "warmup_pool_size": 4}])
def test_nan_weights_stop_the_run_with_a_sentence(model_folder, tokenizer, lora, tmp_path, settings):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
    if settings:
        trainer.draw_warmups()
    next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"NaN at step 1, rows \[0, 1, 2, 3\]"):
        trainer.train()


def test_rows_without_a_target_are_refused(model_folder, tokenizer, lora, tmp_path):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [5, 6, 7], "labels": [-100] * 3}]
    with pytest.raises(ValueError, match="Row 1 of the train dataset has no target"):
        make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora, max_length=None)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_that_change_the_base_are_refused_where_the_base_is_needed(model_folder, tokenizer, tmp_path, start):
    lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=start)
    for settings in ({"warmup_anchor": 0.3}, {"warmup_source": "base"}):
        with pytest.raises(ValueError, match=f"init_lora_weights='{start}' changes the base"):
            make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
    make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)


def test_verifree_says_when_targets_are_too_long_for_it(model_folder, tokenizer, lora, tmp_path, caplog):
    rows = [{**row, "completion": " so" * 40} for row in EXAMPLES]
    make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora, objective="verifree").train()
    assert "nothing is learnt from them" in caplog.text


def test_targets_that_are_impossible_are_counted_and_the_run_goes_on(
    model_folder, tokenizer, lora, tmp_path, monkeypatch, caplog
):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    score = trainer._score

    def with_an_impossible_row(*args):
        scores = score(*args)
        impossible = torch.zeros_like(scores.target_logp_BK, dtype=torch.bool)
        impossible[0] = True
        return scores._replace(target_logp_BK=scores.target_logp_BK.masked_fill(impossible, -torch.inf))

    monkeypatch.setattr(trainer, "_score", with_an_impossible_row)
    trainer.train()
    assert "Step 1: 1 targets are impossible" in caplog.text
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_save_that_is_cut_off_leaves_the_card_to_be_written_again(
    model_folder, tokenizer, lora, tmp_path, monkeypatch
):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    trainer.save_model()
    card = tmp_path / "run" / "README.md"
    before = card.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(WarmupConfig, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer.save_model()
    assert card.read_text() == before
    trainer.state.global_step = 7
    trainer.save_model()
    assert "| steps | 7 |" in card.read_text()
