"""The trainer against a plain loop written from the equations: losses and gradients, in float32."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import runpy
import statistics
import sys

import pytest
import torch
from conftest import EXAMPLES
from datasets import Dataset
from folders import relative_difference
from thinning import diagonal, every
from trainers import make_trainer, randomise_adapter, record_warmups
from transformers import (
    AutoModelForCausalLM,
)
from trl import SFTConfig, SFTTrainer

from warmup_peft import WarmupSFTTrainer, warmup_generate
from warmup_peft.method.branches import Warmups
from warmup_peft.method.objective import OBJECTIVES


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


class OneEnd:
    """Ending a warmup as one event, where the separator is learnt: end tokens count as its first one."""

    def __init__(self, sampling):
        self.ends = set(sampling.end_token_ids) if sampling.closing_id is not None else set()
        self.closing = sampling.closing_id

    def __call__(self, logp):
        """(T, V) log-probabilities -> the same, with the column of the closing token last and no other end token."""
        if self.closing is None:
            return logp
        others = [token for token in range(logp.size(1)) if token not in self.ends]
        self.columns = {token: column for column, token in enumerate(others)}
        end = logp[:, sorted(self.ends)].exp().sum(1, keepdim=True).log()
        return torch.cat([logp[:, others], end], dim=1)

    def column(self, token):
        return token if self.closing is None else self.columns.get(token, -1)


def plain_format_logp(model, prompt_ids, sample, separator_ids, opening_ids, one_end, reference):
    """log P of opening and separator, and of ending where the base would end (or, without one, where it was ended)."""
    row = torch.tensor([prompt_ids + sample.ids + separator_ids])
    logp, total = model(row).logits[0].log_softmax(-1), 0.0
    for t, token in enumerate(opening_ids, len(prompt_ids) - len(opening_ids)):
        total = total + logp[t - 1, token]
    start = len(prompt_ids) + len(sample.ids)
    for t, token in enumerate(separator_ids, start):
        total = total + (logp[t - 1, token] if t > start else 0.0)
    others = [token for token in range(logp.size(1)) if token not in one_end.ends]
    for t in range(len(sample.decided)):
        ended = float(t == len(sample.ids)) if reference is None else reference[t, -1].exp().item()
        at = logp[len(prompt_ids) - 1 + t]
        total = total + ended * at[one_end.closing] + (1 - ended) * at[others].exp().sum().log()
    return total


def plain_loss(model, sampled, targets, separator_ids, args, one_end, opening_ids=()):
    """Nats per target token: one unpadded row at a time, straight from the equations of `objective.py`.

    Returns:
        A tensor with the right gradient, and the right value.
    """
    beta, from_base = args.warmup_anchor, args.warmup_source == "base"
    surrogate, value, num_targets = 0.0, 0.0, 0
    for (prompt_ids, samples), target_ids in zip(sampled, targets):
        num_targets += len(target_ids)

        def target_logps(warmup_ids, prompt_ids=prompt_ids, target_ids=target_ids):
            row = torch.tensor([prompt_ids + warmup_ids + separator_ids + target_ids])
            logp = model(row).logits[0].log_softmax(-1)
            return torch.stack([logp[t - 1, row[0, t]] for t in range(row.size(1) - len(target_ids), row.size(1))])

        rewards, warmup_logps, anchors, gains, references = [], [], [], [], []
        with torch.no_grad():
            alone = target_logps([]).exp().mean()
        for sample in samples:
            logps = target_logps(sample.ids)
            rewards.append(logps.sum())
            gains.append((logps.detach().exp().mean() - alone).item())
            row = torch.tensor([prompt_ids + sample.decided])
            logp = one_end(model(row).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1))
            decided = [logp[t, one_end.column(token)] for t, token in enumerate(sample.decided)]
            warmup_logps.append(sum(decided, torch.zeros(())))
            if from_base:
                anchors.append(sample.logp - warmup_logps[-1])
            elif beta:
                with torch.no_grad(), model.disable_adapter():
                    references.append(one_end(model(row).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)))
                reference = references[-1]
                own_first = (logp.exp() * (logp - reference)).sum()
                base_first = (reference.exp() * (reference - logp)).sum()
                anchors.append(own_first if args.objective == "latro" else base_first)
        numbers = [r.item() for r in rewards]
        ratios = [(w.item() - d.logp) if from_base else 0.0 for w, d in zip(warmup_logps, samples)]
        penalties = [beta * a.item() for a in anchors]
        weights, advantages = plain_credit(args.objective, numbers, penalties, ratios, gains)
        if args.normalize_advantages:
            spread = statistics.pstdev(advantages)
            advantages = [(a - mean(advantages)) / (spread + 1e-4) / len(advantages) for a in advantages]
        if args.advantage_clip is not None:
            advantages = [min(max(a, -args.advantage_clip), args.advantage_clip) for a in advantages]
        surrogate = surrogate - sum(w * r + a * p for w, r, a, p in zip(weights, rewards, advantages, warmup_logps))
        value -= plain_value(args.objective, numbers, ratios)
        if args.learn_separator:
            around = separator_ids, opening_ids, one_end
            references = references or [None] * len(samples)
            pairs = zip(samples, references)
            format_logp = mean([plain_format_logp(model, prompt_ids, sample, *around, base) for sample, base in pairs])
            surrogate, value = surrogate - format_logp, value - format_logp.item()
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


METHODS = [  # every objective, with what it is used with
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


def test_no_objective_is_left_out():
    assert {method["objective"] for method in METHODS} == set(OBJECTIVES)


def name_of(method):
    if isinstance(method, str):
        return method
    return "-".join(f"{value}" for key, value in method.items() if key not in ("prefix_sharing", "warmup_pool_size"))


@pytest.mark.parametrize(("method", "backend"), diagonal(METHODS, list(BACKENDS)), ids=name_of)
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


LEARNT = [
    {"objective": "warmup"},
    {"objective": "warmup", "warmup_anchor": 0.5, "warmup_opening": "<w>"},
    {"objective": "jensen", "warmup_anchor": 0.5, "warmup_opening": "<w>"},
    {"objective": "latro", "warmup_anchor": 0.5},
    {"objective": "posterior", "warmup_anchor": 0.5, "warmup_source": "base", "warmup_opening": "<w>"},
    {"objective": "jensen", "warmup_anchor": 0.5, "warmup_dropout": 0.4},
]


@pytest.mark.parametrize(("method", "backend"), diagonal(LEARNT, list(BACKENDS)), ids=name_of)
def test_a_learnt_separator_equals_a_plain_loop(model_folder, tokenizer, lora, nf4, tmp_path, method, backend):
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, quantization_config=nf4 if backend == "4bit" else None,
        warmup_pool_size=6, learn_separator=True, **method, **BACKENDS[backend],
    )  # fmt: skip
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert trainer.sampling.closing_id == tokenizer(trainer.args.warmup_separator)["input_ids"][0]
    check_against_plain_loop(trainer, tokenizer)


def check_against_plain_loop(trainer, tokenizer):
    model = trainer.model
    randomise_adapter(model)
    if trainer.args.warmup_source == "base":
        trainer.fill_warmup_pool()
    sampled = record_warmups(trainer)
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
        tuple(tokenizer(row["prompt"] + trainer.args.warmup_opening)["input_ids"]): target
        for row, target in zip(EXAMPLES, targets_of(tokenizer))
    }
    targets = [by_prompt[tuple(prompt_ids)] for prompt_ids, _ in sampled]
    separator_ids = tokenizer(trainer.args.warmup_separator)["input_ids"]
    opening_ids = tokenizer(trainer.args.warmup_opening)["input_ids"] if trainer.args.warmup_opening else []
    one_end = OneEnd(trainer.sampling)
    surrogate, value = plain_loss(model, sampled, targets, separator_ids, trainer.args, one_end, opening_ids)
    surrogate.backward()
    lengths = [len(sample.ids) for _, samples in sampled for sample in samples]
    assert len(set(lengths)) > 1  # ragged warmups, or the test sees too little
    assert loss.item() == pytest.approx(value, rel=1e-4, abs=1e-9)
    assert relative_difference(ours, gradients(model)) < 1e-4


def test_hindsight_trains_the_target_after_warmups_that_hold_it(model_folder, tokenizer, lora, tmp_path):
    """In the first step as if every warmup were the one that holds the target's words; then as the objective says."""

    def gradient_after(texts, step=0, **settings):
        trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, num_warmups=2, **settings)
        randomise_adapter(trainer.model)
        trainer.state.global_step = step
        rows = [tokenizer(text)["input_ids"] for text in texts]
        length = torch.tensor([[len(row) for row in rows]]).expand(len(EXAMPLES), -1)
        ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])
        trainer.sample_warmups = lambda *_: Warmups(ids.expand(len(EXAMPLES), -1, -1), length, length)
        trainer.model.train()
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        trainer.compute_loss(trainer.model, batch).backward()
        return gradients(trainer.model)

    holds_all, holds_none = "Yes. A, four, two: no", "zz"
    hindsight = {"objective": "jensen", "hindsight_steps": 3}
    expected = gradient_after([holds_all, holds_all])
    assert relative_difference(gradient_after([holds_none, holds_all], step=2, **hindsight), expected) < 1e-5
    assert not gradient_after([holds_none, holds_none], **hindsight).any()
    later = gradient_after([holds_none, holds_all], step=3, **hindsight)
    assert torch.equal(later, gradient_after([holds_none, holds_all], objective="jensen"))


