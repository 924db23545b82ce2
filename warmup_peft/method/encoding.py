"""How the prompts of a batch are encoded: once for all branches where that is exact, in plain rows elsewhere.

No model is believed. What it says of itself gives a clear sentence at once where sharing cannot work; whether it does
work is measured. The first batch, and every later one with a longer prompt or row than any before, is scored in both
ways on two of its prompts, and the first time gradients are compared too. A model that nobody thought of, whatever it
does with its attention, its positions or its dropout, is therefore shared only as far as it was seen to give the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from warmup_peft.files import first_line
from warmup_peft.method.branches import Branches, Tokens, left_padded, prefix_mask
from warmup_peft.method.model import evaluation_mode, is_sharded, random_numbers_from, training_mode
from warmup_peft.method.prefix import SharedPrefix, install, rope_limit, sliding_window, uninstall, why_not_shareable
from warmup_peft.method.rows import CachedPrompt, PlainRows

logger = logging.getLogger(__name__)

Encoded = PlainRows | SharedPrefix | CachedPrompt
PROBE_TOKENS = 64  # of a prompt and of a branch whose gradients are compared, so that it takes little memory
PROBE_PARAMETERS = 2**24  # numbers of the gradient that are compared
PROBE_SEED = 0


@dataclass(frozen=True)
class Tolerance:
    """How far two exact ways may be apart by rounding.

    Attributes:
        nats: of a token's log-probability, on average over tokens.
        gradient: of a gradient, relative to its norm.
    """

    nats: float
    gradient: float


FLOAT32 = Tolerance(1e-3, 1e-2)
LOW_PRECISION = Tolerance(0.1, 0.25)  # bfloat16 and 32 layers gave 0.04 nats and 7%; wrong gradients were 75% off


def tolerance_of(model: nn.Module, is_mixed: bool = False) -> Tolerance:
    """What rounding explains; `is_mixed` where the model computes in another precision than its weights have."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point() or p.dtype == torch.int8}
    kinds |= {getattr(module, "compute_dtype", None) or torch.float32 for module in model.modules()}
    is_mixed = is_mixed or torch.is_autocast_enabled(next(model.parameters()).device.type) or multiplies_roughly()
    return FLOAT32 if kinds <= {torch.float32, torch.float64} and not is_mixed else LOW_PRECISION


def multiplies_roughly() -> bool:
    """Whether float32 matrices are multiplied in less than float32 (TF32)."""
    kinds = [getattr(place, "fp32_precision", None) for place in (torch.backends, torch.backends.cuda.matmul)]
    if kinds == [None, None]:  # torch before 2.9; asked later, the older switch raises
        return torch.get_float32_matmul_precision() != "highest"
    return any(kind not in (None, "none", "ieee") for kind in kinds)


def alone(value: int) -> int:
    """The largest of all ranks' values, where there is one rank."""
    return value


