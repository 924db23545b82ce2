"""Every causal language model of transformers, as small as its configuration allows, with random weights.

    python tests/support/architectures.py

prints the table of `warmup_peft/README.md`: which models share prompts.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from warmup_peft.method.branches import Branches, Tokens, Warmups, lay_out_branches, prefix_mask, sums_where
from warmup_peft.method.encoding import Encoded, PromptEncoder
from warmup_peft.method.prefix import SharedPrefix
from warmup_peft.method.sampling import SamplingSettings, WarmupSampler
from warmup_peft.method.ways import WAYS, RowDecoding, from_cache, from_copies, from_kept_keys

NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 128
MOST_PARAMETERS = 10_000_000
LAYERS = 4  # so that models that mix two kinds of layers have each twice

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ff_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "mamba_d_head", "mamba_head_dim", "ssm_state_size", "state_size"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "decoder_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_intermediate_size": 64,
    "n_mamba_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
EVERY_HEAD_ITS_OWN = {"num_key_value_heads": 4}  # latent attention
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
         "minicpm3", "youtu", "dots3_note_text"),
        EVERY_HEAD_ITS_OWN,
    ),
    "bailing_hybrid": {"layer_group_size": 2, **EVERY_HEAD_ITS_OWN},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 8},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "laurel_rank": 16,
    },
    "gemma4_text": {
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_experts": None,
        "moe_intermediate_size": None,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "reformer": {"is_decoder": True},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1, "moe_topk": 1},
}  # fmt: skip


def small_config(kind: type[PreTrainedConfig], changes: dict[str, Any]) -> PreTrainedConfig:
    known = {each.name for each in dataclasses.fields(kind)} | set(kind.attribute_map)
    values = {name: size for name, size in SIZES.items() if name in known}
    if "text_config" in kind.sub_configs and "text_config" in known:
        text = kind.sub_configs["text_config"]
        if issubclass(text, PreTrainedConfig) and text.model_type:
            values["text_config"] = small_config(text, CHANGES.get(text.model_type, {})).to_dict()
    return kind(**{**values, **changes})


def build(name: str, **changes: Any) -> nn.Module:
    """The model `name` of `NAMES`, in eval mode.

    Raises:
        Exception: of whatever kind, where its configuration does not allow a small one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = small_config(CONFIG_MAPPING[name], {**CHANGES.get(name, {}), **changes})
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{name} stays at {size / 1e6:.0f}M parameters.")
    set_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.arange(2, 11).unsqueeze(0))  # some sizes do not fit together
    return model


# ---- Batches, and the slow reference: one unpadded row at a time ----

SEPARATOR = (5, 6)


