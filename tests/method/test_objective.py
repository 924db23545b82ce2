"""The page of equations, with numbers that a reader can solve."""

from __future__ import annotations

import math

import pytest
import torch

from warmup_peft.method.objective import (
    OBJECTIVES,
    Scores,
    assign_credit,
    credit_of,
    divergence,
    hindsight_credit,
    objective_value,
    over_length,
    token_logps,
)
from warmup_peft.method.objective import warmup_loss as loss_of
from warmup_peft.settings.traits import OBJECTIVE_TRAITS


def warmup_loss(logp_BK, warmup_logp_BK=None, kl_BK=None, *, objective="warmup", beta=0.0, **shaping):
    """From scores to the loss, as the trainer goes."""
    scores = Scores(logp_BK, warmup_logp_BK, kl_BK)
    return loss_of(scores, credit_of(scores, objective, beta, **shaping), objective=objective, beta=beta)


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


def test_hindsight_weighs_by_how_much_of_the_target_was_found():
    """Nothing was found of the second target; the third is impossible where it was found. Both teach nothing."""
    logp_BK = torch.tensor([[-1.0, -9.0, -4.0], [-1.0, -2.0, -3.0], [-math.inf, -2.0, -3.0]])
    found_BK = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    weight_BK, advantage_BK = hindsight_credit(logp_BK, found_BK)
    torch.testing.assert_close(weight_BK, torch.tensor([[1 / 3, 0.0, 2 / 3], [0.0] * 3, [0.0] * 3]))
    assert not advantage_BK.any()


def test_long_targets_do_not_underflow():
    """2,000 tokens at probability 1/1000 each: R = -2000 log 1000, and a finite loss."""
    logps = token_logps(torch.zeros(2000, 1000), torch.zeros(2000, dtype=torch.long))
    loss = warmup_loss(logps.sum().reshape(1, 1))
    assert loss.item() == pytest.approx(2000 * math.log(1000), rel=1e-5)


LOG_1_2_5 = torch.tensor([[1.0, 2.0, 5.0]]).div(10).log()  # p = 0.1, 0.2, 0.5


def credit(name, logp_BK=LOG_1_2_5, penalty_BK=None):
    return [
        [pytest.approx(v, rel=1e-5) for v in x[0].tolist()]
        for x in assign_credit(logp_BK, name, penalty_BK=penalty_BK)
    ]


def test_warmup_by_hand():
    assert credit("warmup") == [[1 / 3] * 3, [0, 0, 0]]


def test_jensen_by_hand():
    """R = -1, -2, -6: the others' means are -4, -3.5, -1.5, the advantages 3/3, 1.5/3, -4.5/3."""
    assert credit("jensen", torch.tensor([[-1.0, -2.0, -6.0]])) == [[1 / 3] * 3, [1.0, 0.5, -1.5]]


def test_latro_is_jensen_with_the_penalty_in_the_reward():
    """R = -1, -2, -6 less 5, 4, 0 leaves -6 for all: nothing to prefer."""
    penalty = torch.tensor([[5.0, 4.0, 0.0]])
    assert credit("latro", torch.tensor([[-1.0, -2.0, -6.0]]), penalty) == [[1 / 3] * 3, [0, 0, 0]]


def test_verifree_by_hand():
    """p = 0.1, 0.2, 0.5: the others' means are 0.35, 0.3, 0.15."""
    assert credit("verifree") == [[0.1 / 3, 0.2 / 3, 0.5 / 3], [-0.25 / 3, -0.1 / 3, 0.35 / 3]]


def test_log_mean_exp_by_hand():
    """Mean of p 0.8/3; without one of them 0.35, 0.3, 0.15. Weights 1/8, 2/8, 5/8."""
    mean = 0.8 / 3
    advantages = [math.log(mean / 0.35), math.log(mean / 0.3), math.log(mean / 0.15)]
    assert credit("log_mean_exp") == [[1 / 8, 2 / 8, 5 / 8], advantages]


def test_posterior_by_hand():
    assert credit("posterior") == [[1 / 8, 2 / 8, 5 / 8], [1 / 8, 2 / 8, 5 / 8]]


def test_posterior_with_warmups_of_another_law_by_hand():
    """p = 1, 2, 5 tenths, sampled 1, 4 and 5 times too often: 1/1, 2/4, 5/5 leave 2/5, 1/5, 2/5."""
    log_ratio = -torch.tensor([[1.0, 4.0, 5.0]]).log()
    weight, advantage = assign_credit(LOG_1_2_5, "posterior", log_ratio_BK=log_ratio)
    assert weight[0].tolist() == pytest.approx([0.4, 0.2, 0.4])
    assert torch.equal(weight, advantage)


