"""Scores of a batch's warmups and their gradients, against a slow reference: one unpadded row at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from warmup_peft.method.branches import Branches, Tokens, Warmups
from warmup_peft.method.prefix import SharedPrefix, install
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings
from warmup_peft.method.scoring import branch_logps, score_warmups, target_logps

SEPARATOR = (8, 9)
END = 1
SAMPLING = SamplingSettings(
    num_warmups=3, max_length=3, end_token_ids=(END,), separator_ids=SEPARATOR, pad_token_id=0, temperature=0.7
)
PROMPTS = [[30, 31], [32, 33, 34, 35]]
TARGETS = [[40, 41, 42], [43, 44]]
# of each prompt: ids with their end, length; the first prompt has one of them twice
WARMUPS = [
    [([50, 51, END], 2), ([50, 51, END], 2), ([52, 53, 54], 3)],
    [([END], 0), ([55, END], 1), ([56, 57, 58], 3)],
]


@pytest.fixture
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def padded(rows, left=False) -> Tokens:
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads)])
    return Tokens(ids, ids != 0)


PROMPT, TARGET = padded(PROMPTS, left=True), padded(TARGETS)
SAMPLED = Warmups(
    torch.tensor([[ids + [0] * (3 - len(ids)) for ids, _ in row] for row in WARMUPS]),
    torch.tensor([[length for _, length in row] for row in WARMUPS]),
    torch.tensor([[len(ids) for ids, _ in row] for row in WARMUPS]),
)


def logits_of(model, context: list[int], continuation: list[int]) -> torch.Tensor:
    """(length of the continuation, V) logits of its predictions."""
    return model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]


def logps_of(model, context, continuation, temperature=1.0) -> torch.Tensor:
    logp = (logits_of(model, context, continuation) / temperature).log_softmax(-1)
    return logp.gather(1, torch.tensor(continuation).unsqueeze(1)).flatten()


def loop(of) -> torch.Tensor:
    """(B, K) `of` prompt, sampled ids, warmup ids, target."""
    return torch.stack(
        [
            torch.stack([of(PROMPTS[b], ids, ids[:length], TARGETS[b]) for ids, length in row])
            for b, row in enumerate(WARMUPS)
        ]
    )


def slow_reference(model, reference, kl_from_reference=True) -> dict[str, torch.Tensor]:
    def target_of(prompt, warmup, target):
        return logps_of(model, prompt + warmup + list(SEPARATOR), target)

    def kl(prompt, ids, *_):
        own, other = (logits_of(each, prompt, ids).log_softmax(-1) for each in (model, reference))
        first, second = (other.detach(), own) if kl_from_reference else (own, other.detach())
        return (first.exp() * (first - second)).sum()

    def gain(prompt, _, warmup, target):
        with_it, without = (target_of(prompt, x, target).exp().mean() for x in (warmup, []))
        return (with_it - without).detach()

    def entropy(prompt, _, warmup, target):
        logp = logits_of(model, prompt + warmup + list(SEPARATOR), target).log_softmax(-1)
        return -(logp.exp() * logp).sum().detach()

    return {
        "target_logp_BK": loop(lambda prompt, _, warmup, target: target_of(prompt, warmup, target).sum()),
        "warmup_logp_BK": loop(lambda prompt, ids, *_: logps_of(model, prompt, ids, temperature=0.7).sum()),
        "kl_BK": loop(kl),
        "gain_BK": loop(gain),
        "entropy_BK": loop(entropy),
    }


def gradient_of(model, scores: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a sum in which every score has a weight of its own."""
    values = torch.cat([x.flatten() for x in scores.values() if x.requires_grad])
    model.zero_grad()
    (values * torch.arange(1, len(values) + 1).cos()).sum().backward()
    return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters())])


