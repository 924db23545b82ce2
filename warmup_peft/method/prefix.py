"""Encode each prompt once: the whole idea of a cheap warmup step.

Written plainly, K warmups encode every prompt 2K times: K times to sample them, K times in the rows that are scored.
But in a causal model what follows the prompt reads it only through its keys and values, layer by layer. So:

    encode    one forward over the prompts (B, P), with gradient; every layer's keys and values are kept
    sample    decodes from those keys and values, detached
    score     one forward over all branches of an example, laid end to end (B, K * T), or long ones as rows of their
              own (B * K, T); each branch attends to the kept keys and values, with gradient, and to itself, never to
              its siblings

The gradient of the second forward flows through the kept keys and values into the first, exactly as if each branch had
its own copy of the prompt (`warmup_peft.method.rows.PlainRows` does that, and is what tests compare with).

How: attention in transformers is a function looked up by name. `install` registers, under a name of ours, a function
that calls the model's own and, where the forward was given `prefix=`, first keeps or first prepends keys and values.
The keyword travels with the call, not in a global, so gradient checkpointing recomputes each forward in its own role.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from warmup_peft.method.branches import Branches, Tokens, positions_of
from warmup_peft.method.model import without_peft_wrapper
from warmup_peft.method.predictions import Predictions, predictions_at
from warmup_peft.method.rows import last_columns, opening_logps, with_first_prediction

NAME = "warmup_prefix_over_"
FLASH = ("flash_attention_2", "flash_attention_3")
_chosen_attention: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # of models that went through `install`


class NotShareableError(RuntimeError):
    """The model's attention does not do what sharing a prompt takes; the message says in words what."""


@dataclass
class Keep:
    """Role of the first forward: keep each layer's keys and values (B, heads, P, width), exactly once.

    Once the forward is over, `close` ends it: what gradient checkpointing recomputes later passes through unseen.
    """

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    is_closed: bool = False

    def apply(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_closed:
            if layer in self.layers:
                raise NotShareableError(f"layer {layer} attends more than once in a forward")
            self.layers[layer] = key, value
        return key, value

    def close(self, num_layers: int) -> None:
        """Raise NotShareableError where not every one of the layers was seen."""
        self.is_closed = True
        if len(self.layers) != num_layers:
            raise NotShareableError(
                f"{len(self.layers)} of {num_layers} layers gave their keys and values, so what the others know of "
                "the prompt would be lost"
            )


@dataclass
class Prepend:
    """Role of the second forward: put the kept keys and values before each layer's own, in all rows of a prompt."""

    layers: dict[int, tuple[Tensor, Tensor]]
    rows_per_prompt: int

    def apply(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(self._before(kept, own) for kept, own in zip(self.layers[layer], (key, value)))

    def _before(self, kept: Tensor, own: Tensor) -> Tensor:
        own = own.unflatten(0, (-1, self.rows_per_prompt))
        return torch.cat([kept.unsqueeze(1).expand(-1, self.rows_per_prompt, -1, -1, -1), own], dim=3).flatten(0, 1)


def attention_over(own_name: str):
    """The attention function that wraps the model's own, which goes by `own_name`."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        prefix: Keep | Prepend | None = None,
        **kwargs: Any,
    ):
        if prefix is not None:
            key, value = prefix.apply(module.layer_idx, key, value)
        if isinstance(prefix, Prepend) and own_name == "eager":
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(
                ~attention_mask, torch.finfo(query.dtype).min
            )
        return own_function(module, own_name)(module, query, key, value, attention_mask, **kwargs)

    return attention


def own_function(module: nn.Module, name: str):
    """A registered attention function, or the model file's own eager one."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def install(model: PreTrainedModel) -> None:
    """Make the model's attention take `prefix=`. Without that keyword it computes what it did before.

    Flash attention takes no mask of who sees whom, so torch's own attention (sdpa) stands in for it until `uninstall`.
    """
    model = without_peft_wrapper(model)
    chosen = model.config._attn_implementation
    if chosen.startswith(NAME):
        return
    own_name = "sdpa" if chosen in _replaced_by_sdpa(model) else chosen
    AttentionInterface.register(NAME + own_name, attention_over(own_name))
    AttentionMaskInterface.register(NAME + own_name, ALL_MASK_ATTENTION_FUNCTIONS[own_name])
    model.set_attn_implementation(NAME + own_name)
    _chosen_attention[model] = chosen


def uninstall(model: PreTrainedModel) -> None:
    """Undo `install`."""
    model = without_peft_wrapper(model)
    if model in _chosen_attention:
        model.set_attn_implementation(_chosen_attention.pop(model))


def _replaced_by_sdpa(model: PreTrainedModel) -> tuple[str, ...]:
    return FLASH if model._supports_sdpa else ()


def why_not_shareable(model: PreTrainedModel) -> str | None:
    """In words why this model's prompts cannot be shared; None where they can."""
    model = without_peft_wrapper(model)
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not model._can_set_attn_implementation():
        return f"{config.model_type} does not look its attention up in transformers' AttentionInterface"
    if kinds - {"full_attention", "sliding_attention"} or getattr(model, "_is_stateful", False):
        return f"{config.model_type} has layers that are not attention ({', '.join(sorted(kinds)) or 'stateful'})"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{config.model_type} caps its attention scores, which only its eager attention can do"
    attention = config._attn_implementation or ""
    if attention not in ("eager", "sdpa", *_replaced_by_sdpa(model)) and not attention.startswith(NAME):
        return f"{attention} does not take the mask that keeps branches apart (eager and sdpa do)"
    dropout = max([m.p for m in model.modules() if isinstance(m, nn.Dropout)], default=0.0)
    dropout = max(dropout, getattr(config, "attention_dropout", 0.0) or 0.0)
    if dropout > 0:
        return f"dropout ({dropout}) would perturb the keys and values that warmups are sampled from"
    return None


def sliding_window(model: PreTrainedModel) -> int | None:
    """Tokens the narrowest layer sees; None where every layer sees all."""
    config = without_peft_wrapper(model).config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    if kinds is None and getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def rope_limit(model: PreTrainedModel) -> int | None:
    """Tokens of a row beyond which all its positions are turned otherwise, the earlier ones too; None for most models.

    That is RoPE of the kinds `longrope` (Phi-3 128k) and `dynamic`: they look at the length of the whole row.
    """
    limits = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None) or ()
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)] if kinds else ():
            parameters = getattr(module.config, "rope_parameters", None) or {}
            parameters = parameters.get(layer) or parameters
            if kind == "longrope":
                limits.append(parameters.get("original_max_position_embeddings"))
            elif "dynamic" in kind:
                limits.append(module.config.max_position_embeddings)
    return min((limit for limit in limits if limit), default=None)


