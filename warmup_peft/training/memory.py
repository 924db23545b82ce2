"""How much memory a training step takes, known before a model is there.

Nothing here is fitted. The step's own code (prompts, sampling, scores, loss, backward pass) runs once on torch's meta
device, where tensors have a shape and a dtype and no numbers, and `AliveBytes` counts those that are alive at the same
time. So any architecture works of which there is a configuration, and what changes the step changes the prediction.

What is not counted is not in the code either: the CUDA context, workspaces of its libraries, and what the allocator
cannot use of its blocks. `MARGIN` is left free for them. Attention is taken to be a fused kernel that keeps queries,
keys, values and its output, as flash attention does. Rows are taken to be as long as they may become.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoModelForCausalLM, PretrainedConfig

from warmup_peft.files import first_line
from warmup_peft.inference.quantization import stored_quantization
from warmup_peft.method.branches import Tokens, Warmups
from warmup_peft.method.encoding import Encoded
from warmup_peft.method.model import adapter_off, evaluation_mode
from warmup_peft.method.objective import credit_of, warmup_loss
from warmup_peft.method.prefix import SharedPrefix, install, why_not_shareable
from warmup_peft.method.rows import PlainRows
from warmup_peft.method.sampling import SamplingSettings
from warmup_peft.method.scoring import score_warmups
from warmup_peft.method.ways import from_cache, from_kept_keys
from warmup_peft.settings.traits import OBJECTIVE_TRAITS

MARGIN = 0.1  # of a card's memory
LORA = dict(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        batch_size: B.
        num_warmups: K.
        prompt_length, max_warmup_length, separator_length, target_length: P, W, S and Y, in tokens.
        dtype: of the base model and of the arithmetic.
        load_in_4bit: whether the base model is in NF4 with double quantisation.
        gradient_checkpointing: whether activations are computed again in the backward pass.
        shares: whether each prompt is encoded once, or once a warmup.
        objective, warmup_anchor, warmup_source, learn_separator: as in `WarmupSFTConfig`.
    """

    batch_size: int
    num_warmups: int
    prompt_length: int
    max_warmup_length: int
    target_length: int
    separator_length: int = 2
    dtype: torch.dtype = torch.float32
    load_in_4bit: bool = False
    gradient_checkpointing: bool = False
    shares: bool = True
    objective: str = "warmup"
    warmup_anchor: float = 0.0
    warmup_source: str = "policy"
    learn_separator: bool = False


@dataclass(frozen=True)
class PredictedMemory:
    """Bytes on the device.

    Attributes:
        weights: of the base model.
        adapter: its weights and AdamW's two states of each. The gradients are among `moments`.
        prompt_keys_and_values: what the branches read of the prompts.
        prompt_activations: what else is kept of the prompts for the backward pass.
        branch_activations: what is kept of the branches, with what their loss keeps.
        moments: the most that the step's own tensors take while the prompts are encoded, while warmups are sampled,
            while they are scored, and in the backward pass. Each has in it what is kept at that time.
    """

    weights: int
    adapter: int
    prompt_keys_and_values: int
    prompt_activations: int
    branch_activations: int
    moments: dict[str, int]

    @property
    def total(self) -> int:
        return self.weights + self.adapter + max(self.moments.values())

    def summary(self) -> dict[str, Any]:
        """As JSON has it."""
        parts = ("weights", "adapter", "prompt_keys_and_values", "prompt_activations", "branch_activations", "moments")
        return {**{name: getattr(self, name) for name in parts}, "total": self.total}


