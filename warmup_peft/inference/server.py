"""Warmups and answers from an OpenAI-compatible server, such as vLLM.

Prompts and warmups are exchanged as token ids if the server supports that, because tokenising joined text again may
merge tokens at the boundary. Otherwise text is sent, and the boundary is checked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import requests
import torch
from requests.adapters import HTTPAdapter
from transformers import PreTrainedTokenizerBase
from urllib3.util import Retry

from warmup_peft.inference.decoding import warmup_lengths
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.method.branches import Warmups
from warmup_peft.method.sampling import SamplingSettings, end_warmups

logger = logging.getLogger(__name__)

API_KEY = "OPENAI_API_KEY"
TEXTS_AT_A_TIME = 8
BUSY = (408, 425, 429, 500, 502, 503, 504)  # status codes after which a request is repeated


class ServerError(ValueError):
    """The server cannot be reached or answers with an error."""


class RefusedError(ServerError):
    """The server rejects the request."""


@dataclass(frozen=True)
class CompletionsClient:
    """Client for `/v1/completions` of one model. If the server needs a key, it is read from OPENAI_API_KEY.

    Attributes:
        base_url: for example http://localhost:8000/v1.
        model: the name under which the server offers the model.
        timeout: seconds to wait for one answer; also the limit for a server's Retry-After.
        retries: how many times a request is repeated if the server is busy or does not answer.
        pause: seconds before the second retry; doubled each time.
    """

    base_url: str
    model: str
    timeout: float = 120.0
    retries: int = 4
    pause: float = 1.0

    def __post_init__(self):
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url={self.base_url} is not an address. Give one such as http://localhost:8000/v1.")
        if self.timeout <= 0:
            raise ValueError(f"A server_timeout of {self.timeout:g} seconds cannot work. Set it above 0.")

    def complete(self, prompts: Sequence[Sequence[int]] | str, **options: Any) -> list[dict[str, Any]]:
        """The completions of all prompts (token ids of each, or one text), in order.

        Raises:
            RefusedError: the server rejects the request.
            ServerError: the server cannot be reached or answers with an error.
            ValueError: the answer does not contain the completions.
        """
        is_text = isinstance(prompts, str)
        body = {"model": self.model, "prompt": prompts if is_text else [list(map(int, ids)) for ids in prompts]}
        answer = self._post("completions", {**body, **options})
        choices = answer.get("choices") if isinstance(answer, dict) else None
        expected = options.get("n", 1) * (1 if is_text else len(prompts))
        if not isinstance(choices, list) or len(choices) != expected:
            raise ValueError(
                f"{self.base_url} answered with {len(choices) if isinstance(choices, list) else 'no'} completions "
                f"instead of {expected}. Is it an OpenAI-compatible server?"
            )
        if not all(isinstance(choice, dict) and isinstance(choice.get("index"), int) for choice in choices):
            raise ValueError(f"{self.base_url} answered with completions without an index.")
        return sorted(choices, key=lambda choice: choice["index"])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        url = f"{self.base_url.rstrip('/')}/{path}"
        key = os.environ.get(API_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        retry = Retry(
            total=self.retries,
            backoff_factor=self.pause,
            retry_after_max=self.timeout,
            status_forcelist=BUSY,
            allowed_methods=None,
            raise_on_status=False,
        )
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            try:
                response = session.post(url, json=body, headers=headers, timeout=self.timeout)
            except requests.RequestException as error:
                raise ServerError(
                    f"{url} cannot be reached or did not answer within {self.timeout:g} seconds, after "
                    f"{self.retries + 1} tries ({type(error).__name__}). Check the server and --base_url."
                ) from error
        return self._read(url, response)

    def _read(self, url: str, response: requests.Response) -> Any:
        if response.status_code in (401, 403):
            raise ServerError(f"{url} rejects the key ({response.status_code}). Set {API_KEY} to a valid one.")
        if response.status_code == 404:
            raise ServerError(
                f"{url} has no model '{self.model}', or its path is wrong (404). Check the name and --base_url, which "
                "usually ends with /v1."
            )
        if response.status_code in (400, 422):
            raise RefusedError(f"{url} answers {response.status_code}: {response.text[:300]}")
        if response.status_code != 200:
            tries = f" after {self.retries + 1} tries" if response.status_code in BUSY else ""
            raise ServerError(f"{url} answers {response.status_code}{tries}: {response.text[:300]}")
        try:
            return response.json()
        except ValueError as error:
            raise ServerError(f"{url} answers with something that is not JSON: {response.text[:100]!r}.") from error


# ---- Answers ----


def answer_from_server(
    client: CompletionsClient,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    config: WarmupConfig,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[tuple[str, str]]:
    """Warmup and answer for each prompt, from two completion requests.

    Args:
        tokenizer: tokenizer of the served model.
        max_new_tokens: limit of the answer, in tokens.
        temperature: 0 is greedy.

    Raises:
        ValueError: as `CompletionsClient.complete`.
    """
    sampling = {"temperature": temperature, **({"top_p": top_p} if top_p < 1 else {})}
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    try:
        written = client.complete(prompt_ids, max_tokens=config.max_warmup_length, return_token_ids=True, **sampling)
    except RefusedError:  # `transformers serve` takes only one text at a time
        with ThreadPoolExecutor(TEXTS_AT_A_TIME) as pool:
            one = partial(_answer_text, client, tokenizer, config=config, max_new_tokens=max_new_tokens, **sampling)
            return list(pool.map(one, prompts))
    warmup_ids = [_warmup_ids(choice, tokenizer, config) for choice in written]
    contexts = [ids + warmup + config.warmup_separator_ids for ids, warmup in zip(prompt_ids, warmup_ids)]
    answers = client.complete(contexts, max_tokens=max_new_tokens, **sampling)
    return [(tokenizer.decode(warmup), text_of(choice)) for warmup, choice in zip(warmup_ids, answers)]


def _warmup_ids(choice: dict[str, Any], tokenizer: PreTrainedTokenizerBase, config: WarmupConfig) -> list[int]:
    """Ids before the first end token or separator. If the server returns no ids, those of the text."""
    ids = choice.get("token_ids")
    if not are(int, ids):
        ids = tokenizer(text_of(choice), add_special_tokens=False)["input_ids"]
    if not ids:
        return ids
    ends = torch.tensor([*config.end_token_ids, tokenizer.eos_token_id])
    return ids[: int(warmup_lengths(torch.tensor([ids]), ends, torch.tensor(config.warmup_separator_ids)))]


def _answer_text(
    client: CompletionsClient,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    config: WarmupConfig,
    max_new_tokens: int,
    **sampling: float,
) -> tuple[str, str]:
    written = text_of(client.complete(prompt, max_tokens=config.max_warmup_length, **sampling)[0])
    warmup = written.split(config.warmup_separator)[0]
    context = prompt + warmup + config.warmup_separator
    prompt_ids, separator_ids = tokenizer(prompt)["input_ids"], config.warmup_separator_ids
    ids = tokenizer(context)["input_ids"]
    if ids[: len(prompt_ids)] != prompt_ids or ids[-len(separator_ids) :] != separator_ids:
        logger.warning(
            "This server takes only text, and the warmup %r is tokenised differently beside the text around it. "
            "The answer may differ from the one that token ids give.",
            warmup,
        )
    return warmup, text_of(client.complete(context, max_tokens=max_new_tokens, **sampling)[0])


def text_of(choice: dict[str, Any]) -> str:
    if not isinstance(choice.get("text"), str):
        raise ValueError("The server answered with a completion that has no text.")
    return choice["text"]


# ---- Samples for a pool ----


def sample_from_server(client: CompletionsClient, settings: SamplingSettings) -> Callable[[list, int], Warmups]:
    """A function that samples `settings.num_warmups` warmups (B, M) for prompts and a seed.

    Raises:
        ValueError: the settings change the model's distribution, for which servers report no log-probabilities. The
            function raises it if the server returns no token ids.
    """
    plain = (settings.temperature, settings.top_k, settings.top_p) == (1.0, 0, 1.0) and not settings.min_p
    if not plain:
        raise ValueError(
            "A server reports log-probabilities of the model's own distribution. Leave temperature, top_k, top_p and "
            "min_p out to sample with --base_url."
        )

    def sample(prompts: list, seed: int) -> Warmups:
        choices = client.complete(
            prompts,
            n=settings.num_warmups,
            max_tokens=settings.max_length,
            seed=seed % 2**31,
            temperature=1.0,
            top_p=1.0,
            top_k=-1,  # the server would use the model's generation config for what is not given
            min_p=0.0,
            repetition_penalty=1.0,
            stop_token_ids=list(settings.end_token_ids),
            logprobs=1,
            return_token_ids=True,
            return_tokens_as_token_ids=True,
        )
        shape = (len(prompts), settings.num_warmups)
        rows = [read_choice(choice, settings, client.base_url) for choice in choices]
        ids = torch.tensor([ids + [settings.pad_token_id] * (settings.max_length - len(ids)) for ids, _ in rows])
        logps = torch.tensor([logps + [0.0] * (settings.max_length - len(logps)) for _, logps in rows])
        return end_warmups(ids.unflatten(0, shape), settings, logps.unflatten(0, shape))

    return sample


def read_choice(choice: dict[str, Any], settings: SamplingSettings, url: str) -> tuple[list[int], list[float]]:
    """Token ids and their log-probabilities, including the end token if there is one."""
    report = choice.get("logprobs")
    report = report if isinstance(report, dict) else {}
    ids, logps = choice.get("token_ids"), report.get("token_logprobs")
    if ids is None and all(str(token).startswith("token_id:") for token in report.get("tokens") or [None]):
        ids = [int(token.removeprefix("token_id:")) for token in report["tokens"]]
    if not are(int, ids) or not are(int | float, logps) or len(ids) != len(logps):
        raise ValueError(
            f"{url} returns no token ids with log-probabilities. Use a server that does, such as vLLM 0.10 or newer."
        )
    is_ended = bool(ids) and ids[-1] in settings.end_token_ids
    if len(ids) > settings.max_length or (len(ids) < settings.max_length and not is_ended):
        raise ValueError(
            f"{url} ended a warmup after {len(ids)} tokens, neither at the limit of {settings.max_length} nor with "
            f"one of the end tokens {list(settings.end_token_ids)}. Does it serve the base model of this training?"
        )
    return ids, logps


def are(kind: Any, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