@pytest.mark.parametrize("kl_from_reference", [True, False])
@pytest.mark.parametrize("rows_of_a_piece", [2, 1000])
@pytest.mark.parametrize("kind", [PlainRows, SharedPrefix])
def test_scores_and_gradients_equal_the_slow_reference(
    model, model_folder, kind, rows_of_a_piece, kl_from_reference, monkeypatch
):
    monkeypatch.setattr("warmup_peft.method.predictions.PIECE", rows_of_a_piece * model.config.vocab_size)
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.3)
    expected = slow_reference(model, reference, kl_from_reference)
    expected_gradient = gradient_of(model, expected)
    if kind is SharedPrefix:
        install(model)

    def reference_predictions(branches, predicted):
        with torch.no_grad():
            return PlainRows(reference, reference, PROMPT).predictions(branches, predicted)

    scores = score_warmups(
        kind(model, model, PROMPT), SAMPLED, TARGET, SAMPLING,
        with_warmup_logp=True, with_kl=True, kl_from_reference=kl_from_reference, with_gain=True,
        reference=reference_predictions,
    )._asdict()  # fmt: skip
    found = {name: scores[name] for name in expected}
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    assert (gradient_of(model, found) - expected_gradient).norm() < 1e-5 * expected_gradient.norm()
    assert scores["source_logp_BK"] is None


def test_what_is_not_asked_for_is_not_measured(model):
    scores = score_warmups(PlainRows(model, model, PROMPT), SAMPLED, TARGET, SAMPLING)
    assert (scores.warmup_logp_BK, scores.kl_BK, scores.gain_BK, scores.source_logp_BK) == (None,) * 4


def test_the_anchor_of_another_distributions_samples_is_the_sampled_log_ratio(model):
    source = torch.tensor([[-3.0, -3.0, -5.0], [-1.0, -2.0, -6.0]])
    encoded = PlainRows(model, model, PROMPT)
    scores = score_warmups(encoded, SAMPLED, TARGET, SAMPLING, with_kl=True, source_logp_BK=source)
    expected = loop(lambda prompt, ids, *_: logps_of(model, prompt, ids, temperature=0.7).sum())
    torch.testing.assert_close(scores.kl_BK, source - expected, rtol=1e-4, atol=1e-5)


def test_equal_warmups_are_scored_once(model):
    seen = []
    encoded = PlainRows(model, model, PROMPT)
    predictions = encoded.predictions
    encoded.predictions = lambda branches, predicted: seen.append(branches) or predictions(branches, predicted)
    same = Warmups(*(x[:, :1].expand(-1, 3, *x.shape[2:]) for x in SAMPLED[:3]))
    scores = score_warmups(encoded, same, TARGET, SAMPLING)
    assert [branches.ids.size(1) for branches in seen] == [1]
    assert torch.equal(scores.target_logp_BK, scores.target_logp_BK[:, :1].expand(-1, 3))


def test_target_tokens_that_are_the_likeliest_are_counted(model):
    """The greedy continuation is right everywhere, any other token nowhere."""
    context = torch.tensor([PROMPTS[0] + list(SEPARATOR)])
    best = model.generate(context, max_new_tokens=3, min_new_tokens=3, do_sample=False)[:, context.size(1) :]
    nothing = Warmups(torch.zeros(1, 1, 0, dtype=torch.long), *(torch.zeros(1, 1, dtype=torch.long),) * 2)
    encoded = PlainRows(model, model, Tokens(PROMPT.ids[:1], PROMPT.mask[:1]))
    for target, expected in ((best, 3), (torch.cat([best[:, :2], best[:, 2:] + 1], dim=1), 2)):
        tokens = Tokens(target, torch.ones_like(target, dtype=torch.bool))
        assert score_warmups(encoded, nothing, tokens, SAMPLING).correct_BK.tolist() == [[expected]]


def test_sums_along_branches(model):
    encoded = PlainRows(model, model, PROMPT)
    found = target_logps(encoded, SAMPLED, TARGET, SEPARATOR)
    expected = loop(lambda prompt, _, warmup, target: logps_of(model, [*prompt, *warmup, *SEPARATOR], target).sum())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad
    ids = torch.tensor([[[60, 61]], [[62, 63]]])
    second = torch.tensor([[[False, True]], [[False, True]]])
    logps = branch_logps(encoded, Branches(ids, torch.ones_like(second), second), second)
    expected = torch.stack([logps_of(model, prompt, row)[1:] for prompt, row in zip(PROMPTS, ids[:, 0].tolist())])
    torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-5)
