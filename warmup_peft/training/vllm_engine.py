"""TRL's generation class for vLLM, as a training of warmups starts it. Where vLLM is installed, this imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration

from warmup_peft.method.sampling import SamplingSettings
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.engine import samples_the_models_own


class Engine(VLLMGeneration):
    """TRL's, except that the base's weights are bit for bit what they were when vLLM has got new ones.

    TRL merges the adapter into the base to hand it over and subtracts it again, which rounds: the base that the anchor
    and the saved adapter rest on would drift.
    """

    def sync_weights(self) -> None:
        with base_weights_kept(self.model):
            super().sync_weights()


@contextmanager
def base_weights_kept(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Put the weights below adapter layers back; they wait on the CPU."""
    kept = {name: x.detach().to("cpu", copy=True) for name, x in model.named_parameters() if ".base_layer." in name}
    try:
        yield
    finally:
        for name, weight in kept.items():
            model.get_parameter(name).data.copy_(weight)


def start_engine(
    model: PreTrainedModel | PeftModel,
    args: WarmupSFTConfig,
    sampling: SamplingSettings,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
) -> Engine:
    """Load the model into vLLM, or connect with the server.

    Args:
        model: without a wrapper for distributed training.
        args: the `vllm_...` settings.
        sampling: with the number of warmups of a prompt that are sampled in one call.

    Raises:
        ValueError: the server cannot be reached, or reports probabilities of another distribution.
    """
    try:
        engine = Engine(
            model=model,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            server_host=args.vllm_server_host,
            server_port=args.vllm_server_port,
            server_timeout=args.vllm_server_timeout,
            group_port=args.vllm_group_port,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=max(args.per_device_train_batch_size, args.per_device_eval_batch_size)
            * sampling.num_warmups
            * args.vllm_tensor_parallel_size,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            trust_remote_code=args.trust_remote_code,
            logprobs=0,  # of the sampled token alone
        )
    except ConnectionError as error:
        raise ValueError(f"{error} Check vllm_server_base_url, or vllm_server_host and vllm_server_port.") from error
    if args.vllm_mode == "server" and accelerator.is_main_process and not samples_the_models_own(sampling):
        reported = engine.vllm_client.get_server_info()["model_config"]["logprobs_mode"]
        if reported != "processed_logprobs":
            raise ValueError(
                f"The vLLM server reports {reported}, which leave out temperature, top_k, top_p and min_p. Restart it "
                "with `--logprobs-mode processed_logprobs`."
            )
    return engine
