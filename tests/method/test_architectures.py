"""Models of transformers, each in the way that its first batch chose, against one unpadded row at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import NAMES, Outcome, all_outcomes, build, logps_one_by_one, outcome_of, ragged_batch, table
from transformers import set_seed

import warmup_peft
from warmup_peft.method.branches import Branches, prefix_mask, sums_where
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.objective import token_logps
from warmup_peft.method.prefix import rope_limit
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler
from warmup_peft.method.scoring import PlainRows

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


@pytest.mark.parametrize("name", DIAGONAL)
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
    assert table(outcomes) in README.read_text(encoding="utf-8")


# ---- RoPE that looks at the length of the row ----

LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 24,
    },
    "original_max_position_embeddings": 24,
}


@pytest.fixture
def longrope() -> torch.nn.Module:
    model = build("phi3", **LONGROPE)
    for parameter in model.parameters():
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model


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
    logps = token_logps(encoded.predictions(branches, branches.mask), branches.ids[branches.mask])
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
        logps = token_logps(encoded.predictions(branches, is_sampled), warmups.ids[is_sampled])
    torch.testing.assert_close(sums_where(is_sampled, logps), warmups.logp, rtol=1e-4, atol=1e-4)
