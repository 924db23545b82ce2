"""Predictions along branches, as logits at the positions that are asked for and nowhere else.

Two ways to the same numbers. `score_rows` encodes every branch with its own copy of the prompt and carries the
gradient. `score_after_prompt` encodes the prompt once, keeps its keys and values, and runs the branches behind it; it
carries none. Knows no loss and no sampling.
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
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


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


def score_rows(
    model: nn.Module, lm_head: nn.Module, prompt: Tokens, branches: Branches, predicted_BKT: Tensor
) -> Tensor:
    """Logits of the selected predictions, one full row [prompt | branch] a branch, with gradient.

    Args:
        model: the causal language model, possibly wrapped for distributed training.
        lm_head: its output embeddings.
        prompt: (B, P), padded on the left.
        predicted_BKT: which branch tokens' predictions are wanted.

    Returns:
        (N, V) in row-major order of `predicted_BKT`.
    """
    rows = join_rows(prompt, branches)
    predicted = predicted_BKT.flatten(0, 1)
    prompt_width = prompt.ids.size(1)
    columns = torch.zeros_like(rows.mask)
    columns[:, prompt_width - 1 : -1] = predicted  # a token is predicted one column before it stands
    with lm_head_only_at(lm_head, columns):
        output = model(
            input_ids=rows.ids,
            attention_mask=rows.mask.long(),
            position_ids=positions_of(rows.mask),
            use_cache=False,
        )
    return output.logits.squeeze(0)


def encode_prompt(model: PreTrainedModel, prompt: Tokens) -> tuple[Cache, Tensor]:
    """Keys and values of the prompts (B, P), padded on the left, and the logits (B, V) of what follows them."""
    output = model(
        input_ids=prompt.ids,
        attention_mask=prompt.mask.long(),
        position_ids=positions_of(prompt.mask),
        use_cache=True,
        logits_to_keep=1,
    )
    return output.past_key_values, output.logits[:, -1]


def score_after_prompt(model: PreTrainedModel, prompt: Tokens, branches: Branches, predicted_BKT: Tensor) -> Tensor:
    """The same logits as `score_rows`, each prompt encoded once. Call it in `evaluation_mode`."""
    model = without_peft_wrapper(model)
    num_branches = branches.ids.size(1)
    cache, first_logits_BV = encode_prompt(model, prompt)
    cache.batch_repeat_interleave(num_branches)
    rows = join_rows(prompt, branches)
    prompt_width = prompt.ids.size(1)
    predicted = predicted_BKT.flatten(0, 1)
    lm_head = model.get_output_embeddings()
    columns = torch.zeros_like(predicted)
    columns[:, :-1] = predicted[:, 1:]
    with lm_head_only_at(lm_head, columns):
        output = model(
            input_ids=rows.ids[:, prompt_width:],
            attention_mask=rows.mask.long(),
            position_ids=positions_of(rows.mask)[:, prompt_width:],
            past_key_values=cache,
            use_cache=True,
        )
    logits = first_logits_BV.new_empty(int(predicted.sum()), first_logits_BV.size(-1))
    is_first = torch.zeros_like(predicted)
    is_first[:, 0] = True
    from_prompt = is_first[predicted]
    logits[from_prompt] = first_logits_BV.repeat_interleave(num_branches, 0)[predicted[:, 0]]
    logits[~from_prompt] = output.logits.squeeze(0)
    return logits
