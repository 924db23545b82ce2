"""Warmups from vLLM, or a double of it: where they end, what they are checked against, and what is refused."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import vllm_double
from peft import get_peft_model
from pools import rows_in
from scipy.stats import chisquare
from tiny_world import OUTCOMES, PROMPT, build_trainer, quantities, world  # noqa: F401
from trainers import make_trainer, randomise_adapter
from transformers import AutoModelForCausalLM

from warmup_peft import WarmupSFTConfig
from warmup_peft.method.branches import left_padded
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings, end_warmups
from warmup_peft.training import engine as engine_module
from warmup_peft.training.engine import EngineSampler, check_engine, generate, sampled_logps

SETTINGS = SamplingSettings(num_warmups=2, max_length=4, end_token_ids=(1,), separator_ids=(8, 9), pad_token_id=0)


class Says:
    """An engine that says what it is told, each token with the same log-probability."""

    def __init__(self, completions, logp=-0.5):
        self.completions, self.logp, self.calls, self.syncs, self.mode = completions, logp, [], 0, "server"

    def generate(self, prompts, images, num_generations):
        self.calls.append((prompts, num_generations, dict(self.generation_kwargs)))
        reported = [[[self.logp] for _ in ids] for ids in self.completions]
        return prompts, self.completions, None if self.logp == "none" else reported, None

    def sync_weights(self):
        self.syncs += 1


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        dataclasses.replace(SETTINGS, separator_ids=(8,)),
        dataclasses.replace(SETTINGS, end_token_ids=(1, 8), closing_id=8),
        dataclasses.replace(SETTINGS, separator_ids=(8, 9, 8)),
    ],
)
def test_warmups_end_where_those_of_the_models_own_loop_end(settings):
    """End token, separator in the middle, separator at the limit, its first token alone, nothing."""
    stops = {1, *(settings.end_token_ids), *(settings.separator_ids if len(settings.separator_ids) == 1 else ())}
    written = [[5, 1], [5, 8, 9, 6], [5, 6, 8, 9], [8, 5, 6, 7], [1], [5, 6, 7, 5], [8, 9, 8, 1], [5, 5, 5, 8]]
    sampled = [ids[: next((i + 1 for i, x in enumerate(ids) if x in stops), 4)] for ids in written]
    engine = Says(sampled)
    found = generate(engine, [[3], [4, 3], [5], [6]], settings)
    whole = torch.tensor([ids + [0] * (4 - len(ids)) for ids in written]).view(4, 2, 4)
    expected = end_warmups(whole, settings)
    assert torch.equal(found.lengths, expected.lengths)
    assert torch.equal(found.num_decisions, expected.num_decisions)
    assert torch.equal(found.logp, -0.5 * expected.num_decisions)
    for row, decided in zip(range(8), found.num_decisions.flatten()):
        assert found.ids.view(8, 4)[row, :decided].tolist() == written[row][:decided]
    ((prompts, num_generations, options),) = engine.calls
    assert (prompts[:3], num_generations) == ([[3], [3], [4, 3]], 2)
    assert options == {"stop_token_ids": sorted(stops)}


@pytest.mark.parametrize("ids", [[5, 6], [], [5, 6, 7, 5, 6]])
def test_a_warmup_that_ended_where_nothing_ends_it_is_refused(ids):
    with pytest.raises(ValueError, match=f"ended a warmup after {len(ids)} tokens"):
        generate(Says([[5, 1], ids]), [[3]], SETTINGS)


def test_samples_without_probabilities_are_refused():
    with pytest.raises(ValueError, match="sent no log-probabilities"):
        generate(Says([[5, 1], [1]], "none"), [[3]], SETTINGS)


# ---- The sampler ----


@pytest.fixture
def model(model_folder, lora):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), lora)
    randomise_adapter(model)
    return model


@pytest.fixture
def tolerant(monkeypatch):
    """Engines of these tests say any log-probability."""
    monkeypatch.setattr(engine_module, "TOLERANCE", 99)


def encoded_by(model):
    return PlainRows(model, model, left_padded([[30, 31, 32], [33]], model.device))


def test_the_ratio_is_that_of_the_very_tokens(model, tolerant):
    """With one event for all ends (`closing_id`), too: the ratio is that of the end token that was sampled."""
    completions = [[5, 1], [5, 6, 7, 5], [1], [6, 8]]
    settings = dataclasses.replace(SETTINGS, end_token_ids=(1, 8), closing_id=8, temperature=1.0)
    sampler = EngineSampler(Says(completions, -6.0), lambda: 0)
    found = sampler(model, encoded_by(model), settings)
    prompts = [[30, 31, 32]] * 2 + [[33]] * 2
    for row, (prompt, ids) in enumerate(zip(prompts, completions)):
        with torch.no_grad():
            logps = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = sum(logps[t, token].item() for t, token in enumerate(ids)) + 6.0 * len(ids)
        assert found.log_ratio.flatten()[row].item() == pytest.approx(expected, abs=1e-4)
    assert found.logp.flatten().tolist() == [-6.0 * len(ids) for ids in completions]


def test_a_probability_that_vllm_cannot_say_counts_as_the_models_own(model):
    found = EngineSampler(Says([[5, 1]] * 4, None), lambda: 0)(model, encoded_by(model), SETTINGS)
    assert torch.equal(found.log_ratio, torch.zeros(2, 2))


def test_an_engine_that_disagrees_is_refused_at_the_first_batch(model):
    sampler = EngineSampler(Says([[5, 1]] * 4, -0.1), lambda: 0)
    with pytest.raises(
        ValueError, match=r"vLLM's log-probabilities differ from this model's by \d+\.\d\d nats a token"
    ):
        sampler(model, encoded_by(model), SETTINGS)


def test_weights_go_out_once_a_step(model, tolerant):
    step = SimpleNamespace(now=0)
    sampler = EngineSampler(Says([[5, 1]] * 4, -5.5), lambda: step.now)
    for step.now in (0, 0, 1, 1, 2):
        sampler(model, encoded_by(model), SETTINGS)
    assert sampler.engine.syncs == 3


def test_the_models_mode_and_gradients_are_left_alone(model, tolerant):
    model.train()
    EngineSampler(Says([[5, 1]] * 4, -5.5), lambda: 0)(model, encoded_by(model), SETTINGS)
    assert model.training
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_samples_have_the_models_distribution(world, tmp_path, monkeypatch):  # noqa: F811
    """2,000 samples of one prompt against the exact probabilities of all 26 warmups, the adapter being on."""
    wrapped, tokenizer = world
    folder = tmp_path / "base"
    with wrapped.disable_adapter():
        base = wrapped.get_base_model()
    names = {name.replace(".base_layer", ""): x for name, x in base.state_dict().items() if "lora" not in name}
    type(base)(base.config).save_pretrained(folder, state_dict=names)
    vllm_double.install(monkeypatch, str(folder))
    base.name_or_path = str(folder)
    trainer = build_trainer((wrapped, tokenizer), tmp_path, "jensen", use_vllm=True)
    sampling = dataclasses.replace(trainer.sampling, num_warmups=2000)
    encoded = PlainRows(wrapped, wrapped, left_padded([PROMPT], wrapped.device))
    found = trainer.source.sampler(wrapped, encoded, sampling)
    with torch.no_grad():
        known = quantities(wrapped)
    sampled = zip(found.ids[0].tolist(), found.num_decisions[0].tolist(), found.lengths[0].tolist())
    counts = torch.zeros(len(OUTCOMES))
    for ids, decided, length in sampled:
        counts[OUTCOMES.index((tuple(ids[:decided]), length))] += 1
    expected = known.logp.double().exp()
    assert chisquare(counts.numpy(), (expected / expected.sum() * 2000).numpy()).pvalue > 1e-3


def test_own_scores_are_those_that_the_models_loop_samples_with(model):
    from warmup_peft.method.sampling import WarmupSampler

    for settings in (SETTINGS, dataclasses.replace(SETTINGS, temperature=0.6, top_k=5, top_p=0.9)):
        warmups = WarmupSampler()(model, encoded_by(model), settings)
        with torch.no_grad():
            torch.testing.assert_close(sampled_logps(encoded_by(model), warmups, settings), warmups.logp,
                                       atol=1e-4, rtol=1e-4)  # fmt: skip


# ---- The pool of the base ----

POOL = {"use_vllm": True, "warmup_source": "base", "warmup_pool_size": 6, "warmup_anchor": 0.3, "objective": "warmup"}


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_vllm_fills_the_pool_with_the_bases_samples(monkeypatch, model_folder, tokenizer, lora, tmp_path, mode):
    vllm_double.install(monkeypatch, model_folder)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, vllm_mode=mode, **POOL)
    randomise_adapter(trainer.model)
    pool = trainer.fill_warmup_pool()  # which compares with the model, its adapter off
    rows = rows_in(pool.folder)
    assert len(rows) == len(trainer.train_dataset)
    assert all(sum(row["counts"]) == 6 for row in rows)
    assert any(len(row["counts"]) > 2 for row in rows)  # copies of a prompt have samples of their own
    trainer.train()
    assert "warmups/engine_difference" not in trainer.state.log_history[-1]


def test_a_servers_pool_is_the_same_for_the_same_seed(monkeypatch, model_folder, tokenizer, lora, tmp_path):
    vllm_double.install(monkeypatch, model_folder)
    pools = []
    for name in "ab":
        trainer = make_trainer(model_folder, tmp_path / name, tokenizer, peft_config=lora, vllm_mode="server", **POOL)
        pools.append(rows_in(trainer.fill_warmup_pool().folder))
    assert pools[0] == pools[1]


def test_a_server_with_other_weights_is_refused(monkeypatch, model_folder, tokenizer, lora, tmp_path):
    vllm_double.install(monkeypatch, model_folder)
    monkeypatch.setattr(vllm_double.LLM, "noise", 3.0)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, vllm_mode="server", **POOL)
    with pytest.raises(ValueError, match="log-probabilities differ from this base model's"):
        trainer.fill_warmup_pool()


def test_other_arithmetic_shows_in_the_metrics(monkeypatch, model_folder, tokenizer, lora, tmp_path):
    vllm_double.install(monkeypatch, model_folder)
    monkeypatch.setattr(vllm_double.LLM, "noise", 0.1)
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, use_vllm=True, objective="jensen",
                           logging_steps=1)  # fmt: skip
    trainer.train()
    logs = trainer.state.log_history[0]
    assert 0.01 < logs["warmups/engine_difference"] < 0.3
    assert logs["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, 2.0),
        ({"vllm_importance_sampling_clip_max": 1.5}, 0.0),
        ({"vllm_importance_sampling_clip_max": 1.5, "vllm_importance_sampling_mode": "sequence_truncate"}, 1.5),
        ({"vllm_importance_sampling_correction": False}, 1.0),
    ],
)
def test_the_trainer_weighs_warmups_by_their_ratio(model_folder, tokenizer, lora, tmp_path, settings, factor):
    """Every warmup twice as likely under the model as under the engine that sampled it."""
    trainer = make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, objective="jensen", **settings)
    randomise_adapter(trainer.model)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    sample, gradients = trainer.sample_warmups, []
    for log_ratio in (None, torch.full((len(trainer.train_dataset), 3), 2.0).log()):

        def sampled(model, encoded, log_ratio=log_ratio):
            torch.manual_seed(0)
            return sample(model, encoded)._replace(log_ratio=log_ratio)

        trainer.sample_warmups = sampled
        loss = trainer.compute_loss(trainer.model, dict(batch))
        weights = [x for x in trainer.model.parameters() if x.requires_grad]
        gradients.append(torch.cat([x.flatten() for x in torch.autograd.grad(loss, weights)]))
    torch.testing.assert_close(gradients[1], factor * gradients[0])


# ---- Refusals ----


def config(**settings):
    settings = {"use_vllm": True, "learn_separator": False, "bf16": False, "report_to": "none", **settings}
    return WarmupSFTConfig("run", **settings)


def test_without_vllm_one_sentence_stands_before_the_model_is_loaded(monkeypatch, model_folder, tokenizer, tmp_path):
    monkeypatch.setattr(engine_module, "is_vllm_available", lambda: False)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match=r"use_vllm needs the package vllm. Install it \(`pip install trl\[vllm\]`\)"):
        make_trainer(model_folder, tmp_path, tokenizer, use_vllm=True)


@pytest.mark.parametrize(
    ("settings", "quantization", "words"),
    [
        ({"learn_separator": True, "temperature": 0.7}, None, "all end tokens are one event"),
        ({"learn_separator": True, "top_k": 9}, None, "all end tokens are one event"),
        ({"learn_separator": True, "warmup_source": "base"}, None, "all end tokens are one event"),
        ({}, {"load_in_4bit": True}, "a quantised base would be rounded anew at every step"),
    ],
)
def test_what_vllm_cannot_serve_is_refused(monkeypatch, settings, quantization, words):
    monkeypatch.setattr(engine_module, "is_vllm_available", lambda: True)
    with pytest.raises(ValueError, match=words):
        check_engine(config(**settings), SimpleNamespace(), quantization)


def test_several_processes_cannot_fill_a_pool(monkeypatch):
    monkeypatch.setattr(engine_module, "is_vllm_available", lambda: True)
    monkeypatch.setattr(WarmupSFTConfig, "world_size", 2)
    with pytest.raises(ValueError, match="Fill it first in one"):
        check_engine(config(warmup_source="base"), SimpleNamespace())


@pytest.mark.parametrize(
    "settings", [{"learn_separator": True}, {"temperature": 0.7, "top_k": 9}, {"use_vllm": False}]
)
def test_what_vllm_can_serve_is_not_refused(monkeypatch, settings):
    monkeypatch.setattr(engine_module, "is_vllm_available", lambda: True)
    check_engine(config(**settings), SimpleNamespace())