def make_deterministic(trainer):
    """Beam search without sampling: the same warmups for a prompt, whatever batch it is in."""
    trainer.sampling = dataclasses.replace(
        trainer.sampling, do_sample=False, num_beams=max(2, trainer.args.num_warmups)
    )


@pytest.mark.parametrize(
    "settings",
    every(
        4,
        [
            {"prefix_sharing": "false", "warmup_anchor": 0.5},
            *({"prefix_sharing": "true", "warmup_pool_size": 4, **m} for m in METHODS if "warmup_dropout" not in m),
        ],
    ),
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
    sampled = record_warmups(ours)
    ours.train()

    target_of = {
        tuple(tokenizer(row["prompt"])["input_ids"]): target for row, target in zip(EXAMPLES, targets_of(tokenizer))
    }
    rows = []
    for prompt_ids, [sample] in sampled:
        context, target = prompt_ids + sample.ids + tokenizer(" | ")["input_ids"], target_of[tuple(prompt_ids)]
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
        "warmups/truncated",
        "warmups/distinct",
    ):
        assert first[f"eval_{key}"] == pytest.approx(first[f"eval_{key}"])
    assert first["eval_warmups/kl"] == pytest.approx(0, abs=1e-6)  # a fresh adapter changes nothing


def test_everything_sfttrainer_takes_is_taken():
    ours, theirs = (inspect.signature(cls.__init__) for cls in (WarmupSFTTrainer, SFTTrainer))
    assert ours == theirs