def ragged_batch(num_branches: int, seed: int = 0, longest: int = 9) -> tuple[Tokens, Branches]:
    """Prompts of 1, 4 and `longest` tokens; branches of 0 to 5 tokens of warmup, 2 of separator, 1 to 3 of target."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(7, VOCABULARY - 8, shape, generator=generator)

    prompt_mask = torch.arange(longest) >= longest - torch.tensor([[1], [4], [longest]])
    prompt = Tokens(tokens(3, longest).masked_fill(~prompt_mask, 0), prompt_mask)
    lengths = torch.randint(0, 6, (3, num_branches), generator=generator)
    lengths[0, 0], lengths[-1, -1] = 0, 5
    warmups = Warmups(tokens(3, num_branches, 5), lengths, lengths)
    target = Tokens(tokens(3, 3), torch.arange(3) < torch.tensor([[1], [2], [3]]))
    branches = lay_out_branches(warmups.tokens(), torch.tensor(SEPARATOR), target.repeat_for_branches(num_branches))
    return prompt, branches


def logps_one_by_one(model: nn.Module, prompt: Tokens, branches: Branches, predicted: Tensor) -> Tensor:
    """(N,) log-probabilities in nats of the selected branch tokens, in row-major order."""
    logps = []
    for b, k in itertools.product(*map(range, branches.ids.shape[:2])):
        start = prompt.ids[b][prompt.mask[b]]
        row = torch.cat([start, branches.ids[b, k][branches.mask[b, k]]])
        logp = model(input_ids=row.unsqueeze(0)).logits[0].float().log_softmax(-1)
        logps += [
            logp[len(start) - 1 + t, branches.ids[b, k, t]] for t in predicted[b, k].nonzero().flatten().tolist()
        ]
    return torch.stack(logps)


# ---- What becomes of a model ----


class Outcome(NamedTuple):
    """How a model is trained: `shared`, `plain rows` or `refused`, what its warmups are sampled from, and why."""

    prompts: str
    sampled_from: str
    why: str


SETTINGS = SamplingSettings(3, 5, end_token_ids=(1,), separator_ids=SEPARATOR, pad_token_id=0)
SAMPLED_FROM = {
    from_kept_keys: "the shared prompt",
    from_cache: "its cache",
    from_copies: "its cache, a copy of the prompt for each warmup",
    RowDecoding: "whole rows, without a cache",
}


def outcome_of(name: str, **changes: Any) -> Outcome:
    """Encode, score and sample as a training would, and compare with one unpadded row at a time.

    Raises:
        AssertionError: loss, gradient or the samples' log-probabilities are others.
    """
    model = build(name, **changes)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(1.5)  # far from uniform
    model.train()
    prompt, branches = ragged_batch(num_branches=2)
    try:
        encoder = PromptEncoder(model)
        encoder(model, prompt, branches.ids.size(-1))
        encoded = encoder(model, prompt, branches.ids.size(-1))  # the second batch of a training
        model.train(name == "rwkv")  # with dropout no two scores are equal; rwkv rescales its weights for evaluation
        encoded = encoded.again(model)
        sampler = WarmupSampler()
        set_seed(0)
        warmups = sampler(model, encoded, SETTINGS)
    except ValueError as error:
        return Outcome(
            "refused",
            "",
            re.sub(r"\d+(\.\d+)?(e-?\d+)? nats", "some nats", str(error).replace(name, "it").split(" (")[0]),
        )
    assert_same_loss_and_gradient(model, encoded, prompt, branches)
    assert_samples_have_their_probability(model, prompt, warmups)
    way = WAYS[sampler._way(model, encoded, SETTINGS)]
    why = (encoder.reason or "").replace(f"{model.config.get_text_config().model_type} ", "it ").replace(name, "it")
    return Outcome("shared" if isinstance(encoded, SharedPrefix) else "plain rows", SAMPLED_FROM[way], why)


def assert_same_loss_and_gradient(model: nn.Module, encoded: Encoded, prompt: Tokens, branches: Branches) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    logps = encoded.predictions(branches, branches.mask).logps(branches.ids[branches.mask])
    expected = logps_one_by_one(model, prompt, branches, branches.mask)
    import os

    print("   ", f"{(logps.sum() / expected.sum() - 1).abs():.0e}", end=" ") if os.environ.get("SHOW") else 0
    assert (logps.sum() / expected.sum() - 1).abs() < 1e-6
    gradients = [torch.autograd.grad(-each.sum(), parameters, allow_unused=True) for each in (logps, expected)]
    ours, theirs = (
        torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, each)])
        for each in gradients
    )
    print(f"{(ours - theirs).norm() / theirs.norm():.0e}", end=" ") if os.environ.get("SHOW") else 0
    assert (ours - theirs).norm() / theirs.norm() < 2e-5


def assert_samples_have_their_probability(model: nn.Module, prompt: Tokens, warmups: Warmups) -> None:
    is_sampled = prefix_mask(warmups.num_decisions, warmups.ids.size(-1))
    with torch.no_grad():
        logps = logps_one_by_one(model, prompt, Branches(warmups.ids, is_sampled, is_sampled), is_sampled)
    torch.testing.assert_close(sums_where(is_sampled, logps), warmups.logp, rtol=1e-4, atol=1e-4)


# ---- The table of README.md ----


def table(outcomes: dict[str, Outcome]) -> str:
    """Markdown: models of the same outcome in one row."""
    groups: dict[Outcome, list[str]] = {}
    for name, outcome in outcomes.items():
        groups.setdefault(outcome, []).append(name)
    order = ("shared", "plain rows", "refused")
    rows = sorted(groups.items(), key=lambda group: (order.index(group[0].prompts), -len(group[1]), group[1]))
    lines = [f"| {', '.join(names)} | {' | '.join(outcome)} |" for outcome, names in rows]
    return "\n".join(["| models | prompts | warmups are sampled from | why |", "|---|---|---|---|", *lines]) + "\n"


def all_outcomes() -> dict[str, Outcome]:
    outcomes = {}
    for name in NAMES:
        try:
            build(name)
        except Exception:  # it stays large, or needs another package
            continue
        outcomes[name] = outcome_of(name)
    return outcomes


if __name__ == "__main__":
    print(table(all_outcomes()), end="")
