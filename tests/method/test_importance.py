"""Samples of another engine, weighed: the exact gradient by listing all pairs of samples, and what bounds do to it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from warmup_peft.method.importance import RatioBounds, corrected, with_source
from warmup_peft.method.objective import OBJECTIVES, Scores, credit_of, warmup_loss
from warmup_peft.settings.traits import OBJECTIVE_TRAITS

N, BETA = 5, 0.4
ALL = RatioBounds()


class World:
    """Five warmups. P, R and KL share parameters; the engine's Q is P with other arithmetic, here a lot of it."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.parameters = normal(6).requires_grad_()
        self.maps = [normal(N, 6) for _ in range(4)]
        with torch.no_grad():
            self.engine_logp = (self.logp() + 0.7 * normal(N)).log_softmax(0)

    def logp(self):
        return (self.maps[0] @ self.parameters).log_softmax(0)

    def quantities(self):
        """log P, R, KL and the probability gained of every warmup, with gradient."""
        reward = -torch.nn.functional.softplus(self.maps[1] @ self.parameters)
        kl = torch.nn.functional.softplus(self.maps[2] @ self.parameters)
        return self.logp(), reward, kl, torch.sigmoid(self.maps[3] @ self.parameters).detach() / 2

    def gradient(self, loss):
        (gradient,) = torch.autograd.grad(loss, self.parameters)
        return gradient

    def exact(self, name):
        logp, reward, kl, gain = self.quantities()
        p, anchor = logp.exp(), BETA * (logp.exp().detach() * kl).sum()
        if name == "posterior":
            q, joint = self.engine_logp.exp(), reward + logp - self.engine_logp
            bound = torch.logaddexp(joint[:, None], joint[None, :]) - math.log(2)
            return self.gradient(-(q[:, None] * q[None, :] * bound).sum() + anchor)
        if name == "log_mean_exp":
            bound = torch.logaddexp(reward[:, None], reward[None, :]) - math.log(2)
            return self.gradient(-(p[:, None] * p[None, :] * bound).sum() + anchor)
        maximised = {
            "warmup": lambda: (p.detach() * reward).sum() - anchor,
            "jensen": lambda: (p * reward).sum() - anchor,
            "latro": lambda: (p * (reward - BETA * kl)).sum(),
            "verifree": lambda: (p * reward.exp()).sum() - anchor,
            "rlpr": lambda: (p.detach() * reward).sum() + (p * gain).sum() - anchor,
        }
        return self.gradient(-maximised[name]())

    def expected(self, name, bounds=ALL, correct=True):
        """The estimate's gradient from two samples of Q, averaged over all pairs."""
        q, total = self.engine_logp.exp(), 0.0
        for pair in itertools.product(range(N), repeat=2):
            logp_BK, reward_BK, kl_BK, gain_BK = (x[list(pair)].unsqueeze(0) for x in self.quantities())
            log_ratio_BK = logp_BK.detach() - self.engine_logp[list(pair)]
            scores = Scores(reward_BK, logp_BK, kl_BK, gain_BK=gain_BK)
            if correct:
                scores = with_source(scores, log_ratio_BK, name)
            credit = credit_of(scores, name, BETA)
            if correct:
                scores, credit = corrected(scores, credit, log_ratio_BK, name, bounds)
            loss = warmup_loss(scores, credit, objective=name, beta=BETA)
            total = total + q[list(pair)].prod() * self.gradient(loss)
        return total


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_the_models_own_samples(world, name):
    exact = world.exact(name)
    assert (world.expected(name) - exact).norm() < 1e-5 * exact.norm()  # credit is in float32
    assert (world.expected(name, correct=False) - exact).norm() > 1e-2 * exact.norm()


@pytest.mark.parametrize("masks", [False, True])
def test_bounds_that_no_ratio_reaches_change_nothing(world, masks):
    wide = RatioBounds(1e-9, 1e9, masks)
    assert torch.allclose(world.expected("jensen", wide), world.expected("jensen"))


@pytest.mark.parametrize("name", ["jensen", "log_mean_exp"])
@pytest.mark.parametrize("masks", [False, True])
def test_bounds_that_are_reached_cost_a_bias(world, name, masks):
    exact = world.exact(name)
    assert (world.expected(name, RatioBounds(None, 1.1, masks)) - exact).norm() > 1e-2 * exact.norm()


def test_a_ratio_of_each_where_that_of_all_belongs_is_caught(world, monkeypatch):
    monkeypatch.setitem(OBJECTIVE_TRAITS, "log_mean_exp", OBJECTIVE_TRAITS["jensen"])
    exact = world.exact("log_mean_exp")
    assert (world.expected("log_mean_exp") - exact).norm() > 1e-2 * exact.norm()


def test_bounds_clip_or_leave_out():
    ratios = torch.tensor([0.1, 0.5, 1.0, 4.0])
    expected = {(0.2, 2.0, False): [0.2, 0.5, 1.0, 2.0], (0.2, 2.0, True): [0.0, 0.5, 1.0, 0.0]}
    expected |= {(None, 2.0, True): [0.1, 0.5, 1.0, 0.0], (0.2, None, False): [0.2, 0.5, 1.0, 4.0]}
    for bounds, after in expected.items():
        torch.testing.assert_close(RatioBounds(*bounds).ratio(ratios.log()), torch.tensor(after))
