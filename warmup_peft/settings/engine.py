"""Options of the engine that samples warmups, with the names, meanings and defaults of TRL's `GRPOConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SEQUENCE_MODES = ("sequence_mask", "sequence_truncate")


@dataclass
class EngineOptions:
    """Who samples the model's warmups: the training's own loop, or vLLM."""

    use_vllm: bool = field(
        default=False,
        metadata={
            "help": "Sample warmups with vLLM, as TRL's GRPO does: those of warmup_source 'policy', and the pool of "
            "'base'. Needs the package vllm."
        },
    )
    vllm_mode: Literal["colocate", "server"] = field(
        default="colocate",
        metadata={
            "help": "Where vLLM runs: 'colocate' in the training's process, on its GPU; 'server' is one that `vllm "
            "serve` started, with the flags that TRL's vLLM guide names."
        },
    )
    vllm_model_impl: str = field(
        default="vllm", metadata={"help": "Whose implementation of the model vLLM runs: 'vllm' or 'transformers'."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Free the GPU memory of a colocated vLLM between two samplings."}
    )
    vllm_server_base_url: str | None = field(
        default=None,
        metadata={"help": "Address of the server, such as http://localhost:8000, instead of host and port."},
    )
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "Host of the server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of the server."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "How many seconds to wait at the start until the server is up."}
    )
    vllm_group_port: int = field(default=51216, metadata={"help": "Port over which the server gets new weights."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the GPU's memory that a colocated vLLM takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None,
        metadata={"help": "Context of a colocated vLLM in tokens: the longest prompt and max_warmup_length at least."},
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "Over how many GPUs a colocated vLLM spreads the model."}
    )
    vllm_importance_sampling_correction: bool = field(
        default=True,
        metadata={
            "help": "Weigh each warmup by its probability under the model over that under vLLM, whose arithmetic "
            "differs a little, in weights, advantages and anchor."
        },
    )
    vllm_importance_sampling_mode: str = field(
        default="sequence_mask",
        metadata={
            "help": "What happens to a ratio beyond the two clip values: 'sequence_mask' leaves the warmup out, "
            "'sequence_truncate' takes the clip value."
        },
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=3.0, metadata={"help": "The largest ratio of that correction."}
    )
    vllm_importance_sampling_clip_min: float | None = field(
        default=None, metadata={"help": "The smallest ratio of that correction."}
    )

    def check_engine_options(self) -> None:
        """Raise ValueError for a value that cannot work. The message names the field and says how to fix it."""
        require = self._require
        require(self.vllm_mode in ("colocate", "server"), "vllm_mode", "Choose colocate or server.")
        require(
            0 < self.vllm_gpu_memory_utilization < 1, "vllm_gpu_memory_utilization", "Set it between 0 and 1, as 0.3."
        )
        require(self.vllm_tensor_parallel_size >= 1, "vllm_tensor_parallel_size", "Set it to 1 or more.")
        require(
            self.vllm_importance_sampling_mode in SEQUENCE_MODES,
            "vllm_importance_sampling_mode",
            "A warmup counts as a whole, so its ratio is that of all its tokens. Choose "
            f"{' or '.join(SEQUENCE_MODES)}.",
        )
        smallest, largest = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        require(
            smallest is None or largest is None or smallest < largest,
            "vllm_importance_sampling_clip_min",
            f"Set it below vllm_importance_sampling_clip_max={largest}.",
        )

    def _require(self, holds: bool, name: str, fix: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"{name}={repr(value) if value == '' else value} cannot work. {fix}")
