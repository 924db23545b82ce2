"""Where warmups come from: the base model's, sampled once before training, and the two controls."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import EXAMPLES
from datasets import Dataset
from pools import rows_in
from scipy.stats import chisquare
from tiny_world import OUTCOMES, build_trainer, quantities
from trainers import make_trainer, randomise_adapter, record_warmups
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.method.branches import split_examples
from warmup_peft.training.sources import random_numbers_of_rank


def base_trainer(model, tmp_path, tokenizer, **settings):
    settings = {"warmup_source": "base", "warmup_pool_size": 6, "warmup_anchor": 0.3, **settings}
    return make_trainer(model, tmp_path, tokenizer, **settings)


def test_the_pool_has_the_law_of_sampling_on_the_fly(world, tmp_path):
    """4,000 samples of one prompt against the exact probabilities of all 26 warmups, the adapter being off."""
    trainer = build_trainer(world, tmp_path, "warmup", warmup_source="base", warmup_pool_size=4000)
    pool = trainer.fill_warmup_pool()
    row = rows_in(pool.folder)[0]
    counts = {(tuple(ids), length): count for ids, length, count in zip(row["ids"], row["lengths"], row["counts"])}
    with torch.no_grad():
        known = quantities(trainer.model)
    assert (known.base_logp - known.logp).abs().max() > 0.1  # the adapter matters
    expected = known.base_logp.double().exp()
    observed = [counts.get((outcome.sampled, outcome.length), 0) for outcome in OUTCOMES]
    assert sum(observed) == 4000
    assert chisquare(observed, (expected / expected.sum() * 4000).numpy()).pvalue > 1e-3
    for ids, length, logp in zip(row["ids"], row["lengths"], row["logps"]):
        i = OUTCOMES.index((tuple(ids), length))
        assert logp == pytest.approx(known.base_logp[i].item(), abs=1e-4)


def test_training_draws_nothing_any_more(model_folder, tokenizer, lora, tmp_path, monkeypatch):
    trainer = base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_steps=3, logging_steps=1)
    trainer.fill_warmup_pool()

    def refuse(*_):
        raise AssertionError("sampling in the training loop")

    monkeypatch.setattr(trainer.source, "sampler", refuse)
    trainer.train()
    assert trainer.state.log_history[0]["warmups/kl"] == pytest.approx(
        0.0, abs=1e-4
    )  # a fresh adapter changes nothing
    assert trainer.state.log_history[2]["warmups/kl"] != 0.0


def test_the_pool_does_not_depend_on_the_adapter_nor_on_what_was_drawn_before(model_folder, tokenizer, lora, tmp_path):
    pools = []
    for name, noise in (("a", 0), ("b", 7)):
        trainer = base_trainer(model_folder, tmp_path / name, tokenizer, peft_config=lora)
        if noise:
            randomise_adapter(trainer.model)
            torch.rand(noise)
        state = torch.get_rng_state()
        pools.append(rows_in(trainer.fill_warmup_pool().folder))
        assert torch.equal(torch.get_rng_state(), state)
    assert pools[0] == pools[1]


def test_evaluation_uses_the_models_own_warmups(model_folder, tokenizer, lora, tmp_path, examples):
    trainer = base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    randomise_adapter(trainer.model)
    assert trainer.evaluate(examples)["eval_warmups/kl"] > 0.01  # exact, and no pool was ever sampled
    assert trainer.source.pool is None


def steps_of(trainer, sampled):
    size = trainer.args.per_device_train_batch_size
    return [sampled[i : i + size] for i in range(0, len(sampled), size)]


def test_a_resumed_run_sees_the_same_warmups(model_folder, tokenizer, lora, tmp_path):
    settings = {"per_device_train_batch_size": 2, "max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
    sampled = record_warmups(whole)
    whole.train()
    again = base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)
    sampled_again = record_warmups(again)
    again.train(resume_from_checkpoint=str(Path(whole.args.output_dir, "checkpoint-3")))
    assert steps_of(again, sampled_again) == steps_of(whole, sampled)[3:]
    by_epoch = [sorted(str(row) for step in steps_of(whole, sampled)[i : i + 2] for row in step) for i in (0, 2, 4, 6)]
    assert len({tuple(epoch) for epoch in by_epoch}) == 4  # every epoch has its own


def test_another_base_model_is_refused(model_folder, tokenizer, lora, tmp_path):
    pool = str(tmp_path / "pool")
    base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_pool=pool).fill_warmup_pool()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.01)
    other = base_trainer(model, tmp_path, tokenizer, peft_config=lora, warmup_pool=pool)
    with pytest.raises(ValueError, match="sampled with another base model"):
        other.train()


def test_another_tokenizer_or_law_is_refused(model_folder, tokenizer, lora, tmp_path):
    pool = str(tmp_path / "pool")
    base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_pool=pool).fill_warmup_pool()
    shorter = base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_pool=pool, max_warmup_length=4)
    with pytest.raises(ValueError, match=r"sampled with another max_length \(5, now 4\)"):
        shorter.fill_warmup_pool()
    more = type(tokenizer).from_pretrained(model_folder)
    more.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="sampled with another tokenizer"):
        base_trainer(model_folder, tmp_path, more, peft_config=lora, warmup_pool=pool).fill_warmup_pool()


def test_a_changed_prompt_is_drawn_and_said(model_folder, tokenizer, lora, tmp_path, caplog):
    pool = str(tmp_path / "pool")
    base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, warmup_pool=pool).fill_warmup_pool()
    rows = [{**EXAMPLES[0], "prompt": "Q: another?"}, *EXAMPLES[1:]]
    changed = base_trainer(model_folder, tmp_path, tokenizer, rows=rows, peft_config=lora, warmup_pool=pool)
    with caplog.at_level(logging.WARNING):
        assert len(changed.fill_warmup_pool()) == 5
    assert "1 prompts have no warmups in" in caplog.text


def test_a_base_that_says_nothing_is_refused_before_training(model_folder, tokenizer, lora, tmp_path):
    trainer = base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora)
    embedding = trainer.model.get_input_embeddings().weight  # every state alike: every next token alike
    with torch.no_grad():
        embedding.copy_(embedding[:1].expand_as(embedding))
        trainer.model.get_output_embeddings().weight.mul_(0)[1].fill_(0)
    trainer.sampling = dataclasses.replace(trainer.sampling, do_sample=False, end_token_ids=(0,))
    with pytest.raises(ValueError, match=r"Nothing can be learnt with warmup_source base: .* are empty"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_full_fine_tuning_takes_warmups_of_the_base_with_an_anchor(model_folder, tokenizer, tmp_path, examples):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    trainer = base_trainer(model, tmp_path, tokenizer, max_steps=3, learning_rate=1e-3, logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[2]["loss"] < trainer.state.log_history[0]["loss"]
    assert "eval_warmups/kl" not in trainer.evaluate(examples)  # there is no adapter to switch off


def test_a_whole_model_goes_on_with_the_pool_of_the_weights_it_started_with(model_folder, tokenizer, tmp_path):
    """Trained again, and resumed: in a new process the trainer is made of the base."""
    settings = {"max_steps": 2, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1}
    settings["model_init_kwargs"] = {"dtype": "float32"}
    trainer = base_trainer(model_folder, tmp_path, tokenizer, **settings)
    trainer.train()
    rows = rows_in(trainer.source.pool.folder)
    trainer.train()
    assert rows_in(trainer.source.pool.folder) == rows
    checkpoint = str(Path(trainer.args.output_dir, "checkpoint-1"))
    trainer.train(resume_from_checkpoint=checkpoint)
    again = base_trainer(model_folder, tmp_path, tokenizer, **settings)
    again.train(resume_from_checkpoint=checkpoint)
    assert rows_in(again.source.pool.folder) == rows
    for name, weight in again.model.named_parameters():
        assert torch.equal(weight, trainer.model.get_parameter(name)), name


def test_a_whole_model_that_has_moved_draws_no_more_for_its_base(model_folder, tokenizer, tmp_path):
    trainer = base_trainer(model_folder, tmp_path, tokenizer, learning_rate=1e-3)
    trainer.train()
    shutil.rmtree(tmp_path / "run" / "warmup_pool")
    with pytest.raises(
        ValueError, match=r"4 prompts have no warmups .* its base is gone\. Call fill_warmup_pool\(\) before"
    ):
        trainer.train()


def drift(trainer, examples):
    """KL of the model's own warmups to the adapter-off model's."""
    trainer.args.warmup_anchor = 1.0
    return trainer.evaluate(examples)["eval_warmups/kl"]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["policy", "base"])
def test_a_strong_anchor_keeps_the_warmups_law_and_none_lets_it_drift(
    model_folder, tokenizer, lora, tmp_path, examples, source
):
    moved = {}
    for beta in (0.0, 100.0):
        trainer = make_trainer(
            model_folder, tmp_path / f"{beta}", tokenizer, peft_config=lora, warmup_source=source, warmup_anchor=beta,
            max_steps=40, learning_rate=5e-3, lr_scheduler_type="constant", max_grad_norm=1.0,
            warmup_pool_size=1000 if source == "base" else 16, num_warmups=8,
        )  # fmt: skip
        trainer.train()
        moved[beta] = drift(trainer, examples)
    assert moved[100.0] < 0.1 * moved[0.0]


def test_a_share_of_the_warmups_is_left_out(model_folder, tokenizer, lora, tmp_path):
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, warmup_dropout=0.25, num_warmups=50, max_steps=4
    )
    sampled = record_warmups(trainer)
    trainer.train()
    count = Counter(not sample.decided for _, samples in sampled for sample in samples)
    assert 0.2 < count[True] / count.total() < 0.3
    trainer.model.eval()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    sampled.clear()
    trainer.compute_loss(trainer.model, batch)
    assert all(sample.decided for _, samples in sampled for sample in samples)


def test_rows_beyond_max_length_are_pooled_as_they_are_trained(model_folder, tokenizer, lora, tmp_path):
    trainer = base_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, max_length=23)
    trainer.train()  # a prompt that is not in the pool would stop it
    assert len(trainer.source.pool) == len(trainer.train_dataset) == 3


def test_datasets_of_labels_are_pooled_too(model_folder, tokenizer, lora, tmp_path):
    rows = [{"input_ids": [5, 6, 7 + i, 8], "labels": [-100, -100, -100, 8]} for i in range(3)]
    trainer = base_trainer(model_folder, tmp_path, tokenizer, rows=Dataset.from_list(rows).to_list(), peft_config=lora)
    trainer.train()
    assert len(trainer.source.pool) == 3


# ---- Controls: shuffled warmups, and none ----

SEPARATOR = " | "


def control(source, model_folder, tokenizer, examples, lora, tmp_path, **options):
    args = WarmupSFTConfig(
        str(tmp_path), num_warmups=2, max_warmup_length=4, warmup_separator=SEPARATOR, warmup_anchor=0.0,
        warmup_source=source, bf16=False,
        report_to="none", gradient_checkpointing=False, per_device_train_batch_size=4, max_steps=2, logging_steps=1,
        **options,
    )  # fmt: skip
    return WarmupSFTTrainer(
        model=model_folder, args=args, train_dataset=examples, processing_class=tokenizer, peft_config=lora
    )


def sampled(trainer, rows: slice = slice(None)):
    batch = trainer.data_collator(list(trainer.train_dataset))
    prompt, _ = split_examples(*(batch[name][rows] for name in ("input_ids", "labels", "attention_mask")))
    torch.manual_seed(0)
    return trainer.sample_warmups(trainer.model, trainer.encoder(trainer.model, prompt, room=20))


def test_each_row_gets_the_warmups_of_the_row_before(model_folder, tokenizer, examples, lora, tmp_path):
    given = [model_folder, tokenizer, examples, lora, tmp_path]
    own, others = sampled(control("policy", *given)), sampled(control("shuffled", *given))
    assert torch.equal(others.ids, own.ids.roll(1, 0))
    assert torch.equal(others.lengths, own.lengths.roll(1, 0))


def test_a_batch_of_one_gets_those_of_the_batch_before(model_folder, tokenizer, examples, lora, tmp_path):
    given = [model_folder, tokenizer, examples, lora, tmp_path]
    trainer, plain = control("shuffled", *given), control("policy", *given)
    assert sampled(trainer, slice(0, 1)).lengths.max() == 0  # the first has no other
    assert torch.equal(sampled(trainer, slice(1, 2)).ids, sampled(plain, slice(0, 1)).ids)


@pytest.mark.parametrize("source", ["shuffled", "empty"])
def test_controls_train(source, model_folder, tokenizer, examples, lora, tmp_path):
    trainer = control(source, model_folder, tokenizer, examples, lora, tmp_path)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in trainer.state.log_history if "loss" in log)


def test_without_warmups_the_loss_is_sfts_on_rows_with_the_separator(
    model_folder, tokenizer, examples, lora, tmp_path
):
    """The separator stands at the end of the prompt, and the target's loss is TRL's own."""
    trainer = control("empty", model_folder, tokenizer, examples, lora, tmp_path)
    trainer.train()
    with_separator = examples.map(lambda row: {"prompt": row["prompt"] + SEPARATOR})
    args = SFTConfig(
        str(tmp_path), bf16=False, report_to="none", gradient_checkpointing=False, per_device_train_batch_size=4,
        max_steps=2, logging_steps=1, learning_rate=trainer.args.learning_rate,
    )  # fmt: skip
    plain = SFTTrainer(
        model=model_folder, args=args, train_dataset=with_separator, processing_class=tokenizer, peft_config=lora
    )
    plain.train()
    losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (trainer, plain)]
    norms = [[log["grad_norm"] for log in t.state.log_history if "grad_norm" in log] for t in (trainer, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_ranks_have_random_numbers_of_their_own_and_go_on_alike():
    """All ranks begin with the same state; what one takes inside leaves no trace outside."""

    def numbers(rank: int, num_ranks: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(3)
        accelerator = SimpleNamespace(num_processes=num_ranks, process_index=rank, device=torch.device("cpu"))
        with random_numbers_of_rank(accelerator):
            inside = torch.rand(4 + rank)
        with random_numbers_of_rank(accelerator):
            again = torch.rand(4)
        assert not torch.equal(inside[:4], again)
        return inside[:4], torch.rand(4)

    (first, first_after), (second, second_after) = numbers(0), numbers(1)
    assert not torch.equal(first, second)
    assert torch.equal(first_after, second_after)
    assert torch.equal(numbers(1)[0], second)
    alone, _ = numbers(0, num_ranks=1)
    torch.manual_seed(3)
    assert torch.equal(alone, torch.rand(4))
