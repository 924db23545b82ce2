"""Predictions along branches, at the positions that are asked for and nowhere else.

`PlainRows` encodes every branch with its own copy of the prompt: slow, and right for every causal model.
`CachedPrompt` encodes the prompt once with transformers' own cache, for whatever needs no gradient.
The fast way with gradient is `warmup_peft.method.prefix`; which of them is used is decided in
`warmup_peft.method.encoding`. Knows no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from warmup_peft.method.branches import Branches, Tokens, join_rows, pack
from warmup_peft.method.model import positions_for, to_call, without_peft_wrapper
from warmup_peft.method.predictions import Predictions, joined, predictions_and_output, predictions_at


class PlainRows:
    """One full row [prompt | branch] a branch: K copies of every prompt. Same interface as `SharedPrefix`.

    Rows are padded on the right only. There no real token of a causal model can see the padding, through attention,
    positions or a recurrent state, so each row is scored as if it were alone.

    Args:
        model: the causal language model, possibly wrapped for distributed training.
        unwrapped: the same without that wrapper.
        prompt: (B, P), padded on the left.
        room: for a model that encodes all tokens of a row differently when the row is long: how many tokens may
            follow each prompt. Rows are then encoded one at a time, each as long as it may become. None for others.
        num_opening: how many tokens at the prompts' end are the opening, which `opening_logp_B1` is about.
        balances: whether `aux_loss` is wanted, of a mixture of experts.

    Attributes:
        aux_loss: the model's own load-balancing loss, a scalar over all real tokens of the first rows whose
            predictions were asked for.
    """

    has_gradient = True
    aux_loss: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        unwrapped: PreTrainedModel,
        prompt: Tokens,
        room: int | None = None,
        num_opening: int = 0,
        balances: bool = False,
    ):
        self.model, self.unwrapped, self.prompt, self.room = model, unwrapped, prompt, room
        self.num_opening, self.balances = num_opening, balances

    def predictions(self, branches: Branches, predicted_BKT: Tensor) -> Predictions:
        """Of the N selected branch tokens, in row-major order, with gradient.

        Raises:
            ValueError: `balances`, and the model gives no such loss, or rows are encoded one at a time.
        """
        if self.balances and self.room is not None:
            raise ValueError(
                "Rows as long as these are encoded one at a time, and the load-balancing loss is that of a batch. Set "
                "max_length lower, or router_aux_loss_coef to 0."
            )
        rows = join_rows(self.prompt, branches)
        columns = torch.zeros_like(rows.mask)
        first_column = self.prompt.ids.size(1) - 1  # a token is predicted one column before it stands
        columns[:, first_column:-1] = predicted_BKT.flatten(0, 1)
        lengths = self.prompt.mask.sum(1).repeat_interleave(branches.ids.size(1))
        return self._predictions(rows, columns, lengths, balances=self.balances and self.aux_loss is None)

    @property
    def opening_logp_B1(self) -> Tensor:
        """(B, 1) log-probability of the opening in nats, with gradient; 0 without one. Encodes the prompts alone."""
        if self.num_opening == 0:
            return torch.zeros(len(self.prompt.ids), 1, device=self.prompt.ids.device)
        is_last = last_columns(self.prompt, self.num_opening + 1)
        return opening_logps(self._predictions(self.prompt, is_last, self.prompt.mask.sum(1)), self.prompt)

    def again(self, model: PreTrainedModel) -> PlainRows:
        """The same prompts, for `model` as it is now."""
        return PlainRows(model, model, self.prompt, self.room)

    def _predictions(
        self, rows: Tokens, columns: Tensor, prompt_lengths: Tensor, balances: bool = False
    ) -> Predictions:
        """Of rows that are moved to the left end, where every model counts its positions by itself."""
        mask, ids, columns = pack(rows.mask, rows.ids, columns, side="right")
        if self.room is None:
            return self._forward(self.model, ids, mask, columns, balances)
        models = [self.model] + [self.unwrapped] * (len(ids) - 1)  # ranks must call the wrapper equally often
        lengths = (prompt_lengths + self.room).tolist()
        return joined(
            [
                self._forward(model, *(fitted(x[row : row + 1], lengths[row]) for x in (ids, mask, columns)))
                for row, model in enumerate(models)
            ]
        )

    def _forward(
        self, model: nn.Module, ids: Tensor, mask: Tensor, columns: Tensor, balances: bool = False
    ) -> Predictions:
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
        if balances:
            inputs["output_router_logits"] = True
        predictions, output = predictions_and_output(model, self.unwrapped, columns, **inputs)
        if balances:
            self.aux_loss = getattr(output, "aux_loss", None)
            if self.aux_loss is None:
                kind = without_peft_wrapper(self.unwrapped).config.model_type
                raise ValueError(f"{kind} gives no load-balancing loss. Set router_aux_loss_coef to 0.")
        return predictions


def fitted(row: Tensor, length: int) -> Tensor:
    """(1, L) cut or filled with zeros on the right to (1, length)."""
    return nn.functional.pad(row, (0, length - row.size(1)))


class CachedPrompt:
    """The prompts of a batch, encoded once into transformers' own cache. Without gradient, in `evaluation_mode`.

    Args:
        model, unwrapped, prompt: as for `PlainRows`.
    """

    has_gradient = False
    room = None

    def __init__(self, model: nn.Module, unwrapped: PreTrainedModel, prompt: Tokens, num_opening: int = 0):
        self.model, self.prompt = without_peft_wrapper(unwrapped), prompt

    def predictions(self, branches: Branches, predicted_BKT: Tensor) -> Predictions:
        """Of the N selected branch tokens, in row-major order."""
        cache, first_B = encode_prompt(self.model, self.prompt)
        expand_cache(cache, len(self.prompt.ids), branches.ids.size(1))
        rows = join_rows(self.prompt, branches)
        width = self.prompt.ids.size(1)
        columns = torch.zeros_like(predicted_BKT)
        columns[..., :-1] = predicted_BKT[..., 1:]
        positions = {name: x[:, width:] for name, x in positions_for(self.model, rows.mask).items()}
        later_M = predictions_at(
            self.model,
            self.model,
            columns.flatten(0, 1),
            input_ids=rows.ids[:, width:],
            attention_mask=rows.mask.long(),
            past_key_values=cache,
            use_cache=True,
            **positions,
        )
        return with_first_prediction(first_B, later_M, predicted_BKT)


def last_columns(prompt: Tokens, count: int) -> Tensor:
    """(B, P) true at the last `count` tokens of prompts that are padded on the left."""
    is_last = torch.zeros_like(prompt.mask)
    is_last[:, -count:] = True
    return is_last


def opening_logps(last_BN: Predictions, prompt: Tokens) -> Tensor:
    """(B, 1) log-probability in nats of the last N - 1 tokens of each prompt, from what is predicted at its last N."""
    num_opening = len(last_BN) // len(prompt.ids) - 1
    if num_opening == 0:
        return torch.zeros(len(prompt.ids), 1, device=prompt.ids.device)
    is_before = torch.arange(len(last_BN), device=prompt.ids.device) % (num_opening + 1) < num_opening
    logps = last_BN[is_before].logps(prompt.ids[:, -num_opening:].flatten())
    return logps.unflatten(0, (-1, num_opening)).sum(1, keepdim=True)


def encode_prompt(model: PreTrainedModel, prompt: Tokens) -> tuple[Cache, Predictions]:
    """The cache of the prompts (B, P), padded on the left, and predictions (B) of what follows them."""
    model = to_call(model)
    last_B, output = predictions_and_output(
        model,
        model,
        last_columns(prompt, 1),
        input_ids=prompt.ids,
        attention_mask=prompt.mask.long(),
        use_cache=True,
        **positions_for(model, prompt.mask),
    )
    return output.past_key_values, last_B


def expand_cache(cache: Cache, batch_size: int, num_copies: int) -> None:
    """Each row's keys, values and recurrent states `num_copies` times, as beam search reorders them."""
    device = next((x.device for layer in cache.layers for x in vars(layer).values() if isinstance(x, Tensor)), None)
    cache.reorder_cache(torch.arange(batch_size, device=device).repeat_interleave(num_copies))


def with_first_prediction(first_B: Predictions, later_M: Predictions, predicted_BKT: Tensor) -> Predictions:
    """Put the predictions of branches' first tokens, made at the prompt's end, among those of later tokens.

    Returns:
        N predictions, in row-major order of `predicted_BKT`.
    """
    wants_first_BK = predicted_BKT[..., 0]
    if not wants_first_BK.any():
        return later_M
    first = first_B[wants_first_BK.nonzero()[:, 0]]
    is_first = torch.zeros_like(predicted_BKT)
    is_first[..., 0] = True
    from_first = is_first[predicted_BKT]
    order = torch.empty(len(from_first), dtype=torch.long, device=from_first.device)
    order[from_first] = torch.arange(len(first), device=order.device)
    order[~from_first] = torch.arange(len(later_M), device=order.device) + len(first)
    return joined([first, later_M])[order]