@dataclass
class PromptEncoder:
    """Encodes the prompts of one batch after another in the fastest way that is exact.

    Attributes:
        model: without a wrapper for distributed training.
        sharing: `auto`, `always` (refuse what cannot be shared) or `never` (plain rows).
        fast: the fast way: `SharedPrefix`, or `CachedPrompt`, which has no gradient.
        reason: why prompts cannot be shared: where the caller knows, or once it was found.
        largest: int -> the largest of all ranks' ints, so that all ranks go one way.
        is_mixed: whether the training computes in another precision than the weights have.
        num_opening: how many tokens at each prompt's end are the opening, where its probability is asked for.
        balances: whether the load-balancing loss of a mixture of experts is wanted, which plain rows give.
        shares: whether prompts are shared, as far as is known.
    """

    model: PreTrainedModel
    sharing: str = "auto"
    fast: type[SharedPrefix] | type[CachedPrompt] = SharedPrefix
    reason: str | None = None
    largest: Callable[[int], int] = alone
    is_mixed: bool = False
    num_opening: int = 0
    balances: bool = False
    shares: bool = field(init=False, default=False)

    def __post_init__(self):
        """Raises ValueError where sharing is demanded and cannot be had."""
        self._rope_limit, self._window = rope_limit(self.model), None
        self._is_model_checked = False
        self._equal_to = (0, 0)  # tokens of the longest prompt and of the longest row that were seen to be equal
        self._differs_beyond: int | None = None  # tokens of a row
        self._said: set[str] = set()
        self.shares = self.sharing != "never"
        if self.shares and self.fast.has_gradient:
            self._window = sliding_window(self.model)
            self.reason = self.reason or why_not_shareable(self.model)
            if self.reason is None:
                install(self.model)
            else:
                self._stop_sharing(self.reason)

    def __call__(self, model: nn.Module, prompt: Tokens, room: int) -> Encoded:
        """Encode prompts (B, P), padded on the left.

        Args:
            model: the model as it is called in training, with its wrapper for distributed training.
            room: tokens that may follow the prompts.

        Raises:
            ValueError: sharing is demanded and not exact, or the model is no decoder or cannot be trained.
        """
        length = self.largest(prompt.ids.size(1))
        longest = self.largest(prompt.ids.size(1) + room)
        if length > 1 and not self._is_model_checked:
            self._check_model(prompt, room)
        if self._may_share(prompt, room, length, longest):
            return self.fast(model, self.model, prompt, self.num_opening)
        one_by_one = room if self._turns_otherwise(longest) else None
        return PlainRows(model, self.model, prompt, one_by_one, self.num_opening, self.balances)

    def _check_model(self, prompt: Tokens, room: int) -> None:
        probe, room = probe_prompts(prompt, PROBE_TOKENS), min(room, PROBE_TOKENS)
        with random_numbers_from(PROBE_SEED, prompt.ids.device):  # the training's own stay as they are
            check_is_causal(self.model, probe, room, tolerance_of(self.model, self.is_mixed))
            if self.fast.has_gradient and not is_sharded(self.model):  # whose gradients `backward` alone gathers
                check_is_trainable(self.model, probe, room)
        self._is_model_checked = True

    def _turns_otherwise(self, longest: int) -> bool:
        return self._rope_limit is not None and longest > self._rope_limit

    def _may_share(self, prompt: Tokens, room: int, length: int, longest: int) -> bool:
        """Whether this batch's prompts are shared. Where they are not, the reason is said once."""
        if self._turns_otherwise(longest):
            self._say(
                "rope",
                f"rows of {longest} tokens exceed {self._rope_limit}, beyond which this model turns the positions of "
                "all tokens differently, and are encoded one at a time",
            )
            return False
        if self.shares and self._window is not None and longest > self._window:
            self._say("window", f"rows of {longest} tokens exceed the sliding window, {self._window}")
            return False
        if self.shares and length > 1:  # a prompt of one token has nothing to share
            self._compare(prompt, room, length, longest)
        if self.shares and self._differs_beyond is not None and longest > self._differs_beyond:
            self._say("length", f"rows of {longest} tokens exceed {self._differs_beyond}: {self.reason}")
            return False
        return self.shares and length > 1

    def _compare(self, prompt: Tokens, room: int, length: int, longest: int) -> None:
        """Both ways, where this batch is longer than any before."""
        equal_length, equal_longest = self._equal_to
        if length <= equal_length and longest <= equal_longest:
            return
        if self._differs_beyond is not None and longest > self._differs_beyond:
            return
        is_first = self._equal_to == (0, 0)
        tolerance = tolerance_of(self.model, self.is_mixed)
        with random_numbers_from(PROBE_SEED, prompt.ids.device):
            reason = why_different(self.model, self.fast, prompt, room, tolerance, with_gradient=is_first)
        if not self.largest(int(reason is not None)):
            self._equal_to = max(length, equal_length), max(longest, equal_longest)
        elif is_first or longest <= equal_longest:
            self._stop_sharing(reason or "another rank found a difference")
        else:
            self.reason, self._differs_beyond = reason or "another rank found a difference", equal_longest

    def _stop_sharing(self, reason: str) -> None:
        self.shares, self.reason = False, reason
        if self.fast.has_gradient:
            uninstall(self.model)
        self._say("model", reason)

    def _say(self, kind: str, reason: str) -> None:
        """Refuse, or warn once, that prompts are not shared."""
        if self.sharing == "always":
            raise ValueError(f"prefix_sharing=always cannot be had: {reason}. Set prefix_sharing to auto.")
        if self.fast.has_gradient and self.sharing == "auto" and kind not in self._said:
            logger.warning("Each prompt is encoded once a warmup, which is slower than once: %s.", reason)
            self._said.add(kind)


# ---- The check ----


