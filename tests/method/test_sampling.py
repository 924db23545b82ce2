"""What is sampled: ends of warmups, the distribution, and that decoding from kept keys and values changes nothing."""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager

import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, set_seed

from warmup_peft.method.branches import Tokens
from warmup_peft.method.model import evaluation_mode, random_numbers_from
from warmup_peft.method.prefix import SharedPrefix, install
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler, end_warmups

SETTINGS = SamplingSettings(num_warmups=3, max_length=5, end_token_ids=(1,), separator_ids=(8, 9), pad_token_id=0)


@pytest.fixture
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture
def prompt() -> Tokens:
    ids = torch.tensor([[0, 0, 0, 30, 31], [32, 33, 34, 35, 36], [0, 0, 0, 0, 37]])
    return Tokens(ids, ids != 0)


def test_warmups_end_at_the_first_end_token_or_separator():
    sampled = torch.tensor([[[5, 1, 0, 0, 0], [5, 6, 8, 9, 7], [8, 5, 9, 6, 7], [1, 8, 9, 0, 0], [5, 6, 7, 5, 1]]])
    warmups = end_warmups(sampled, SETTINGS)
    assert warmups.lengths.tolist() == [[1, 2, 5, 0, 4]]
    assert warmups.num_decisions.tolist() == [[2, 4, 5, 1, 5]]  # the end token, the separator's two, none, ...
    assert warmups.stopped.tolist() == [[True, True, False, True, True]]


def test_a_separator_longer_than_the_warmup_cannot_end_it():
    settings = dataclasses.replace(SETTINGS, separator_ids=(8, 9, 8, 9))
    assert end_warmups(torch.tensor([[[8, 9, 8]]]), settings).lengths.tolist() == [[3]]


