"""The trainer against a plain loop written from the equations: losses and gradients, in float32."""

from __future__ import annotations

import pytest
import torch
from conftest import EXAMPLES
from datasets import Dataset

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer


def make_trainer(model, tmp_path, tokenizer, *, rows=EXAMPLES, peft_config=None, quantization_config=None, **settings):
    settings = {
        "per_device_train_batch_size": len(rows),
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "max_warmup_length": 5,
        "warmup_separator": " | ",
        "num_warmups": 3,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "disable_tqdm": True,
        "save_strategy": "no",
        **settings,
    }
    return WarmupSFTTrainer(
        model,
        WarmupSFTConfig(str(tmp_path / "run"), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
        quantization_config=quantization_config,
    )


def randomise_adapter(model):
    """LoRA starts at zero; move it away, so that the adapter-off model differs and every gradient is there."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1


def record_warmups(trainer):
    """Every batch's prompts and warmups, as lists of ids, in the order they were drawn."""
    drawn = []
    sample = trainer._sample

    def recording(model, encoded):
        warmups, prompt = sample(model, encoded), encoded.prompt
        for b in range(len(prompt.ids)):
            prompt_ids = prompt.ids[b][prompt.mask[b]].tolist()
            rows = [
                (warmups.ids[b, k, : warmups.lengths[b, k]].tolist(), int(warmups.num_decisions[b, k]))
                for k in range(warmups.ids.size(1))
            ]
            drawn.append((prompt_ids, rows))
        return warmups

    trainer._sample = recording
    return drawn


def plain_loss(model, drawn, targets, separator_ids, beta):
    """Nats per target token: one unpadded row at a time, straight from the equations of `objective.py`."""
    total, num_targets = 0.0, 0
    for (prompt_ids, warmups), target_ids in zip(drawn, targets):
        num_targets += len(target_ids)
        for warmup_ids, num_decisions in warmups:
            row = torch.tensor([prompt_ids + warmup_ids + separator_ids + target_ids])
            logp = model(row).logits[0].log_softmax(-1)
            start = len(prompt_ids)
            first_target = row.size(1) - len(target_ids)
            loss = -sum(logp[t - 1, row[0, t]] for t in range(first_target, row.size(1)))
            if beta:
                with torch.no_grad(), model.disable_adapter():
                    reference = model(row).logits[0].log_softmax(-1)
                for t in range(start, start + num_decisions):
                    loss = loss + beta * (logp[t - 1].exp() * (logp[t - 1] - reference[t - 1])).sum()
            total = total + loss / len(warmups)
    return total / num_targets


def gradients(model):
    return torch.cat([p.grad.flatten().float() for _, p in sorted(model.named_parameters()) if p.grad is not None])


def relative_difference(a, b):
    return ((a - b).norm() / b.norm()).item()


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
        (3, 0.0, {"warmup_sampling": "beam", "warmup_num_beams": 4}),
    ],
)
def test_loss_and_gradients_equal_a_plain_loop(model_folder, tokenizer, lora, tmp_path, num_warmups, beta, settings):
    """Ragged prompts and targets, always after a `generate` (that is where the warmups come from)."""
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, num_warmups=num_warmups, warmup_anchor=beta, **settings
    )
    check_against_plain_loop(trainer, tokenizer, beta, tolerance=1e-4)


def test_4bit_gradients_on_cpu_equal_a_plain_loop(model_folder, tokenizer, lora, nf4, tmp_path):
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, quantization_config=nf4, warmup_anchor=0.5
    )
    for parameter in trainer.model.parameters():  # TRL makes 4-bit adapters bfloat16; compare in float32
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    check_against_plain_loop(trainer, tokenizer, 0.5, tolerance=1e-4)


def check_against_plain_loop(trainer, tokenizer, beta, tolerance):
    model = trainer.model
    randomise_adapter(model)
    drawn = record_warmups(trainer)
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
    expected = plain_loss(model, drawn, targets, separator_ids, beta)
    expected.backward()
    lengths = [len(ids) for _, warmups in drawn for ids, _ in warmups]
    assert len(set(lengths)) > 1  # ragged warmups, or the test sees too little
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative_difference(ours, gradients(model)) < tolerance