def probe_prompts(prompt: Tokens, most: int | None = None) -> Tokens:
    """The longest prompt, and its second half: (2, P), so that one of them is padded; (1, P) of a single token.

    Args:
        most: tokens that are kept of it, the last ones.
    """
    row = int(prompt.mask.sum(1).argmax())
    ids = prompt.ids[row][prompt.mask[row]][-most if most else None :].tolist()
    return left_padded([ids, ids[len(ids) // 2 :]] if len(ids) > 1 else [ids], prompt.ids.device)


def probe_branches(prompt: Tokens, room: int) -> Branches:
    """Two branches for each prompt, of `room` tokens and of half as many, made of the prompt's own tokens."""
    rows = []
    for ids, mask in zip(prompt.ids, prompt.mask):
        own = ids[mask]
        cycle = own.repeat(room // len(own) + 2)
        rows.append(torch.stack([cycle[1 : room + 1], cycle[:room].flip(0)]))
    ids = torch.stack(rows)
    lengths = torch.tensor([room, (room + 1) // 2], device=ids.device).expand(len(ids), -1)
    mask = prefix_mask(lengths, room)
    return Branches(ids, mask, mask)


def check_is_causal(model: PreTrainedModel, prompt: Tokens, room: int, tolerance: Tolerance) -> None:
    """Raise ValueError where what follows a token changes what is predicted after it."""
    branches = probe_branches(prompt, room)
    first = torch.zeros_like(branches.mask)
    first[..., 0] = True
    with evaluation_mode(model):
        logits = PlainRows(model, model, prompt).predictions(branches, first).logits()
    logp = logits.float().log_softmax(-1).unflatten(0, (-1, 2))
    difference = distance(logp[:, 0], logp[:, 1])
    if difference > tolerance.nats:
        raise ValueError(
            f"{model.config.model_type} lets a token see those behind it (what it predicts after a prompt changes by "
            f"{difference:.2g} nats with what follows), so it cannot be trained to write. Use a decoder (for BERT's "
            "kin set is_decoder in the configuration)."
        )


def check_is_trainable(model: PreTrainedModel, prompt: Tokens, room: int) -> None:
    """Raise ValueError where the model's own backward pass fails."""
    try:
        with training_mode(model):
            gradient(PlainRows, model, prompt, room)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "not compatible with .grad()" in str(error):  # reentrant checkpointing, which `backward` gets through
            return
        raise ValueError(
            f"{model.config.model_type} cannot be trained: its backward pass fails ({first_line(error)}). Choose "
            "another model."
        ) from error


def why_different(
    model: PreTrainedModel,
    fast: type[SharedPrefix] | type[CachedPrompt],
    prompt: Tokens,
    room: int,
    tolerance: Tolerance,
    *,
    with_gradient: bool,
) -> str | None:
    """In words, how scores (or gradients) of the fast way differ from those of plain rows; None where they do not.

    Args:
        prompt: (B, P), padded on the left; the longest is tried, and its second half beside it.
        room: tokens of a branch.
        with_gradient: compare gradients too, after the last tokens of that prompt.
    """
    try:
        with training_mode(model) if fast.has_gradient else evaluation_mode(model):
            with torch.no_grad():
                probe, ways = probe_prompts(prompt), (PlainRows, PlainRows, fast)
                plain, again, shared = (logps(way, model, probe, room) for way in ways)
            if distance(plain, again) > tolerance.nats:
                return "the model's scores change from one call to the next (dropout, or other noise)"
            difference = distance(plain, shared)
            if difference > tolerance.nats:
                return f"with shared prompts tokens would differ by {difference:.2g} nats on average"
            if with_gradient and fast.has_gradient:
                probe, room = probe_prompts(prompt, PROBE_TOKENS), min(room, PROBE_TOKENS)
                error = relative_error(*(gradient(way, model, probe, room) for way in (PlainRows, fast)))
                if error > tolerance.gradient:
                    return f"with shared prompts the gradient would be off by {error:.0%}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model does that was not foreseen, plain rows do without it
        return f"{model.config.model_type} cannot share prompts ({first_line(error)})"
    return None


def logps(way: type[Encoded], model: PreTrainedModel, prompt: Tokens, room: int) -> Tensor:
    """(N,) log-probabilities of the probe branches' tokens, in nats."""
    branches = probe_branches(prompt, room)
    return way(model, model, prompt).predictions(branches, branches.mask).logps(branches.ids[branches.mask])


def distance(plain: Tensor, other: Tensor) -> float:
    """Mean absolute difference where both are finite, infinite where only one is; 0 where `plain` itself is NaN.

    NaN is the trainer's to tell: it knows the rows of the batch.
    """
    if plain.isnan().any():
        return 0.0
    is_finite = plain.isfinite()
    if not torch.equal(is_finite, other.isfinite()):
        return float("inf")
    return (plain - other)[is_finite].abs().mean().nan_to_num(0.0).item()


def gradient(way: type[Encoded], model: PreTrainedModel, prompt: Tokens, room: int) -> Tensor | None:
    """Of a sum in which every token has a weight of its own; of the smallest parameters. None without any."""
    chosen, size = [], 0
    for parameter in sorted((p for p in model.parameters() if p.requires_grad), key=Tensor.numel):
        if not chosen or size + parameter.numel() <= PROBE_PARAMETERS:
            chosen.append(parameter)
            size += parameter.numel()
    if not chosen:
        return None
    with torch.enable_grad():
        values = logps(way, model, prompt, room)
        weighted = (values * torch.arange(1, len(values) + 1, device=values.device).cos()).sum()
        parts = torch.autograd.grad(weighted, chosen, allow_unused=True)
    found = [part.flatten().float() for part in parts if part is not None]
    return torch.cat(found) if found else None


def relative_error(plain: Tensor | None, shared: Tensor | None) -> float:
    """0 where there is nothing to compare with."""
    if plain is None or plain.isnan().any() or plain.norm() == 0:
        return 0.0
    if shared is None or plain.shape != shared.shape or shared.isnan().any():
        return 1.0
    return ((shared - plain).norm() / plain.norm()).item()
