"""A vLLM for machines without one: TRL's own generation class runs, and below it a model of transformers samples.

It takes what TRL hands to vLLM (a merged model's parameters by name, prompts as token ids, sampling parameters) and
gives back what TRL reads. Its arithmetic may be made to differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from warmup_peft.method.sampling import SamplingSettings


@dataclass
class SamplingParams:
    """Those parameters of vLLM's that are sent, by their names there."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 16
    logprobs: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    seed: int | None = None


class Logprob(NamedTuple):
    logprob: float
    rank: int


class LLM:
    """vLLM's class, as far as TRL uses it, and the server's engine.

    Attributes:
        noise: standard deviation of what is added to every logit, the same for the same token, as other kernels would.
        loads: how often weights came, and asked: every request.
    """

    noise = 0.0

    def __init__(self, model: str, **options: Any):
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.options, self.loads, self.asked, self.resets = options, 0, [], 0
        self.generator = torch.Generator().manual_seed(options.get("seed") or 0)
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.load_weights))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def load_weights(self, named: Iterator[tuple[str, torch.Tensor]]) -> None:
        for name, weight in named:
            self.model.get_parameter(name).data.copy_(weight)
        self.loads += 1

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    def sleep(self, level: int) -> None:
        for weight in self.model.parameters():
            weight.data.zero_()

    def wake_up(self, tags: list[str]) -> None:
        pass

    def generate(self, prompts: list[Mapping], sampling_params: SamplingParams, use_tqdm: bool) -> list:
        self.asked.append((prompts, sampling_params))
        return [self._complete(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    @torch.no_grad()
    def _complete(self, prompt: list[int], params: SamplingParams) -> SimpleNamespace:
        assert all(type(token) is int for token in prompt), "vLLM takes nothing else"
        completions = []
        for _ in range(params.n):
            ids, logprobs = [], []
            while len(ids) < params.max_tokens and not (ids and ids[-1] in params.stop_token_ids):
                logits = self.model(torch.tensor([prompt + ids])).logits[:, -1].float()
                kernel = torch.Generator().manual_seed(1)
                logits = logits + self.noise * torch.randn(logits.shape, generator=kernel)
                settings = SamplingSettings(1, 1, (), (0,), 0, 1, params.temperature, params.top_k, params.top_p,
                                            params.min_p)  # fmt: skip
                logp = settings._truncate(logits / params.temperature).log_softmax(-1)[0]
                token = int(torch.multinomial(logp.exp(), 1, generator=self.generator))
                ids.append(token)
                logprobs.append({token: Logprob(logp[token].item(), int((logp > logp[token]).sum()) + 1)})
            completions.append(SimpleNamespace(token_ids=ids, logprobs=logprobs))
        return SimpleNamespace(prompt_token_ids=prompt, outputs=completions)


class VLLMClient:
    """TRL's client, with its engine in this process. `folder` is what the server was started with."""

    folder = ""
    logprobs_mode = "processed_logprobs"
    servers: list[VLLMClient] = []

    def __init__(
        self,
        base_url: str | None = None,
        host: str = "0.0.0.0",
        server_port: int = 8000,
        group_port: int = 51216,
        connection_timeout: float = 0.0,
    ):
        self.base_url, self.group_port, self.connection_timeout = base_url, group_port, connection_timeout
        if not self.folder:
            raise ConnectionError(f"The vLLM server can't be reached at {base_url} after 0 seconds.")
        self.llm = LLM(self.folder)
        self.servers.append(self)

    def init_communicator(self, device: torch.device | str | int = 0):
        self.device = device

    def get_server_info(self) -> dict:
        return {"model_config": {"logprobs_mode": self.logprobs_mode}}

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ):
        for (name, _, shape), (given, weight) in zip(metadata, named_params, strict=True):
            assert (name, shape) == (given, list(weight.shape))
            self.llm.model.get_parameter(name).data.copy_(weight)
        self.llm.loads += 1

    def reset_prefix_cache(self):
        self.llm.reset_prefix_cache()

    def generate(
        self,
        prompts: list[str] | list[list[int]],
        features: list[dict | None] | None = None,
        n: int = 1,
        repetition_penalty: float = 1.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        max_tokens: int = 16,
        logprobs: int | None = 0,
        structured_outputs_regex: str | None = None,
        generation_kwargs: dict | None = None,
    ) -> dict[str, list[list[int]]]:
        options = generation_kwargs or {}
        if options.get("seed") is not None:
            self.llm.generator.manual_seed(options["seed"])
        params = SamplingParams(
            n, repetition_penalty, temperature, top_p, top_k, min_p, max_tokens, logprobs, **options
        )
        outputs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        reported, tokens = vllm_generation.extract_logprobs(outputs)
        return {
            "prompt_ids": prompts,
            "completion_ids": [each.token_ids for output in outputs for each in output.outputs],
            "logprobs": reported,
            "logprob_token_ids": tokens,
        }


def install(monkeypatch, folder: str = "") -> None:
    """Let TRL and the trainer find a vLLM; a server that holds the model of `folder` where that is given."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)  # put back at the end, since TRL sets them for vLLM
    monkeypatch.setattr("warmup_peft.training.engine.is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SamplingParams, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", VLLMClient)
    monkeypatch.setattr(VLLMClient, "folder", folder)
    monkeypatch.setattr(VLLMClient, "servers", [])
