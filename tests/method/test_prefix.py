"""The shared prefix against its slow reference, plain rows: losses and gradients, float32, many architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from conftest import TINY_SIZES
from peft import BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from transformers import set_seed

from warmup_peft.method.branches import Tokens, Warmups, lay_out_branches
from warmup_peft.method.encoding import PromptEncoder
from warmup_peft.method.prefix import (
    SharedPrefix,
    branch_mask,
    install,
    sliding_window,
    uninstall,
    why_not_shareable,
)
from warmup_peft.method.rows import PlainRows

SIZES = {**TINY_SIZES, "vocab_size": 128, "num_key_value_heads": 2, "max_position_embeddings": 256}
ARCHITECTURES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Mistral": {"sliding_window": None},
    "Phi3": {},
    "Gemma": {"head_dim": 16},
    "Olmo2": {},
    "Granite": {"logits_scaling": 2.0},
    "SmolLM3": {},
    "GPTNeoX": {"attention_dropout": 0.0, "hidden_dropout": 0.0},
    "GPT2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}


def build(name: str, **changes) -> torch.nn.Module:
    set_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **ARCHITECTURES.get(name, {}), **changes})
    model = getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    return model


def with_lora(model: torch.nn.Module) -> torch.nn.Module:
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return model


def ragged_batch(num_branches: int, seed: int = 0) -> tuple[Tokens, Warmups, Tokens]:
    """Prompts of 1, 4 and 9 tokens, warmups of 0 to 5, targets of 1 to 3."""
    generator = torch.Generator().manual_seed(seed)

    def sample(*shape: int) -> torch.Tensor:
        return torch.randint(2, 128, shape, generator=generator)

    prompt_mask = torch.arange(9) >= 9 - torch.tensor([[1], [4], [9]])
    prompt = Tokens(sample(3, 9).masked_fill(~prompt_mask, 0), prompt_mask)
    lengths = torch.randint(0, 6, (3, num_branches), generator=generator)
    lengths[0, 0] = 0
    warmups = Warmups(sample(3, num_branches, 5), lengths, lengths)
    target = Tokens(sample(3, 3), torch.arange(3) < torch.tensor([[1], [2], [3]]))
    return prompt, warmups, target.repeat_for_branches(num_branches)


def lay_out(warmups: Warmups, target: Tokens):
    branches = lay_out_branches(warmups.tokens(), torch.tensor([5, 6]), target)
    predicted = branches.is_target.clone()
    predicted[..., 0] = True  # the first token of each branch is predicted at the prompt's end
    return branches, predicted


def loss_and_gradient(encoding, model, prompt, branches, predicted):
    loss = -encoding(model, model, prompt).predictions(branches, predicted).logps(branches.ids[predicted]).sum()
    model.zero_grad()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss.item(), gradient


@pytest.mark.parametrize(("num_branches", "apart"), [(1, False), (3, False), (4, True)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_prefix_equals_plain_rows(name, checkpointing, num_branches, apart, monkeypatch):
    """Branches one behind the other, and branches as rows of their own."""
    monkeypatch.setattr("warmup_peft.method.prefix.are_better_apart", lambda *_: apart)
    model = with_lora(build(name)).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    prompt, warmups, target = ragged_batch(num_branches)
    branches, predicted = lay_out(warmups, target)
    plain_loss, plain_gradient = loss_and_gradient(PlainRows, model, prompt, branches, predicted)
    install(model)
    loss, gradient = loss_and_gradient(SharedPrefix, model, prompt, branches, predicted)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert ((gradient - plain_gradient).norm() / plain_gradient.norm()).item() < 1e-4


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_function_of_the_model_is_wrapped(attention, apart, monkeypatch):
    monkeypatch.setattr("warmup_peft.method.prefix.are_better_apart", lambda *_: apart)
    model = build("Llama")
    model.set_attn_implementation(attention)
    prompt, warmups, target = ragged_batch(3)
    branches, predicted = lay_out(warmups, target)
    plain_loss, plain_gradient = loss_and_gradient(PlainRows, model, prompt, branches, predicted)
    install(model)
    loss, gradient = loss_and_gradient(SharedPrefix, model, prompt, branches, predicted)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-3, atol=1e-4)


def test_without_the_keyword_an_installed_model_computes_what_it_did():
    model = build("Llama")
    ids = torch.arange(2, 14).reshape(2, 6)
    before = model(ids).logits
    install(model)
    install(model)  # a second time changes nothing
    assert torch.equal(model(ids).logits, before)


def test_a_branch_cannot_see_its_siblings(monkeypatch):
    monkeypatch.setattr("warmup_peft.method.prefix.are_better_apart", lambda *_: False)
    model = build("Llama")
    install(model)
    prompt, warmups, target = ragged_batch(4)
    branches, predicted = lay_out(warmups, target)
    before = SharedPrefix(model, model, prompt).predictions(branches, predicted).logits()
    other = branches.ids.clone()
    other[:, 2] = (other[:, 2] + 17) % 128
    after = SharedPrefix(model, model, prompt).predictions(branches._replace(ids=other), predicted).logits()
    branch_of = torch.arange(4).view(1, 4, 1).expand_as(predicted)[predicted]
    torch.testing.assert_close(before[branch_of != 2], after[branch_of != 2], rtol=0, atol=1e-6)
    assert (before[branch_of == 2] - after[branch_of == 2]).abs().max() > 1e-3


def test_branch_mask_by_hand():
    """One prompt of one real token and one pad, two branches of two tokens."""
    mask = branch_mask(torch.tensor([[False, True]]), num_branches=2, num_tokens=2)
    assert mask[0, 0].int().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
    ]


def test_cached_keys_and_values_carry_no_gradient():
    model = build("Llama")
    install(model)
    prompt, _, _ = ragged_batch(1)
    cache = SharedPrefix(model, model, prompt).prompt_cache(2, without_last=True)
    assert cache.get_seq_length() == 8
    assert SharedPrefix(model, model, prompt).prompt_cache(2).get_seq_length() == 9
    assert not cache.layers[0].keys.requires_grad
    assert len(cache.layers[0].keys) == 6


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("GPT2", {"attn_pdrop": 0.1}, "dropout"),
        ("Llama", {"attention_dropout": 0.1}, "dropout"),
        ("Gemma2", {"head_dim": 16}, "caps its attention"),
    ],
)
def test_models_whose_prompts_cannot_be_shared(name, changes, reason):
    assert reason in why_not_shareable(build(name, **changes))


def test_lora_dropout_cannot_be_shared():
    model = get_peft_model(build("Llama"), LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    assert "dropout (0.1)" in why_not_shareable(model)


def test_sliding_windows_are_known():
    assert sliding_window(build("Mistral", sliding_window=16)) == 16
    assert sliding_window(build("Mistral")) is None
    assert sliding_window(build("Qwen2", use_sliding_window=False, sliding_window=16)) is None
    assert sliding_window(build("Llama")) is None


def test_attention_that_takes_no_mask_is_not_shared():
    model = build("Llama")
    model.config._attn_implementation = "flex_attention"  # as if it had been loaded so
    assert "flex_attention does not take the mask" in why_not_shareable(model)


def test_sdpa_stands_in_for_flash_attention(monkeypatch):
    model = build("Llama")
    model.config._attn_implementation = "flash_attention_2"  # as if it had been loaded so, on a GPU
    assert why_not_shareable(model) is None
    install(model)
    assert model.config._attn_implementation == "warmup_prefix_over_sdpa"
    prompt, warmups, target = ragged_batch(3)
    branches, predicted = lay_out(warmups, target)
    loss, gradient = loss_and_gradient(SharedPrefix, model, prompt, branches, predicted)
    expected, expected_gradient = loss_and_gradient(PlainRows, build("Llama"), prompt, branches, predicted)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert ((gradient - expected_gradient).norm() / expected_gradient.norm()).item() < 1e-5
    names = []
    monkeypatch.setattr(model, "set_attn_implementation", names.append)
    uninstall(model)
    assert names == ["flash_attention_2"]
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2 does not take the mask" in why_not_shareable(model)


@pytest.mark.parametrize(
    "adapter",
    [
        LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], rank_dropout=0.3),
        LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], module_dropout=0.3),
        LoKrConfig(r=4, target_modules=["q_proj", "v_proj"], module_dropout=0.3),
        BOFTConfig(boft_block_size=4, target_modules=["q_proj", "v_proj"], boft_dropout=0.3),
    ],
    ids=["loha-rank", "loha-module", "lokr-module", "boft"],
)
def test_dropout_that_no_module_shows_is_noticed(adapter):
    """At the start these adapters change no score, with dropout or without; their gradients tell."""
    model = get_peft_model(build("Llama"), adapter).train()
    prompt, _, _ = ragged_batch(1)
    assert isinstance(PromptEncoder(model)(model, prompt, 8), PlainRows)
    without = replace(adapter, **{name: 0.0 for name in vars(adapter) if name.endswith("_dropout")})
    model = get_peft_model(build("Llama"), without).train()
    assert isinstance(PromptEncoder(model)(model, prompt, 8), SharedPrefix)


def test_dropout_as_a_function_is_noticed():
    model = build("Starcoder2", residual_dropout=0.1, embedding_dropout=0.0, attention_dropout=0.0).train()
    prompt, _, _ = ragged_batch(1)
    encoder = PromptEncoder(model)
    assert isinstance(encoder(model, prompt, 8), PlainRows)
    assert "change from one call to the next" in encoder.reason
