"""Predictions along branches, as logits at the positions that are asked for and nowhere else.

`PlainRows` encodes every branch with its own copy of the prompt: the slow, plain way, with gradient.
`score_after_prompt` encodes the prompt once with transformers' own cache, for whatever needs no gradient.
The fast way with gradient is `warmup_peft.method.prefix`. Knows no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from warmup_peft.method.branches import Branches, Tokens, join_rows, positions_of


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run without dropout, gradient or checkpointing, and put the training mode back whatever happens.

    In training mode with gradient checkpointing transformers drops the cache, and everything decoded after the first
    token would be written without its context.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:  # those alone: an inner block must not wake what an outer one put into eval mode
            module.training = True


def without_peft_wrapper(model: nn.Module) -> PreTrainedModel:
    """The transformers model that a `PeftModel` has put its adapter layers into; they stay in force."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def lm_head_only_at(lm_head: nn.Module, positions: Tensor) -> Iterator[None]:
    """Let only the masked positions (rows, tokens) reach the LM head: the model then returns logits (1, N, V).

    The model's own forward still runs whole, so scaling and soft caps of its logits stay in force.
    """
    handle = lm_head.register_forward_pre_hook(lambda _, args: (args[0][positions].unsqueeze(0), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


class PlainRows:
    """One full row [prompt | branch] a branch: K copies of every prompt. Same interface as `SharedPrefix`.

    Args:
        model: the causal language model, possibly wrapped for distributed training.
        unwrapped: the same without that wrapper.
        prompt: (B, P), padded on the left.
    """

    def __init__(self, model: nn.Module, unwrapped: PreTrainedModel, prompt: Tokens):
        self.model, self.unwrapped, self.prompt = model, unwrapped, prompt

    def prompt_cache(self, num_copies: int, *, without_last: bool = False) -> Cache | None:
        """Keys and values, each prompt's `num_copies` times, to decode from (`generate` adds the last token)."""
        prompt = self.prompt
        if without_last:
            prompt = Tokens(prompt.ids[:, :-1], prompt.mask[:, :-1])
        if prompt.ids.size(1) == 0:
            return None
        with evaluation_mode(self.unwrapped):
            cache, self._first_logits_BV = encode_prompt(self.unwrapped, prompt)
        cache.batch_repeat_interleave(num_copies)
        return cache

    def first_logits(self) -> Tensor:
        """(B, V) logits of what follows the prompts, without gradient; call it after `prompt_cache`."""
        return self._first_logits_BV

    def predictions(self, branches: Branches, predicted_BKT: Tensor) -> Tensor:
        """Logits (N, V) of the selected branch tokens' predictions, in row-major order, with gradient."""
        rows = join_rows(self.prompt, branches)
        columns = torch.zeros_like(rows.mask)
        first_column = self.prompt.ids.size(1) - 1  # a token is predicted one column before it stands
        columns[:, first_column:-1] = predicted_BKT.flatten(0, 1)
        with lm_head_only_at(self.unwrapped.get_output_embeddings(), columns):
            output = self.model(
                input_ids=rows.ids,
                attention_mask=rows.mask.long(),
                position_ids=positions_of(rows.mask),
                use_cache=False,
            )
        return output.logits.squeeze(0)


def encode_prompt(model: PreTrainedModel, prompt: Tokens) -> tuple[Cache, Tensor]:
    """Keys and values of the prompts (B, P), padded on the left, and the logits (B, V) of what follows them."""
    output = without_peft_wrapper(model)(
        input_ids=prompt.ids,
        attention_mask=prompt.mask.long(),
        position_ids=positions_of(prompt.mask),
        use_cache=True,
        logits_to_keep=1,
    )
    return output.past_key_values, output.logits[:, -1]


def score_after_prompt(model: PreTrainedModel, prompt: Tokens, branches: Branches, predicted_BKT: Tensor) -> Tensor:
    """The same logits as `PlainRows.predictions`, each prompt encoded once. Call it in `evaluation_mode`."""
    num_branches = branches.ids.size(1)
    cache, first_logits_BV = encode_prompt(model, prompt)
    cache.batch_repeat_interleave(num_branches)
    rows = join_rows(prompt, branches)
    prompt_width = prompt.ids.size(1)
    columns = torch.zeros_like(predicted_BKT)
    columns[..., :-1] = predicted_BKT[..., 1:]
    with lm_head_only_at(model.get_output_embeddings(), columns.flatten(0, 1)):
        output = without_peft_wrapper(model)(
            input_ids=rows.ids[:, prompt_width:],
            attention_mask=rows.mask.long(),
            position_ids=positions_of(rows.mask)[:, prompt_width:],
            past_key_values=cache,
            use_cache=True,
        )
    return with_first_prediction(first_logits_BV, output.logits.squeeze(0), predicted_BKT)


def with_first_prediction(first_logits_BV: Tensor, later_logits_MV: Tensor, predicted_BKT: Tensor) -> Tensor:
    """Put the predictions of branches' first tokens, made at the prompt's end, among those of later tokens.

    Returns:
        (N, V) in row-major order of `predicted_BKT`.
    """
    wants_first_BK = predicted_BKT[..., 0]
    if not wants_first_BK.any():
        return later_logits_MV
    first_logits = first_logits_BV[wants_first_BK.nonzero()[:, 0]]
    is_first = torch.zeros_like(predicted_BKT)
    is_first[..., 0] = True
    from_first = is_first[predicted_BKT]
    order = torch.empty(len(from_first), dtype=torch.long, device=from_first.device)
    order[from_first] = torch.arange(len(first_logits), device=order.device)
    order[~from_first] = torch.arange(len(later_logits_MV), device=order.device) + len(first_logits)
    return torch.cat([first_logits, later_logits_MV])[order]
