"""What a model predicts at chosen positions, kept as hidden states and turned into logits a few rows at a time.

The logits of all positions at once are the largest tensor of a step: N positions times V words, several times over in
float32. But what is wanted of them (log-probabilities, divergences, entropies) is a number a position. So they are
made in pieces, and made again in the backward pass: they take the memory of one piece, however many warmups there are
and however long they are.

A piece goes through the model's own code behind its decoder, so scaling, soft caps, biases and adapters of the LM head
stay in force. Knows no warmup, no branch and no loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from warmup_peft.method.model import evaluation_mode, is_sharded, without_peft_wrapper
from warmup_peft.method.objective import token_logps

Measures = dict[str, Tensor]  # tensors (N,), a number a token
PIECE = 2**25  # logits at a time: 128 MiB for each float32 copy of them

_decoder_paths: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


@dataclass(frozen=True)
class Predictions:
    """Predictions of N tokens.

    Attributes:
        hidden: (N, D) what their logits are computed from.
        head: (n, D) -> logits (n, V).
        vocab_size: V.
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    vocab_size: int

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, chosen: Tensor | slice) -> Predictions:
        """Those that a mask, an index or a slice of (N,) chooses."""
        return replace(self, hidden=self.hidden[chosen])

    def within(self, context: Callable[[], AbstractContextManager]) -> Predictions:
        """The same, whose logits are made inside of a context, whenever that is."""

        def head(hidden_ND: Tensor) -> Tensor:
            with context():
                return self.head(hidden_ND)

        return replace(self, head=head)

    def logits(self) -> Tensor:
        """(N, V), all at once."""
        return self.head(self.hidden)

    def logps(self, ids_N: Tensor) -> Tensor:
        """(N,) log-probabilities of the given tokens in nats."""
        return self.measure(lambda logits, ids: {"logp": token_logps(logits, ids)}, ids_N)["logp"]

    def measure(self, function: Callable[..., Measures], *others: Tensor | Predictions) -> Measures:
        """What a function says of the logits, piece by piece.

        Args:
            function: logits (n, V), and the same rows of `others` -> tensors (n,), each with its name.
            others: tensors (N, ...), and `Predictions` of N tokens, which reach the function as logits.

        Returns:
            The tensors (N,).
        """
        sources = (self, *others)
        columns = [x.hidden if isinstance(x, Predictions) else x for x in sources]

        def of_piece(*parts: Tensor) -> Measures:
            return function(*(x.head(p) if isinstance(x, Predictions) else p for x, p in zip(sources, parts)))

        num_rows = max(PIECE // self.vocab_size, 1)
        if len(self) <= num_rows:
            return of_piece(*columns)
        is_kept = torch.is_grad_enabled()  # what a piece computes, for the backward pass
        once_more = partial(checkpoint, of_piece, use_reentrant=False)
        pieces = [(once_more if is_kept else of_piece)(*parts) for parts in zip(*(x.split(num_rows) for x in columns))]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def joined(parts: Sequence[Predictions]) -> Predictions:
    """One behind the other, all of one model."""
    return replace(parts[-1], hidden=torch.cat([part.hidden for part in parts]))


def predictions_at(model: nn.Module, unwrapped: PreTrainedModel, positions: Tensor, **inputs: Any) -> Predictions:
    """Predictions of `model(**inputs)` at the masked positions (rows, tokens), in row-major order.

    Args:
        model: the causal language model, possibly wrapped for distributed training.
        unwrapped: the same without that wrapper.
    """
    return predictions_and_output(model, unwrapped, positions, **inputs)[0]


def predictions_and_output(
    model: nn.Module, unwrapped: PreTrainedModel, positions: Tensor, **inputs: Any
) -> tuple[Predictions, Any]:
    """As `predictions_at`, and what the model gave beside its logits, which are of no use."""
    inner = without_peft_wrapper(unwrapped)
    if is_sharded(unwrapped):
        path = None  # outside of its forward the LM head's weights are not there
    else:
        if inner not in _decoder_paths:
            _decoder_paths[inner] = find_decoder(inner)
        path = _decoder_paths[inner]
    if path is None:
        output = model(**inputs)
        return Predictions(output.logits[positions], as_they_are, output.logits.size(-1)), output
    hidden: list[Tensor] = []

    def take(_: nn.Module, __: tuple, output: Any) -> None:
        hidden.append(output.last_hidden_state[positions])
        output.last_hidden_state = output.last_hidden_state[:1, :1]  # so that the model makes a single row of logits

    handle = inner.get_submodule(path).register_forward_hook(take)
    try:
        output = model(**inputs)
    finally:
        handle.remove()
    return Predictions(hidden[0], Head(inner, path), output.logits.size(-1)), output


def as_they_are(logits_NV: Tensor) -> Tensor:
    """The head where what is kept are logits."""
    return logits_NV


# ---- The model's own code behind its decoder ----


class HandedOn(BaseModelOutputWithPast):
    """The output of a decoder, of whatever kind, that gives hidden states and nothing else."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class HandOn(nn.Module):
    """Stands in for a decoder: hands on the hidden states that it is given. Has the decoder's other attributes."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.__dict__["_decoder"] = decoder  # not as a child

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_decoder"], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> HandedOn:
        return HandedOn(last_hidden_state=inputs_embeds)


class Head:
    """What a causal language model does behind its decoder: hidden states (N, D) -> logits (N, V).

    It is the model's own forward, on shallow copies of the model and of what holds the decoder.

    Args:
        model: without a wrapper.
        path: of the decoder in it.
    """

    def __init__(self, model: PreTrainedModel, path: str):
        self._model = with_decoder(model, path.split("."))
        self._vocab_size = model.config.get_text_config().vocab_size

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        if not len(hidden_ND):
            return hidden_ND.new_zeros(0, self._vocab_size)
        return self._model(inputs_embeds=hidden_ND.unsqueeze(0), use_cache=False).logits.squeeze(0)


def with_decoder(module: nn.Module, path: list[str]) -> nn.Module:
    """A shallow copy in which the module at this path hands on what it is given."""
    if not path:
        return HandOn(module)
    copied = copy.copy(module)
    copied._modules = {**module._modules, path[0]: with_decoder(module._modules[path[0]], path[1:])}
    copied.__dict__.pop("forward", None)  # one that was bound to the original
    return copied


def find_decoder(model: PreTrainedModel) -> str | None:
    """Path of the decoder behind which this model needs nothing but hidden states; None where it has none."""
    with evaluation_mode(model):
        return next((path for path in decoder_candidates(model) if gives_all(model, path)), None)


def gives_all(model: PreTrainedModel, path: str) -> bool:
    """Whether the logits that follow from this module's hidden states are the model's own. Found by trying."""
    hidden: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _, __, output: hidden.append(output.last_hidden_state)
    )
    try:
        expected = model(input_ids=torch.tensor([[1, 2, 3]], device=model.device), use_cache=False).logits[0]
        found = [Head(model, path)(x[0]) for x in hidden]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever the model does that was not foreseen, whole logits do without it
        return False
    finally:
        handle.remove()
    return len(found) == 1 and torch.allclose(found[0], expected, rtol=1e-2, atol=1e-2, equal_nan=True)


def decoder_candidates(model: PreTrainedModel) -> Iterator[str]:
    """Paths of what may be the decoder, each once."""
    modules = [model.base_model, model.get_decoder(), getattr(model, "model", None)]
    paths = {id(module): path for path, module in model.named_modules()}
    yield from dict.fromkeys(paths[id(x)] for x in modules if x is not None and paths.get(id(x)))