@pytest.mark.parametrize("kind", ["plain", "shared"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_same_seed_same_warmups_as_generate_from_the_whole_prompt(model, prompt, kind, num_beams):
    settings = dataclasses.replace(SETTINGS, num_beams=num_beams)
    model.generation_config = settings.generation_config()
    set_seed(0)
    with torch.no_grad():
        expected = model.eval().generate(input_ids=prompt.ids, attention_mask=prompt.mask.long())
    if kind == "shared":
        install(model)
    encoded = (PlainRows if kind == "plain" else SharedPrefix)(model, model, prompt)
    set_seed(0)
    warmups = WarmupSampler()(model, encoded, settings)
    width = warmups.ids.size(-1)
    assert torch.equal(warmups.ids.flatten(0, 1), expected[:, 5 : 5 + width])


def test_sampling_leaves_the_model_as_it_was(model, prompt):
    """Training mode, generation defaults; and a chat model's own defaults stay out of it."""
    model.train()
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.01
    before = model.generation_config.to_dict()
    set_seed(0)
    warmups = WarmupSampler()(model, PlainRows(model, model, prompt), dataclasses.replace(SETTINGS, num_warmups=8))
    assert model.training
    assert model.generation_config.to_dict() == before
    assert len({tuple(row) for row in warmups.ids[0].tolist()}) > 1  # at temperature 0.01 all would be equal


def test_an_inner_block_does_not_wake_what_an_outer_one_put_to_sleep(model):
    """The wrapper around a model (peft's, say) may still be in training mode while the model itself is evaluated."""
    wrapper = torch.nn.Sequential(model).train()
    with evaluation_mode(model):
        with evaluation_mode(wrapper):
            assert not model.training
        assert not model.training
        assert wrapper.training
    assert all(module.training for module in wrapper.modules())


def test_training_mode_comes_back_after_an_error(model):
    model.train()
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert model.training


def test_first_tokens_follow_the_models_law(model, prompt):
    """Chi-square over the likeliest tokens, 4,000 samples."""
    settings = dataclasses.replace(SETTINGS, num_warmups=4000, max_length=1)
    single = Tokens(prompt.ids[1:2], prompt.mask[1:2])
    set_seed(0)
    first = WarmupSampler()(model, PlainRows(model, model, single), settings).ids[0, :, 0]
    with torch.no_grad():
        probabilities = model(single.ids).logits[0, -1].softmax(-1)
    likely = (probabilities * 4000 > 10).nonzero().flatten()
    assert len(likely) >= 3
    counts = torch.stack([(first == token).sum() for token in likely])
    observed = [*counts.tolist(), 4000 - int(counts.sum())]
    expected = [*(probabilities[likely] * 4000).tolist(), (1 - probabilities[likely].sum()).item() * 4000]
    scale = sum(observed) / sum(expected)
    assert chisquare(observed, [value * scale for value in expected]).pvalue > 0.001


def test_a_draws_log_probability_is_that_of_the_law_it_was_drawn_from():
    """p = 0.5, 0.3, 0.15, 0.05; top_k 3 and then top_p 0.8 leave the first two: 5/8 and 3/8."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for settings, expected in (
        ({}, [0.5, 0.3]),
        ({"top_k": 3}, [0.5 / 0.95, 0.3 / 0.95]),
        ({"top_k": 3, "top_p": 0.8}, [5 / 8, 3 / 8]),
        ({"min_p": 0.5}, [5 / 8, 3 / 8]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365]),
    ):
        settings_now = dataclasses.replace(SETTINGS, **settings)
        found = torch.cat([settings_now.logps(logits, torch.tensor([token])) for token in (0, 1)]).exp()
        torch.testing.assert_close(found, torch.tensor(expected))


def test_a_drawn_token_is_never_outside_its_law():
    logits = torch.tensor([[0.6, 0.4]]).log()
    logp = dataclasses.replace(SETTINGS, top_k=1).logps(logits, torch.tensor([1]))
    assert logp.exp().item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", {"devices": []}),
        ("cuda:1", {"devices": [1], "device_type": "cuda"}),
        ("mps", {"devices": [0], "device_type": "mps"}),
        ("xpu:2", {"devices": [2], "device_type": "xpu"}),
    ],
)
def test_random_numbers_are_put_back_on_every_kind_of_device(monkeypatch, device, expected):
    asked = []

    @contextmanager
    def fork_rng(**options):
        asked.append(options)
        yield

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    with random_numbers_from(0, torch.device(device)):
        pass
    assert asked == [expected]


# ---- A separator that the model learns to write ----

LEARNT = dataclasses.replace(SETTINGS, end_token_ids=(1, 3, 8), closing_id=8)


def probabilities(*values: float) -> torch.Tensor:
    """(1, 10) logits of tokens 0 to 9; the other probability is token 5's."""
    p = torch.full((1, 10), 1e-12)
    p[0, [1, 3, 8]] = torch.tensor(values)
    p[0, 5] = 1 - sum(values)
    return p.log() + 2.0  # logits are free up to a constant


def test_ending_is_one_event():
    logits = probabilities(0.2, 0.1, 0.3)
    merged = LEARNT.with_one_end(logits).softmax(-1)[0]
    assert merged[[1, 3, 8, 5]].tolist() == pytest.approx([0, 0, 0.6, 0.4], abs=1e-6)
    assert LEARNT.end_probabilities(logits).item() == pytest.approx(0.6)
    every = [LEARNT.logps(logits, torch.tensor([token])).exp().item() for token in (1, 3, 8)]
    assert every == pytest.approx([0.6] * 3)  # whichever way another sampler ended
    sampled = torch.cat([LEARNT.sample(logits)[0] for _ in range(200)])
    assert set(sampled.flatten().tolist()) == {5, 8}
    assert torch.equal(SETTINGS.with_one_end(logits), logits)


def test_the_closing_token_takes_the_end_tokens_place_by_hand():
    """e log P(closing) + (1 - e) log(1 - P(end)), with e = 0, 1, 0.25."""
    logits = probabilities(0.2, 0.1, 0.3).expand(3, -1)
    found = LEARNT.ending_logps(logits, torch.tensor([0.0, 1.0, 0.25]))
    going_on, closing = math.log(0.4), math.log(0.3)
    assert found.tolist() == pytest.approx([going_on, closing, 0.75 * going_on + 0.25 * closing])


def test_the_best_end_is_the_bases_end_by_the_closing_token():
    """Minimised where P(closing) is the base's probability of ending, and no other token ends."""
    base, logits = torch.tensor([0.3]), torch.randn(1, 10, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        (-LEARNT.ending_logps(logits, base)).sum().backward()
        optimizer.step()
    p = logits.detach().softmax(-1)[0]
    assert p[8].item() == pytest.approx(0.3, abs=0.01)
    assert p[[1, 3]].sum().item() < 0.01


def test_the_check_of_a_way_makes_no_more_logits_than_a_piece(model, prompt, monkeypatch):
    """The samples of long warmups are scored again in pieces."""
    monkeypatch.setattr("warmup_peft.method.predictions.PIECE", 7 * model.config.vocab_size)
    settings = dataclasses.replace(SETTINGS, max_length=20)
    rows = []
    model.lm_head.register_forward_hook(lambda _, args, output: rows.append(output.shape[:-1].numel()))
    WarmupSampler()(model, PlainRows(model, model, prompt), settings)
    assert max(rows) <= len(prompt.ids) * settings.num_warmups