def test_rlpr_by_hand():
    """Rewards are gains within 0 and 1, a third each."""
    gain = torch.tensor([[0.3, -0.2, 1.5]])
    weight, advantage = assign_credit(LOG_1_2_5, "rlpr", gain_BK=gain)
    assert weight[0].tolist() == pytest.approx([1 / 3] * 3)
    assert advantage[0].tolist() == pytest.approx([0.1, 0.0, 1 / 3])


def test_normalised_advantages_by_hand():
    """1, 0.5, -1.5: mean 0, spread sqrt(3.5 / 3); a third of each over it, but for the floor of 1e-4."""
    _, advantage = assign_credit(torch.tensor([[-1.0, -2.0, -6.0]]), "jensen", normalize_advantages=True)
    spread = math.sqrt(3.5 / 3)
    assert advantage[0].tolist() == pytest.approx([x / spread / 3 for x in (1.0, 0.5, -1.5)], rel=1e-3)
    _, equal = assign_credit(torch.full((1, 3), -7.0), "jensen", normalize_advantages=True)
    assert equal.abs().max() < 1e-3


def test_clipped_advantages_by_hand():
    _, advantage = assign_credit(torch.tensor([[-1.0, -2.0, -6.0]]), "jensen", advantage_clip=0.75)
    assert advantage[0].tolist() == pytest.approx([0.75, 0.5, -0.75])


@pytest.mark.parametrize("name", [name for name, traits in OBJECTIVE_TRAITS.items() if traits.may_leave_out])
@pytest.mark.parametrize("normalize_advantages", [False, True])
def test_a_warmup_left_out_is_as_if_it_had_not_been_sampled(name, normalize_advantages):
    """Whatever its numbers are; only `rlpr` still divides its advantages by 3, where they are not normalised."""
    logp, penalty = torch.tensor([[-1.0, -40.0, -3.0]]), torch.tensor([[0.5, 9.0, 1.0]])
    gain, kl = torch.tensor([[0.3, 0.9, 0.1]]), torch.tensor([[2.0, 100.0, 4.0]])
    counts, left = torch.tensor([[True, False, True]]), [0, 2]
    shaping = {"normalize_advantages": normalize_advantages}
    weight, advantage = assign_credit(logp, name, penalty_BK=penalty, gain_BK=gain, counts_BK=counts, **shaping)
    alone = assign_credit(logp[:, left], name, penalty_BK=penalty[:, left], gain_BK=gain[:, left], **shaping)
    factor = 2 / 3 if name == "rlpr" and not normalize_advantages else 1
    assert weight[0, 1] == advantage[0, 1] == 0
    torch.testing.assert_close(weight[:, left], alone[0])
    torch.testing.assert_close(advantage[:, left], alone[1] * factor, rtol=1e-3, atol=1e-4)
    scores = Scores(logp, torch.zeros(1, 3), kl, counts_BK=counts)
    of_two = Scores(logp[:, left], torch.zeros(1, 2), kl[:, left])
    losses = [loss_of(s, credit_of(s, name, 0.5), objective=name, beta=0.5) for s in (scores, of_two)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", [name for name, traits in OBJECTIVE_TRAITS.items() if traits.may_leave_out])
@pytest.mark.parametrize("num_left", [0, 1])
def test_one_warmup_that_is_left_is_compared_with_none(name, num_left):
    counts = torch.arange(3).unsqueeze(0) < num_left
    logp, kl = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True), torch.tensor([[2.0, 3.0, 4.0]])
    scores = Scores(logp, torch.zeros(1, 3), kl, counts_BK=counts)
    weight, advantage = credit_of(scores, name, 0.5)
    expected = math.exp(-1) if name == "verifree" else 1.0
    assert weight.tolist() == [[pytest.approx(expected * num_left), 0, 0]]
    if name != "posterior":
        assert not advantage.any()
    loss = loss_of(scores, (weight, advantage), objective=name, beta=0.5)
    value = {"verifree": -math.exp(-1)}.get(name, 1.0)
    assert loss.item() == pytest.approx((value + 0.5 * 2) * num_left, abs=1e-6)
    loss.backward()
    assert logp.grad.isfinite().all()


def test_log_mean_exp_would_train_stopping_for_its_own_sake():
    with pytest.raises(ValueError, match="log_mean_exp has no unbiased estimate that leaves out"):
        assign_credit(LOG_1_2_5, "log_mean_exp", counts_BK=torch.tensor([[True, True, False]]))
    assert assign_credit(LOG_1_2_5, "log_mean_exp")[1].sum() > 0.1
    for name in ("jensen", "latro", "verifree"):
        assert assign_credit(LOG_1_2_5, name)[1].sum().item() == pytest.approx(0, abs=1e-6)


