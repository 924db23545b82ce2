"""Every kind of adapter: shared prompts against plain rows, switched off against the base, saved, loaded, merged, and
the merged folder in plain transformers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from bases import with_biases, with_experts
from folders import assert_serves
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    RandLoraConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from thinning import every
from trainers import make_trainer
from transformers import AutoModelForCausalLM, set_seed

from warmup_peft import merge_adapter
from warmup_peft.inference.loading import load_folder
from warmup_peft.method import predictions
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.model import adapter_off, keep_initial_weights, keeps_initial_weights
from warmup_peft.training.dataset import base_fingerprint

IDS = torch.arange(3, 60).unsqueeze(0)
LINEAR = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "up_proj"]}
KINDS = {
    "lora": LoraConfig(**LINEAR),
    "rslora": LoraConfig(**LINEAR, use_rslora=True),
    "dora": LoraConfig(**LINEAR, use_dora=True),
    "orthogonal": LoraConfig(**LINEAR, init_lora_weights="orthogonal"),
    "lora on embeddings": LoraConfig(**{**LINEAR, "target_modules": ["embed_tokens", "q_proj"]}),
    "modules_to_save": LoraConfig(**LINEAR, modules_to_save=["embed_tokens", "norm"]),
    "trainable_token_indices": LoraConfig(**LINEAR, trainable_token_indices=[3, 4, 50]),
    "trainable tokens": TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[3, 4, 50]),
    "adalora": AdaLoraConfig(**LINEAR, total_step=10),
    "ia3": IA3Config(**LINEAR, feedforward_modules=["up_proj"]),
    "vera": VeraConfig(**{**LINEAR, "target_modules": ["q_proj", "v_proj"]}, r=8),
    "randlora": RandLoraConfig(**LINEAR, r=4),
    "oft": OFTConfig(**LINEAR, oft_block_size=4),
    "boft": BOFTConfig(**LINEAR, boft_block_size=4),
    "loha": LoHaConfig(**LINEAR),
    "lokr": LoKrConfig(**LINEAR),
    "hra": HRAConfig(**LINEAR),
    "fourierft": FourierFTConfig(**LINEAR, n_frequency=20),
    "layer norms": LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm", "norm"]),
}
STAYS = {
    "pissa": LoraConfig(**LINEAR, init_lora_weights="pissa"),
    "olora": LoraConfig(**LINEAR, init_lora_weights="olora"),
    "biases": LoraConfig(**LINEAR, bias="all"),
    "layer_replication": LoraConfig(**LINEAR, layer_replication=[[0, 2], [1, 2]]),
}
PLAIN_ROWS = ("layer_replication",)  # peft's copies of a layer have its number, so their keys cannot be told apart
MERGE_ERRORS = {"randlora": 1e-5}  # it sums 64 random matrices
RUNS = {"objective": "jensen", "warmup_anchor": 0.5}


def with_adapter(base, config):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return get_peft_model(model, copy.deepcopy(config))


def move(model):
    """The adapter starts as the base; move everything that is trained away from it."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def loss_and_gradient(trainer, sharing, warmups):
    trainer.encoder = PromptEncoder(trainer.model, sharing)
    trainer.sample_warmups = lambda *_: warmups
    trainer.model.zero_grad()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model.train(), batch)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert grads.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    return loss.item(), torch.cat([grad.flatten() for grad in grads.values()])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


def check(trainer, kind, expected_base, tmp_path):
    model, sampled = trainer.model, []
    sample = trainer.sample_warmups
    trainer.sample_warmups = lambda *args: sampled.append(sample(*args)) or sampled[-1]
    trainer.compute_loss(model.train(), trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))
    (loss, gradient), (plain_loss, plain_gradient) = (
        loss_and_gradient(trainer, sharing, sampled[0])
        for sharing in ("never" if kind in PLAIN_ROWS else "always", "never")
    )
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert difference(gradient, plain_gradient) < 2e-5
    with adapter_off(model):
        assert difference(logits(model), expected_base) < 2e-6
    trained = logits(model)
    assert difference(trained, expected_base) > 1e-3
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    loaded = load_folder(folder)
    assert difference(logits(loaded.model), trained) < 1e-6
    assert merge_adapter(folder, tmp_path / "merged").relative_logit_error < MERGE_ERRORS.get(kind, 2e-6)
    assert_serves(loaded, tmp_path / "merged")