def test_rows_beyond_the_context_are_refused(model_folder, tokenizer, lora, tmp_path):
    """The tiny model knows 512 positions; warmup 5 and separator 3 come on top of 505."""
    rows = [*EXAMPLES, {"prompt": "y" * 500, "completion": "four"}]
    with pytest.raises(ValueError, match=r"Row 5 .* 505 tokens; with warmup and separator \(8\).*context of 512"):
        make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora)


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


def test_a_trl_script_becomes_a_warmup_script_by_changing_two_names(model_folder, tmp_path, monkeypatch):
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
        monkeypatch.setattr(sys, "argv", [str(path), model_folder, str(data), str(tmp_path / name)])
        runpy.run_path(str(path), run_name="__main__")
        assert (tmp_path / name / "adapter_model.safetensors").is_file()
    assert (tmp_path / "warmup" / "warmup_config.json").is_file()


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


def test_the_anchor_leaves_frozen_adapter_weights_frozen(model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_anchor=0.5)
    frozen = [parameter for name, parameter in trainer.model.named_parameters() if "lora_A" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    trainer.train()
    assert not any(parameter.requires_grad for parameter in frozen)


def test_nan_stops_the_run_before_it_reaches_the_weights(model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_steps=2)
    score = trainer.score_warmups

    def with_a_broken_row(encoded, *more):
        predictions = encoded.predictions

        def broken(*args):
            found = predictions(*args)
            hidden = found.hidden.clone()
            hidden[-1] = torch.nan
            return dataclasses.replace(found, hidden=hidden)

        encoded.predictions = broken
        return score(encoded, *more)

    trainer.score_warmups = with_a_broken_row
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
    score = trainer.score_warmups
    monkeypatch.setattr(
        trainer, "score_warmups", lambda *a: (lambda s: s._replace(**{part: getattr(s, part) * torch.nan}))(score(*a))
    )
    with pytest.raises(FloatingPointError, match="NaN at step 1"):
        trainer.train()


@pytest.mark.parametrize("settings", [{}, {"warmup_source": "base", "warmup_pool_size": 4}])
def test_nan_weights_stop_the_run_with_a_sentence(model_folder, tokenizer, lora, tmp_path, settings):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
    if settings:
        trainer.fill_warmup_pool()
    next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"NaN at step 1, rows \[0, 1, 2, 3\]"):
        trainer.train()


def test_rows_without_a_target_are_refused(model_folder, tokenizer, lora, tmp_path):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [5, 6, 7], "labels": [-100] * 3}]
    with pytest.raises(ValueError, match="Row 2 of the train dataset has no target"):
        make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora, max_length=None)


def test_verifree_says_when_targets_are_too_long_for_it(model_folder, tokenizer, lora, tmp_path, caplog):
    rows = [{**row, "completion": " so" * 40} for row in EXAMPLES]
    make_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora, objective="verifree").train()
    assert "nothing is learnt from them" in caplog.text


def test_targets_that_are_impossible_are_counted_and_the_run_goes_on(
    model_folder, tokenizer, lora, tmp_path, monkeypatch, caplog
):
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    score = trainer.score_warmups

    def with_an_impossible_row(*args):
        scores = score(*args)
        impossible = torch.zeros_like(scores.target_logp_BK, dtype=torch.bool)
        impossible[0] = True
        return scores._replace(target_logp_BK=scores.target_logp_BK.masked_fill(impossible, -torch.inf))

    monkeypatch.setattr(trainer, "score_warmups", with_an_impossible_row)
    trainer.train()
    assert "Step 1: 1 targets are impossible" in caplog.text
    assert all(p.isfinite().all() for p in trainer.model.parameters())
