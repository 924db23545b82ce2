"""Every objective's gradient against the exact one, by listing all warmups of a tiny world.

Two words, a separator and a stop; W = 2: 10 warmups, 100 pairs of them. The average of the trainer's own
gradient over all pairs, weighted by their probability, must be the gradient of the exact objective by autograd.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from folders import relative_difference
from tiny_world import OUTCOMES, PROMPT, SEPARATOR, STOP, TARGET, build_trainer, quantities
from torch import Tensor

from warmup_peft.method import objective as objective_page
from warmup_peft.method.branches import Warmups
from warmup_peft.settings.traits import objectives_with

BETA = 0.5
FAR = 2e-3  # relative; what is exact is nearer than 1e-5
STOPPED = torch.tensor([len(outcome.sampled) > outcome.length for outcome in OUTCOMES])
ALL = torch.ones_like(STOPPED)


def drawn_warmups(pair: tuple[int, int], logp: Tensor) -> Warmups:
    outcomes = [OUTCOMES[i] for i in pair]
    ids = torch.tensor([[[*outcome.sampled, STOP][:2] for outcome in outcomes]])
    lengths = torch.tensor([[outcome.length for outcome in outcomes]])
    num_decisions = torch.tensor([[len(outcome.sampled) for outcome in outcomes]])
    return Warmups(ids, lengths, num_decisions, logp[list(pair)].unsqueeze(0))


def flat_gradient(model, loss: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()


def probability_without_a_warmup(model) -> Tensor:
    with torch.no_grad():
        probabilities = model(torch.tensor([[*PROMPT, SEPARATOR, *TARGET]])).logits[0, -3:-1].softmax(-1)
    return (probabilities[0, TARGET[0]] + probabilities[1, TARGET[1]]) / 2


def exact_objective(name: str, model, beta: float, among: Tensor = ALL) -> Tensor:
    """Over the outcomes `among` which samples are, whatever P says of the others."""
    known = quantities(model)
    assert known.logp.exp().sum().item() == pytest.approx(1.0, abs=1e-5)  # all outcomes are listed
    logp, reward, kl, token_prob, base_logp = (x[among] for x in known)
    p = logp.softmax(0)
    if name == "warmup":
        return (p.detach() * reward).sum()
    if name == "jensen":
        return (p * reward).sum()
    if name == "latro":
        return (p * (reward - beta * kl)).sum()
    if name == "verifree":
        return (p * reward.exp()).sum()
    if name == "rlpr":
        gain = (token_prob.detach() - probability_without_a_warmup(model)).clamp(0, 1)
        return (p.detach() * reward).sum() + (p * gain).sum()
    if name == "posterior":  # the same bound with the model's present distribution, held fixed, for Q
        name, base_logp = "posterior from the base", logp.detach()
    if name in ("warmup from the base", "posterior from the base"):
        q = base_logp.softmax(0)
        anchor = beta * (q * (base_logp - logp)).sum()  # KL(base || model)
        if name == "warmup from the base":
            return (q * reward).sum() - anchor
        joint = reward + logp - base_logp
        bound = torch.logaddexp(joint[:, None], joint[None, :]) - torch.tensor(2.0).log()
        return (q[:, None] * q[None, :] * bound).sum() - anchor
    pairs = torch.logaddexp(reward[:, None], reward[None, :]) - torch.tensor(2.0).log()
    return (p[:, None] * p[None, :] * pairs).sum()


def expected_gradient(
    trainer, change=lambda warmups: warmups, num_stopped: int | None = None, logp: Tensor | None = None
) -> Tensor:
    """The trainer's gradient, averaged over all pairs, or over those of which so many stopped.

    Pairs are exchangeable, so each unordered one is seen once.

    Args:
        logp: of what samples; by default of the trainer's source.
    """
    model = trainer.model
    model.train()
    with torch.no_grad():
        known = quantities(model)
    if logp is None:
        logp = known.base_logp if trainer.args.warmup_source == "base" else known.logp
    p = logp.exp().double()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    total = weights = 0.0
    for i, j in itertools.combinations_with_replacement(range(len(OUTCOMES)), 2):
        if num_stopped not in (None, int(STOPPED[i]) + int(STOPPED[j])):
            continue
        warmups = change(drawn_warmups((i, j), logp))
        trainer.sample_warmups = lambda *_, warmups=warmups: warmups
        weight = p[i] * p[j] * (1 if i == j else 2)
        total = total + weight * flat_gradient(model, trainer.compute_loss(model, dict(batch)))
        weights += weight
    return total / weights


def exact_gradient(name: str, model, beta: float, among: Tensor = ALL) -> Tensor:
    return flat_gradient(model, -exact_objective(name, model, beta, among) / len(TARGET))


A_DIAGONAL = [
    ("warmup", 0.0),
    ("log_mean_exp", 0.0),
    ("latro", BETA),
    ("posterior from the base", BETA),
]
THE_OTHERS = [  # in `make test-slow`
    ("jensen", 0.0),
    ("verifree", 0.0),
    ("rlpr", 0.0),
    ("posterior", 0.0),
    ("warmup from the base", BETA),
    ("posterior from the base", 0.0),
]


def test_no_objective_is_left_out():
    names = {name.partition(" ")[0] for name, _ in (*A_DIAGONAL, *THE_OTHERS)}
    assert names == set(objective_page.OBJECTIVES)


@pytest.mark.parametrize(
    ("name", "beta"), [*A_DIAGONAL, *(pytest.param(*other, marks=pytest.mark.slow) for other in THE_OTHERS)]
)
def test_average_over_all_pairs_is_the_exact_gradient(world, tmp_path, name, beta):
    objective, _, source = name.partition(" from the ")
    trainer = build_trainer(world, tmp_path, objective, beta, warmup_source=source or "policy")
    assert relative_difference(expected_gradient(trainer), exact_gradient(name, trainer.model, beta)) < 1e-5


# ---- Truncated warmups left out: 6 of the 10 stop within W ----

MASKED = [("latro", BETA), ("posterior from the base", BETA)]
THE_OTHERS_MASKED = [
    ("warmup", BETA),
    ("jensen", 0.0),
    ("verifree", 0.0),
    ("posterior", 0.0),
    ("warmup from the base", BETA),
]


def test_no_objective_that_leaves_out_warmups_is_forgotten():
    names = {name.partition(" ")[0] for name, _ in (*MASKED, *THE_OTHERS_MASKED)}
    assert names | {"rlpr"} == set(objectives_with("may_leave_out"))


@pytest.mark.parametrize(
    ("name", "beta"), [*MASKED, *(pytest.param(*other, marks=pytest.mark.slow) for other in THE_OTHERS_MASKED)]
)
def test_what_is_left_of_two_that_stop_is_exact_among_those_that_stop(world, tmp_path, name, beta):
    objective, _, source = name.partition(" from the ")
    settings = {"warmup_source": source or "policy", "mask_truncated_warmups": True}
    trainer = build_trainer(world, tmp_path, objective, beta, **settings)
    exact = exact_gradient(name, trainer.model, beta, STOPPED)
    if name == "warmup":
        exact = exact + anchor_gradient(trainer.model, beta)
    assert relative_difference(expected_gradient(trainer, num_stopped=2), exact) < 1e-5


def anchor_gradient(model, beta: float) -> Tensor:
    """Of beta KL(base || model) at the decisions of the model's own warmups that stop, whose distribution is fixed."""
    p = quantities(model).logp[STOPPED].softmax(0).detach()
    divergences = []
    for sampled, _ in itertools.compress(OUTCOMES, STOPPED.tolist()):
        context = torch.tensor([[*PROMPT, *sampled]])
        known = model(context).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        with torch.no_grad(), model.disable_adapter():
            reference = model(context).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        divergences.append((reference.exp() * (reference - known)).sum())
    return flat_gradient(model, beta * (p * torch.stack(divergences)).sum() / len(TARGET))


