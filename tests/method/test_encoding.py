"""Models of transformers, each in the way that its first batch chose, against one unpadded row at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import (
    NAMES,
    VOCABULARY,
    Outcome,
    all_outcomes,
    build,
    logps_one_by_one,
    outcome_of,
    ragged_batch,
    table,
)
from thinning import every
from transformers import set_seed

import warmup_peft
from warmup_peft.method import encoding
from warmup_peft.method.branches import Branches, Tokens, prefix_mask, sums_where
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.prefix import SharedPrefix, rope_limit
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler
from warmup_peft.method.ways import WAYS, from_copies

README = Path(warmup_peft.__file__).with_name("README.md")

# One of each kind: what they have in common with a Llama, and what they do otherwise.
DIAGONAL = {
    "llama": "shared",
    "gemma3_text": "shared",  # layers with and without a window
    "deepseek_v3": "shared",  # latent attention: what attention sees is not what the cache holds
    "jetmoe": "shared",
    "diffllama": "plain rows",  # attends twice a layer
    "hrm_text": "plain rows",  # runs its layers several times
    "stablelm": "plain rows",  # its layers drop keyword arguments
    "opt": "plain rows",  # dropout as a function
    "biogpt": "plain rows",
    "gemma3n_text": "plain rows",  # layers that share keys and values
    "mpt": "plain rows",  # positions by column
    "qwen3_5_text": "plain rows",  # recurrent states
    "lfm2": "plain rows",
    "jamba": "plain rows",
    "mamba": "plain rows",  # no keys at all
    "bert": "refused",  # sees what follows
}


@pytest.fixture(scope="module")
def readme_rows() -> dict[str, Outcome]:
    """Model -> what the table says of it."""
    rows = {}
    for line in README.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[1] in ("shared", "plain rows", "refused"):
            rows |= {name.strip(): Outcome(*cells[1:]) for name in cells[0].split(",")}
    return rows


@pytest.mark.parametrize("name", every(3, DIAGONAL))
def test_a_model_of_each_kind_equals_one_row_at_a_time(name, readme_rows):
    outcome = outcome_of(name)
    assert outcome.prompts == DIAGONAL[name]
    assert readme_rows[name] == outcome


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_model_of_transformers_equals_one_row_at_a_time_and_stands_in_the_readme():
    outcomes = all_outcomes()
    assert len(outcomes) > 150
    assert set(DIAGONAL) <= set(outcomes) <= set(NAMES)
    assert f"\n\n{table(outcomes)}\n" in README.read_text(encoding="utf-8")


# ---- RoPE that looks at the length of the row ----


def test_models_whose_positions_depend_on_the_length_are_known(longrope):
    assert rope_limit(longrope) == 24
    assert rope_limit(build("llama")) is None
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    assert rope_limit(build("llama", **dynamic)) == 256


@pytest.mark.parametrize("longest", [9, 20, 30])
def test_longrope_equals_one_row_at_a_time_on_both_sides_of_its_limit(longrope, longest):
    """Prompts of 1, 4 and `longest` tokens, rooms of 10: all below the limit, the longest across, or beyond it."""
    prompt, branches = ragged_batch(num_branches=2, longest=longest)
    encoder = PromptEncoder(longrope)
    encoded = encoder(longrope, prompt, branches.ids.size(-1))
    assert isinstance(encoded, PlainRows) == (longest > 9)
    logps = encoded.predictions(branches, branches.mask).logps(branches.ids[branches.mask])
    expected = logps_one_by_one(longrope, prompt, branches, branches.mask)
    torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(each.sum(), list(longrope.parameters())) for each in (logps, expected)]
    ours, theirs = (torch.cat([part.flatten() for part in each]) for each in gradients)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_samples_across_the_limit_of_longrope_have_the_probability_that_they_are_scored_with(longrope):
    """A prompt of 20 tokens and a room of 10; rows are sampled and scored as long as they may become."""
    prompt, _ = ragged_batch(num_branches=1, longest=20)
    encoded = PromptEncoder(longrope)(longrope, prompt, 10)
    settings = SamplingSettings(4, 6, end_token_ids=(), separator_ids=(5, 6), pad_token_id=0)
    set_seed(0)
    warmups = WarmupSampler()(longrope, encoded, settings)
    is_sampled = prefix_mask(warmups.num_decisions, warmups.ids.size(-1))
    branches = Branches(warmups.ids, is_sampled, is_sampled)
    with torch.no_grad():
        logps = encoded.predictions(branches, is_sampled).logps(warmups.ids[is_sampled])
    torch.testing.assert_close(sums_where(is_sampled, logps), warmups.logp, rtol=1e-4, atol=1e-4)


# ---- When the checks are made ----


def kinds_of(encoder: PromptEncoder, model: torch.nn.Module, *lengths: int, room: int = 8) -> list[type]:
    """How batches with prompts of these lengths are encoded, one after another."""
    kinds = []
    for length in lengths:
        ids = torch.arange(2 * length).view(2, length) % 100 + 7
        kinds.append(type(encoder(model, Tokens(ids, torch.ones_like(ids, dtype=torch.bool)), room)))
    return kinds


def test_a_batch_beyond_the_window_does_not_pass_for_a_check():
    """gemma3n's shared gradient is NaN; a first batch beyond the window cannot be compared."""
    model = build("gemma3n_text", sliding_window=24).train()
    assert kinds_of(PromptEncoder(model), model, 32, 11) == [PlainRows, PlainRows]