class SharedPrefix:
    """The prompts of a batch, encoded once. Needs a model that went through `install`.

    Args:
        model: the causal language model, possibly wrapped for distributed training.
        unwrapped: the same without that wrapper.
        prompt: (B, P), padded on the left.
        num_opening: how many tokens at the prompts' end are the opening, which `opening_logp_B1` is about.
    """

    has_gradient = True
    room = None

    def __init__(self, model: nn.Module, unwrapped: PreTrainedModel, prompt: Tokens, num_opening: int = 0):
        self.model, self.unwrapped, self.prompt = model, unwrapped, prompt
        self.config = without_peft_wrapper(unwrapped).config
        kept = Keep()
        last_BN = predictions_at(
            model,
            unwrapped,
            last_columns(prompt, num_opening + 1),
            input_ids=prompt.ids,
            attention_mask=prompt.mask.long(),
            position_ids=positions_of(prompt.mask),
            use_cache=False,
            prefix=kept,
        )
        kept.close(self.config.get_text_config().num_hidden_layers)
        self.layers = kept.layers
        self.first_B = last_BN[num_opening :: num_opening + 1]
        self.opening_logp_B1 = opening_logps(last_BN, prompt)

    def again(self, model: PreTrainedModel) -> SharedPrefix:
        """The same prompts, encoded by `model` as it is now."""
        return SharedPrefix(model, model, self.prompt)

    def prompt_cache(self, num_copies: int, *, without_last: bool = False) -> DynamicCache | None:
        """Detached keys and values, each prompt's `num_copies` times, to decode from; None for no token at all.

        Args:
            without_last: leave out the last token, which `generate` wants to encode itself.
        """
        length = self.prompt.ids.size(1) - without_last
        if length == 0:
            return None
        cache = DynamicCache(config=self.config)
        for layer, pair in sorted(self.layers.items()):
            key, value = (x.detach()[:, :, :length].repeat_interleave(num_copies, 0) for x in pair)
            cache.update(key, value, layer)
        return cache

    def predictions(self, branches: Branches, predicted_BKT: Tensor) -> Predictions:
        """Of the N selected branch tokens, in row-major order, with gradient."""
        num_branches, num_tokens = branches.ids.shape[1:]
        rows = num_branches if are_better_apart(self.prompt.ids.size(1), num_branches, num_tokens) else 1
        prompt_mask = self.prompt.mask.repeat_interleave(rows, 0)
        offsets = torch.arange(num_tokens, device=branches.ids.device).repeat(num_branches // rows)
        columns = torch.zeros_like(predicted_BKT)
        columns[..., :-1] = predicted_BKT[..., 1:]  # a token is predicted at the one before it
        later_M = predictions_at(
            self.model,
            self.unwrapped,
            columns.reshape(len(prompt_mask), -1),
            input_ids=branches.ids.reshape(len(prompt_mask), -1),
            attention_mask=branch_mask(prompt_mask, num_branches // rows, num_tokens),
            position_ids=prompt_mask.sum(1, keepdim=True) + offsets,
            use_cache=False,
            prefix=Prepend(self.layers, rows),
        )
        return with_first_prediction(self.first_B, later_M, predicted_BKT)


def are_better_apart(prompt_length: int, num_branches: int, num_tokens: int) -> bool:
    """Whether the branches of a prompt go into rows of their own, instead of one behind the other into one row.

    In one row a token's attention also runs over the (K - 1) T tokens of its siblings, which it may not see. In rows
    of their own the P keys and values of the prompt are copied K times.
    """
    return (num_branches - 1) * num_tokens > prompt_length


def branch_mask(prompt_mask: Tensor, num_branches: int, num_tokens: int) -> Tensor:
    """(rows, 1, K * T, P + K * T): who sees whom, K branches a row. They see the prompt and, causally, themselves.

    Padding on a branch's right is seen by nothing that counts, so it needs no mask of its own.
    """
    itself = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=prompt_mask.device).tril()
    siblings = torch.block_diag(*[itself] * num_branches)
    batch_size, length = len(prompt_mask), num_branches * num_tokens
    prompts = prompt_mask[:, None, None, :].expand(-1, 1, length, -1)
    return torch.cat([prompts, siblings.expand(batch_size, 1, -1, -1)], dim=-1)