@pytest.mark.slow
def test_one_that_stops_trains_reading_and_none_nothing(world, tmp_path):
    """One that stops and one that does not: only the term through R. Where both are truncated nothing is trained."""
    trainer = build_trainer(world, tmp_path, "jensen", mask_truncated_warmups=True)
    exact = exact_gradient("warmup", trainer.model, 0.0, STOPPED)
    assert relative_difference(expected_gradient(trainer, num_stopped=1), exact) < 1e-5
    assert not expected_gradient(trainer, num_stopped=0).any()


@pytest.mark.slow
def test_a_baseline_over_truncated_warmups_is_caught(world, tmp_path, monkeypatch):
    trainer = build_trainer(world, tmp_path, "jensen", mask_truncated_warmups=True)
    exact = exact_gradient("warmup", trainer.model, 0.0, STOPPED)

    def masked_alone(known):
        return objective_page.jensen(known._replace(counts_BK=torch.ones_like(known.counts_BK)))

    objectives = objective_page.OBJECTIVES
    monkeypatch.setitem(objectives, "jensen", objectives["jensen"]._replace(credit=masked_alone))
    assert relative_difference(expected_gradient(trainer, num_stopped=1), exact) > FAR


@pytest.mark.slow
def test_a_truncated_warmup_has_the_reward_0_in_rlpr(world, tmp_path):
    trainer = build_trainer(world, tmp_path, "rlpr", mask_truncated_warmups=True)
    model = trainer.model
    logp, reward, _, token_prob, _ = (x[STOPPED] for x in quantities(model))
    gain = (token_prob.detach() - probability_without_a_warmup(model)).clamp(0, 1)
    share = logp.exp().sum().detach()
    any_stops = 1 - (1 - share) ** 2
    exact = any_stops * (logp.softmax(0).detach() * reward).sum() + (logp.exp() * gain).sum()
    assert relative_difference(expected_gradient(trainer), flat_gradient(model, -exact / len(TARGET))) < 1e-5


# ---- Length ----