def test_a_batch_of_one_token_prompts_does_not_pass_for_a_check():
    model = build("gemma3n_text").train()
    assert kinds_of(PromptEncoder(model), model, 1, 11, room=30) == [PlainRows, PlainRows]
    model = build("roformer", initializer_range=0.1).train()
    encoder = PromptEncoder(model)
    kinds_of(encoder, model, 1)
    with pytest.raises(ValueError, match="roformer lets a token see those behind it"):
        kinds_of(encoder, model, 9)


def test_a_longer_prompt_in_a_row_that_is_no_longer_is_compared():
    model = build("llama").train()
    encoder = PromptEncoder(model)
    assert kinds_of(encoder, model, 4, room=40) == [SharedPrefix]
    assert encoder._equal_to == (4, 44)
    assert kinds_of(encoder, model, 20, room=8) == [SharedPrefix]
    assert encoder._equal_to == (20, 44)


def test_gradients_are_compared_in_little_memory(monkeypatch):
    widths = []
    gradient = encoding.gradient

    def watched(way, model, prompt, room):
        widths.append((prompt.ids.size(1), room))
        return gradient(way, model, prompt, room)

    monkeypatch.setattr(encoding, "gradient", watched)
    model = build("llama").train()
    kinds_of(PromptEncoder(model), model, 90, room=120)
    assert widths == [(64, 64)] * 3


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_float32_that_is_rounded_has_the_wider_tolerance(setting):
    """transformers switches TF32 on by this name, after which torch's older switch cannot be read any more."""
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = setting
        model = build("llama")
        assert encoding.tolerance_of(model) == (encoding.LOW_PRECISION if setting == "tf32" else encoding.FLOAT32)
    finally:
        torch.backends.fp32_precision = before


def test_8_bit_weights_have_the_wider_tolerance():
    model = build("llama")
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), False)
    assert encoding.tolerance_of(model) == encoding.LOW_PRECISION


# ---- Samples ----


def test_a_way_is_chosen_by_whole_warmups_where_they_all_end_at_once():
    """minimax cannot go on from an expanded cache; every token ends a warmup here, so a real one would not show it."""
    model = build("minimax").train()
    prompt, branches = ragged_batch(num_branches=1)
    encoded = PromptEncoder(model)(model, prompt, branches.ids.size(-1))
    settings = SamplingSettings(2, 5, end_token_ids=(*range(VOCABULARY),), separator_ids=(5, 6), pad_token_id=0)
    sampler = WarmupSampler()
    assert sampler(model, encoded, settings).lengths.max() == 0
    assert WAYS[sampler._way(model, encoded, settings)] is from_copies


@pytest.mark.parametrize("name", ["rwkv", "deepseek_v4", "llama"])
def test_beams_of_a_batch_are_those_of_its_prompts_alone(name):
    model = build(name)
    prompt, _ = ragged_batch(num_branches=1)
    settings = SamplingSettings(2, 5, (), (5, 6), pad_token_id=0, num_beams=3, do_sample=False)

    def search(prompt: Tokens) -> torch.Tensor:
        encoded = PlainRows(model, model, prompt)
        return WarmupSampler()(model, encoded, settings).ids

    together = search(prompt)
    for row, (ids, mask) in enumerate(zip(*prompt)):
        one = Tokens(ids[mask].unsqueeze(0), torch.ones(1, int(mask.sum()), dtype=torch.bool))
        assert torch.equal(together[row], search(one)[0])