@pytest.mark.parametrize("kind", every(3, KINDS))
def test_adapters_that_switch_off(kind, model_folder, tokenizer, tmp_path):
    set_seed(0)
    base = logits(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))
    trainer = make_trainer(with_adapter(model_folder, KINDS[kind]), tmp_path, tokenizer, **RUNS)
    move(trainer.model)
    assert not keeps_initial_weights(trainer.model)
    check(trainer, kind, base, tmp_path)


@pytest.mark.parametrize("kind", STAYS)
def test_adapters_that_stay_when_switched_off(kind, model_folder, tokenizer, tmp_path):
    """Their anchor's reference is the model as the training began."""
    set_seed(0)
    model = with_adapter(model_folder, STAYS[kind])
    initial = logits(model)
    trainer = make_trainer(model, tmp_path, tokenizer, **RUNS)
    move(trainer.model)
    assert keeps_initial_weights(trainer.model)
    check(trainer, kind, initial, tmp_path)


def test_parameters_of_experts(tokenizer, tmp_path):
    """`target_parameters`: LoRA on weights that are no layers of their own."""
    base = with_experts(tmp_path / "base", tokenizer, num_local_experts=2, router_aux_loss_coef=0.0)
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    trainer = make_trainer(with_adapter(base, config), tmp_path, tokenizer, **RUNS)
    move(trainer.model)
    expected = logits(AutoModelForCausalLM.from_pretrained(base))
    check(trainer, "target_parameters", expected, tmp_path)


@pytest.mark.slow
def test_biases_of_its_own(tokenizer, tmp_path):
    """`lora_bias`, where the layers have biases into which they can be merged."""
    base = with_biases(tmp_path / "base", tokenizer)
    trainer = make_trainer(with_adapter(base, LoraConfig(**LINEAR, lora_bias=True)), tmp_path, tokenizer, **RUNS)
    move(trainer.model)
    check(trainer, "lora_bias", logits(AutoModelForCausalLM.from_pretrained(base)), tmp_path)


@pytest.mark.parametrize("kind", STAYS)
def test_the_base_of_a_pool_is_the_model_as_training_began(kind, model_folder):
    set_seed(0)
    model = with_adapter(model_folder, STAYS[kind])
    keep_initial_weights(model)
    before = base_fingerprint(model)
    move(model)
    assert base_fingerprint(model) == before
    keep_initial_weights(model)
    assert base_fingerprint(model) != before


def test_the_anchor_pulls_towards_the_model_as_training_began(model_folder, tokenizer, tmp_path):
    """Before the first step there is nothing to pull."""
    trainer = make_trainer(
        with_adapter(model_folder, STAYS["pissa"]), tmp_path, tokenizer, max_steps=2, learning_rate=0.01,
        logging_steps=1, **RUNS,
    )  # fmt: skip
    trainer.train()
    first, second = (log["warmups/kl"] for log in trainer.state.log_history[:2])
    assert abs(first) < 1e-6
    assert second > 1e-4


@pytest.mark.parametrize("objective", ["jensen", "latro"])
def test_the_initial_weights_hold_while_logits_are_made_in_the_backward_pass(
    objective, model_folder, tokenizer, tmp_path, monkeypatch
):
    """Against a copy of the initial model, all of whose logits are made at once. The head is trained, too."""
    set_seed(0)
    model = with_adapter(model_folder, LoraConfig(**LINEAR, init_lora_weights="pissa", modules_to_save=["lm_head"]))
    initial = copy.deepcopy(model).eval().requires_grad_(False)
    trainer = make_trainer(model, tmp_path, tokenizer, **{**RUNS, "objective": objective})
    move(trainer.model)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    sampled, sample, calls = [], trainer.sample_warmups, []
    trainer.sample_warmups = lambda *args: sampled.append(sample(*args)) or sampled[-1]
    trainer.compute_loss(trainer.model.train(), batch)

    found = loss_and_gradient(trainer, "always", sampled[0])
    own_head = predictions.Head.__call__
    monkeypatch.setattr(predictions, "PIECE", 3 * model.config.vocab_size + 1)
    monkeypatch.setattr(predictions.Head, "__call__", lambda *args: calls.append(len(args[1])) or own_head(*args))
    in_pieces = loss_and_gradient(trainer, "always", sampled[0])
    assert calls.count(3) > 10  # pieces
    monkeypatch.setattr(predictions, "PIECE", 2**25)
    trainer._reference = lambda encoded, *asked: encoded.again(initial).predictions(*asked)
    loss, gradient = loss_and_gradient(trainer, "never", sampled[0])
    for other_loss, other_gradient in (found, in_pieces):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert difference(other_gradient, gradient) < 2e-5
