"""What every pass over a causal language model needs: modes, random numbers, the adapter off, positions.

Knows no warmup, no branch and no loss.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from warmup_peft.method.branches import positions_of


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run without dropout, gradient or checkpointing, and put the training mode back whatever happens.

    In training mode with gradient checkpointing transformers drops the cache, and everything decoded after the first
    token would be written without its context.
    """
    with _modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Run as in a training step, with dropout and checkpointing, and put each module's mode back."""
    with _modes_kept(model):
        model.train()
        yield


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Those of the modules themselves: an inner block must not wake what an outer one put into eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, is_training in modes:
            if module.training != is_training:
                module.training = is_training


def keep_initial_weights(model: nn.Module) -> None:
    """Make `adapter_off` mean the model as it is now: for an adapter that is still there when it is switched off.

    Keeps a copy of every weight that is trained.
    """
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    model.initial_weights = {name: parameter.detach().clone() for name, parameter in trained}


def keeps_initial_weights(model: nn.Module) -> bool:
    return hasattr(model, "initial_weights")


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Switch the adapter off. Without one, nothing.

    After `keep_initial_weights` the adapter stays on, with the weights that it had then.

    peft's own `disable_adapter` visits every module several times and freezes each adapter weight and thaws it, which
    for a large model takes as long as a short forward.
    """
    if keeps_initial_weights(model):
        with _with_weights(model, model.initial_weights):
            yield
        return
    layers = [module for module in model.modules() if hasattr(type(module), "disable_adapters")]
    are_off = [layer.disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, is_off in zip(layers, are_off):
            layer._disable_adapters = is_off


@contextmanager
def _with_weights(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Compute with these weights. Graphs that were built before keep the model's own."""
    own = {name: parameter for name, parameter in model.named_parameters() if name in weights}
    kept = {name: parameter.data for name, parameter in own.items()}
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # it holds 16-bit copies of the model's own weights
    try:
        for name, parameter in own.items():
            parameter.data = weights[name].to(parameter.device)
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = kept[name]
        torch.set_autocast_cache_enabled(caches)


@contextmanager
def random_numbers_from(seed: int, device: torch.device) -> Iterator[None]:
    """Take random numbers from a seed, and leave the training's as they are."""
    others = {} if device.type == "cpu" else {"devices": [device.index or 0], "device_type": device.type}
    with torch.random.fork_rng(**({"devices": []} | others)):
        torch.manual_seed(seed)
        yield


def without_peft_wrapper(model: nn.Module) -> PreTrainedModel:
    """The transformers model that a `PeftModel` has put its adapter layers into; they stay in force."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a part of every weight (FSDP2), and a forward gathers them layer by layer.

    All ranks must then call such a model equally often.
    """
    return isinstance(model, FSDPModule)


def to_call(model: nn.Module) -> nn.Module:
    """What is called to run the model: sharded weights are gathered by the outermost, others need no wrapper."""
    return model if is_sharded(model) else without_peft_wrapper(model)


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model's forward names this argument."""
    return name in _arguments_of(type(without_peft_wrapper(model)))


@functools.cache  # asked for every token that is sampled
def _arguments_of(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def positions_for(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """`position_ids` of real tokens, for the models that take them; the others count by themselves."""
    return {"position_ids": positions_of(mask)} if takes(model, "position_ids") else {}