class AliveBytes(TorchDispatchMode):
    """Peak size, in bytes, of the tensors that are created in its block and alive at the same time.

    Attributes:
        now: bytes alive.
        peak: the most so far.
        moment: a name; `peaks` has the most of each.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.moment = ""
        self.peaks: dict[str, int] = defaultdict(int)
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = self.call(function, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.see(tensor.untyped_storage())
        return result

    def call(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)

    def see(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        self.peaks[self.moment] = max(self.peaks[self.moment], self.now)
        weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, size: int) -> None:
        self.now -= size


# ---- A step without numbers ----


class AliveOnMeta(AliveBytes):
    """Counts what code that was written for numbers does on the meta device.

    Whatever is asked of a number is answered with true. Token ids and masks stay on the CPU, so that they can choose
    rows, and meet the other tensors as if they were on the meta device, too.
    """

    CHOOSE = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
    ASK = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.allclose.default)

    def call(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        is_meta = any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((args, kwargs)))
        if is_meta and function in self.ASK:
            return True
        if is_meta and function not in self.CHOOSE:
            args, kwargs = tree_map(without_numbers, (args, kwargs))
        return function(*args, **kwargs)


def without_numbers(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) and not value.is_meta else value


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Attention as one kernel, which on the meta device would be matrix products that keep all scores."""
    if attn_mask is not None:  # kernels take no mask of bools
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, is_causal=kwargs.get("is_causal", False), attn_mask=attn_mask)[0]


def predicted_memory(config: PretrainedConfig, step: Step) -> PredictedMemory:
    """What a step takes at its peak, with LoRA of rank 16 on all linear layers and AdamW in the adapter's dtype.

    Args:
        config: of a causal language model.
        step: the step.

    Raises:
        ImportError: `load_in_4bit` without bitsandbytes.
        ValueError: it cannot be told, as for weights that are stored in some other quantisation, or for a model that
            cannot do without numbers.
    """
    stored = stored_quantization(config)
    if stored is not None:
        raise ValueError(
            f"The memory of weights that are stored in {stored.get('quant_method')} is not predicted. Name the model "
            "that they were made from."
        )
    try:
        return of_model(model_on_meta(config, step), step)
    except ImportError:
        raise
    except Exception as error:  # whatever a model does that was not foreseen
        raise ValueError(
            f"The memory of {config.model_type} cannot be predicted ({first_line(error)}). Measure it with bench."
        ) from error


def of_model(model: PeftModel, step: Step) -> PredictedMemory:
    """Of a model on the meta device, in training mode."""
    shares = step.shares and why_not_shareable(model) is None
    if shares:
        install(model)
    prompt, warmups, target = tokens_of(step)
    settings = SamplingSettings(
        step.num_warmups,
        step.max_warmup_length,
        (),
        tuple(range(step.separator_length)),
        pad_token_id=0,
        closing_id=0 if step.learn_separator else None,
    )
    # in the module itself, since torch's modes for functions are off where checkpointing computes again
    with AliveOnMeta() as alive, patch.object(F, "scaled_dot_product_attention", fused_attention):
        alive.moment = "prompts"
        encoded = (SharedPrefix if shares else PlainRows)(model, model, prompt)
        with_prompts = alive.now
        if step.warmup_source == "policy":
            alive.moment = "sampling"
            sample_last_token(model, encoded, settings)
        alive.moment = "scores"
        loss = loss_of(model, encoded, warmups, target, settings, step)
        with_branches = alive.now
        alive.moment = "backward"
        loss.backward()
    kept = [x for pair in encoded.layers.values() for x in pair] if shares else []
    keys_and_values = sum(x.numel() * x.element_size() for x in kept)
    adapter = [p for p in model.parameters() if p.requires_grad]
    return PredictedMemory(
        weights=sum(bytes_of(p) for p in model.parameters() if not p.requires_grad),
        adapter=3 * sum(bytes_of(p) for p in adapter),
        prompt_keys_and_values=keys_and_values,
        prompt_activations=with_prompts - keys_and_values,
        branch_activations=with_branches - with_prompts,
        moments=dict(alive.peaks),
    )


