"""The page of equations, with numbers that a reader can solve."""

from __future__ import annotations

import math

import pytest
import torch

from warmup_peft.method.objective import divergence, token_logps, warmup_loss


def test_loss_is_the_mean_over_warmups_and_the_sum_over_examples():
    """x1: -(-1 - 3) / 2 = 2; x2: -(-2 - 4) / 2 = 3; together 5."""
    logp_BK = torch.tensor([[-1.0, -3.0], [-2.0, -4.0]])
    assert warmup_loss(logp_BK).item() == pytest.approx(5.0)


def test_anchor_adds_beta_times_the_mean_divergence():
    """5 + 0.5 * ((2 + 4) / 2 + (0 + 6) / 2) = 5 + 0.5 * 6 = 8."""
    logp_BK = torch.tensor([[-1.0, -3.0], [-2.0, -4.0]])
    kl_BK = torch.tensor([[2.0, 4.0], [0.0, 6.0]])
    assert warmup_loss(logp_BK, None, kl_BK, beta=0.5).item() == pytest.approx(8.0)


def test_each_warmup_gets_one_kth_of_the_gradient():
    logp_BK = torch.zeros(2, 4, requires_grad=True)
    warmup_loss(logp_BK).backward()
    assert torch.equal(logp_BK.grad, torch.full((2, 4), -0.25))


def test_divergence_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2."""
    kl = divergence(torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2))
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)
    assert divergence(torch.tensor([[5.0, -5.0]]), torch.tensor([[5.0, -5.0]])).item() == 0


def test_divergence_has_no_gradient_where_the_laws_agree():
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    divergence(logits, logits.detach().clone()).sum().backward()
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_scored_in_float32(dtype):
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(5)
    expected = logits.double().log_softmax(-1)[ids, ids]
    assert token_logps(logits, ids).dtype == torch.float32
    torch.testing.assert_close(token_logps(logits, ids), expected.float())


def test_long_targets_do_not_underflow():
    """2,000 tokens at probability 1/1000 each: R = -2000 log 1000, and a finite loss."""
    logps = token_logps(torch.zeros(2000, 1000), torch.zeros(2000, dtype=torch.long))
    loss = warmup_loss(logps.sum().reshape(1, 1))
    assert loss.item() == pytest.approx(2000 * math.log(1000), rel=1e-5)