def two_terms(model) -> tuple[Tensor, Tensor]:
    """`jensen`'s exact gradient through R, and through P(c|x)."""
    logp, reward, *_ = quantities(model)
    terms = ((logp.exp().detach() * reward).sum(), (logp.exp() * reward.detach()).sum())
    return tuple(flat_gradient(model, -term / len(TARGET)) for term in terms)


@pytest.mark.slow
def test_dr_grpo_is_exact_but_for_its_constant(world, tmp_path):
    trainer = build_trainer(world, tmp_path, "jensen", warmup_loss_type="dr_grpo")
    reading, writing = two_terms(trainer.model)
    assert relative_difference(expected_gradient(trainer), reading + writing / 2) < 1e-5


@pytest.mark.slow
def test_bnpo_is_biased_as_the_page_says(world, tmp_path):
    """No multiple of the exact term is near."""
    trainer = build_trainer(world, tmp_path, "jensen", warmup_loss_type="bnpo")
    reading, writing = two_terms(trainer.model)
    own = expected_gradient(trainer) - reading
    nearest = writing * (own @ writing) / (writing @ writing)
    assert relative_difference(own, nearest) > FAR


# ---- Mistakes that these averages catch ----


def mean_with_itself(known):
    logp_BK = known.logp_BK
    num_warmups = logp_BK.size(1)
    return torch.full_like(logp_BK, 1 / num_warmups), (logp_BK - logp_BK.mean(1, keepdim=True)) / num_warmups


def mean_of_advantages(known):
    weight_BK, advantage_BK = objective_page.log_mean_exp(known)
    return weight_BK, advantage_BK / advantage_BK.size(1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("jensen", mean_with_itself), ("log_mean_exp", mean_of_advantages)],
    ids=["a baseline that includes i", "a mean where the sum belongs"],
)
def test_a_wrong_advantage_is_caught(world, tmp_path, monkeypatch, name, wrong):
    trainer = build_trainer(world, tmp_path, name)
    objectives = objective_page.OBJECTIVES
    monkeypatch.setitem(objectives, name, objectives[name]._replace(credit=wrong))
    assert relative_difference(expected_gradient(trainer), exact_gradient(name, trainer.model, 0.0)) > FAR


@pytest.mark.slow
def test_a_stop_decision_left_out_is_caught(world, tmp_path):
    trainer = build_trainer(world, tmp_path, "jensen")
    wrong = expected_gradient(trainer, change=lambda warmups: warmups._replace(num_decisions=warmups.lengths))
    assert relative_difference(wrong, exact_gradient("jensen", trainer.model, 0.0)) > FAR


@pytest.mark.slow
def test_an_importance_ratio_left_out_is_caught(world, tmp_path, monkeypatch):
    trainer = build_trainer(world, tmp_path, "posterior", warmup_source="base")

    def without_the_ratio(known):
        return objective_page.posterior(known._replace(log_ratio_BK=torch.zeros_like(known.logp_BK)))

    objectives = objective_page.OBJECTIVES
    monkeypatch.setitem(objectives, "posterior", objectives["posterior"]._replace(credit=without_the_ratio))
    wrong = expected_gradient(trainer)
    assert relative_difference(wrong, exact_gradient("posterior from the base", trainer.model, 0.0)) > FAR


@pytest.mark.slow
@pytest.mark.parametrize("corrects", [True, False])
def test_samples_of_another_engine_give_the_exact_gradient_where_they_are_corrected(world, tmp_path, corrects):
    """The engine samples from the model without its adapter, which is as far off as an engine could be."""
    trainer = build_trainer(
        world, tmp_path, "jensen", BETA, vllm_importance_sampling_clip_max=None,
        vllm_importance_sampling_correction=corrects,
    )  # fmt: skip
    with torch.no_grad():
        known = quantities(trainer.model)
    pairs = {outcome: i for i, outcome in enumerate(OUTCOMES)}

    def of_the_engine(warmups):
        found = [
            pairs[tuple(ids[:decided]), length]
            for ids, decided, length in zip(
                *(x[0].tolist() for x in (warmups.ids, warmups.num_decisions, warmups.lengths))
            )
        ]
        return warmups._replace(
            logp=known.base_logp[None, found], log_ratio=(known.logp - known.base_logp)[None, found]
        )

    expected = expected_gradient(trainer, of_the_engine, logp=known.base_logp)
    own = build_trainer(world, tmp_path, "jensen", BETA)
    assert (relative_difference(expected, expected_gradient(own)) < 1e-5) == corrects


def test_every_outcome_ends_as_the_sampler_would_end_it(world, tmp_path):
    from warmup_peft.method.sampling import end_warmups

    trainer = build_trainer(world, tmp_path, "jensen")
    for outcome in OUTCOMES:
        sampled = torch.tensor([[[*outcome.sampled, STOP][:2]]])
        ended = end_warmups(sampled, trainer.sampling)
        assert (ended.lengths.item(), ended.num_decisions.item()) == (outcome.length, len(outcome.sampled)), outcome