def test_hindsight_leaves_out_what_was_truncated():
    logp, found = torch.tensor([[-1.0, -9.0, -4.0]]), torch.tensor([[0.5, 0.5, 1.0]])
    weight, _ = hindsight_credit(logp, found, torch.tensor([[True, True, False]]))
    assert weight.tolist() == [[0.5, 0.5, 0.0]]


def test_advantages_over_length_by_hand():
    """W 8; 2, 4 and 6 decisions and one left out: 4 on average."""
    advantage, decisions = torch.tensor([[1.0, -1.0], [2.0, 0.0]]), torch.tensor([[2, 4], [6, 0]])
    for loss_type, factor in (("sum", 1), ("dr_grpo", 1 / 8), ("bnpo", 1 / 4)):
        torch.testing.assert_close(over_length(advantage, loss_type, decisions, 8), advantage * factor)
    assert not over_length(torch.zeros(1, 2), "bnpo", torch.zeros(1, 2, dtype=torch.long), 8).any()


def test_impossible_targets_take_no_share():
    """R = log 1/5, -inf, log 3/5: shares 1/4, 0, 3/4."""
    logp = torch.tensor([[math.log(0.2), -math.inf, math.log(0.6)]])
    for name in ("posterior", "log_mean_exp"):
        assert assign_credit(logp, name)[0][0].tolist() == pytest.approx([0.25, 0.0, 0.75])
    assert assign_credit(logp, "posterior")[1][0].tolist() == pytest.approx([0.25, 0.0, 0.75])


def test_the_value_of_the_importance_weighted_bound_by_hand():
    """log of the mean of 1/10, 1/20 and 1/10: 1/12."""
    scores = Scores(LOG_1_2_5, torch.zeros(1, 3), None, torch.tensor([[1.0, 4.0, 5.0]]).log())
    loss = loss_of(scores, credit_of(scores, "posterior", 0.0), objective="posterior")
    assert loss.item() == pytest.approx(math.log(12), rel=1e-6)


def test_the_logged_value_is_what_the_row_maximises():
    assert objective_value(LOG_1_2_5, "verifree").item() == pytest.approx(0.8 / 3)
    assert objective_value(LOG_1_2_5, "log_mean_exp").item() == pytest.approx(math.log(0.8 / 3))
    assert objective_value(LOG_1_2_5, "jensen").item() == pytest.approx(math.log(0.1 * 0.2 * 0.5) / 3)
    for name in OBJECTIVES:
        loss = warmup_loss(LOG_1_2_5, torch.zeros(1, 3), objective=name)
        assert loss.item() == pytest.approx(-objective_value(LOG_1_2_5, name).item(), rel=1e-5)


def test_the_command_line_knows_every_objective():
    assert list(OBJECTIVES) == list(OBJECTIVE_TRAITS)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_permuting_the_warmups_permutes_their_credit(name):
    logp = -torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) * 20
    order = torch.tensor([3, 1, 4, 0, 2])
    for before, after in zip(assign_credit(logp, name), assign_credit(logp[:, order], name)):
        torch.testing.assert_close(before[:, order], after)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "row",
    [
        [-math.inf, -1.0, -2.0],
        [-math.inf] * 3,
        [-14000.0, -13000.0, -12990.0],
        [-7.0, -7.0, -7.0],
        [0.0, -math.inf, -1e30],
    ],
)
def test_credit_and_loss_stay_finite(name, row):
    logp = torch.tensor([row], requires_grad=True)
    weight, advantage = assign_credit(logp, name)
    assert weight.isfinite().all()
    assert advantage.isfinite().all()
    assert not weight.requires_grad
    assert (weight[~logp.isfinite()] == 0).all()
    loss = warmup_loss(logp, torch.zeros(1, 3), objective=name)
    loss.backward()
    assert loss.isfinite()
    assert logp.grad.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_warmups_have_no_advantage_over_each_other(name):
    _, advantage = assign_credit(torch.full((2, 4), -7.0), name)
    assert torch.allclose(advantage, advantage[:, :1].expand(-1, 4))
    if name != "posterior":
        assert advantage.abs().max() < 1e-6


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(name, dtype):
    logp = torch.tensor([[-1.0, -2.0, -5.0]])
    for low, full in zip(assign_credit(logp.to(dtype), name), assign_credit(logp, name)):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, full)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_warmup_is_defined_or_refused(name):
    single = torch.tensor([[-3.0]])
    if OBJECTIVE_TRAITS[name].compares_warmups:
        with pytest.raises(ValueError, match=f"objective={name} compares warmups"):
            assign_credit(single, name)
    else:
        assert assign_credit(single, name)[0].item() == 1.0


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match="objective=jepo is unknown"):
        assign_credit(LOG_1_2_5, "jepo")