def model_on_meta(config: PretrainedConfig, step: Step) -> PeftModel:
    """The model with its adapter, in training mode."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=step.dtype)
    if step.load_in_4bit:
        put_in_nf4(model, step.dtype)
    model = get_peft_model(model, LoraConfig(**LORA))
    if step.load_in_4bit:  # as TRL does
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16() if parameter.requires_grad else parameter.data
    if step.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def put_in_nf4(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace all linear layers but the head by those of bitsandbytes, with weights of the size that NF4 has."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit, Params4bit

    def meta(size: int, kind: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or module is model.get_output_embeddings():
            continue
        size = module.weight.numel()
        num_blocks = -(-size // 64)
        nested = QuantState(meta(-(-num_blocks // 256), torch.float32), code=meta(256, torch.float32), blocksize=256,
                            dtype=torch.float32)  # fmt: skip
        state = QuantState(
            meta(num_blocks, torch.uint8), module.weight.shape, meta(16, torch.float32), 64, "nf4", dtype,
            offset=torch.empty((), device="meta"), state2=nested,
        )  # fmt: skip
        packed = Linear4bit(module.in_features, module.out_features, module.bias is not None, dtype, device="meta")
        packed.weight = Params4bit(
            meta(-(-size // 2), torch.uint8).unsqueeze(1), False, state, 64, True, "nf4", bnb_quantized=True
        )
        packed.compute_type_is_set = True
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed)


def bytes_of(parameter: nn.Parameter) -> int:
    """With what bitsandbytes keeps beside a packed weight."""
    size = parameter.numel() * parameter.element_size()
    state = getattr(parameter, "quant_state", None)
    return size if state is None else size + state.absmax.numel() + 4 * state.state2.absmax.numel()


def tokens_of(step: Step) -> tuple[Tokens, Warmups, Tokens]:
    """Prompts (B, P), warmups (B, K, W), all of them different, and targets (B, Y)."""

    def whole(*shape: int) -> Tokens:
        return Tokens(torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool))

    shape = step.batch_size, step.num_warmups
    ids = torch.zeros(*shape, step.max_warmup_length, dtype=torch.long)
    ids[..., 0] = torch.arange(step.num_warmups)
    lengths = torch.full(shape, step.max_warmup_length)
    prompt, target = whole(step.batch_size, step.prompt_length), whole(step.batch_size, step.target_length)
    return prompt, Warmups(ids, lengths, lengths, torch.zeros(shape)), target


def sample_last_token(model: PeftModel, encoded: Encoded, settings: SamplingSettings) -> None:
    """Where sampling takes the most: its last token but one is written into the cache."""
    inner = model.get_base_model()
    with evaluation_mode(inner):
        way = from_kept_keys if isinstance(encoded, SharedPrefix) else from_cache
        decoding = way(inner, encoded, settings.num_warmups)
        written = settings.max_length - 2
        if written > 0:
            for index, layer in enumerate(decoding.cache.layers):
                new = (x.new_empty(*x.shape[:2], written, x.size(3)) for x in (layer.keys, layer.values))
                decoding.cache.update(*new, index)
            decoding.mask = F.pad(decoding.mask, (0, written), value=1)
        token, _ = settings.sample(decoding.logits)
        if written >= 0:
            decoding.write(token)
            settings.sample(decoding.logits)


def loss_of(
    model: PeftModel, encoded: Encoded, warmups: Warmups, target: Tokens, settings: SamplingSettings, step: Step
) -> Tensor:
    """As `WarmupSFTTrainer.compute_loss` has it."""

    @contextmanager
    def as_reference():
        with evaluation_mode(model), adapter_off(model):
            yield

    def reference(*asked):
        with as_reference():
            return encoded.again(model).predictions(*asked).within(as_reference)

    traits = OBJECTIVE_TRAITS[step.objective]
    scores = score_warmups(
        encoded,
        warmups,
        target,
        settings,
        with_warmup_logp=traits.has_advantage,
        with_kl=step.warmup_anchor > 0,
        kl_from_reference=not traits.is_penalised,
        with_gain=traits.needs_gain,
        source_logp_BK=warmups.logp if step.warmup_source == "base" else None,
        reference=reference,
    )
    credit = credit_of(scores, objective=step.objective, beta=step.warmup_anchor)
    return warmup_loss(scores, credit, objective=step.objective, beta=step.warmup_anchor)
