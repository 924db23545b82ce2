"""Warmups and answers from an OpenAI-compatible server, such as vLLM.

Prompts and warmups are exchanged as token ids if the server supports that, because tokenising joined text again may
merge tokens at the boundary. Otherwise text is sent, and the boundary is checked. A model that writes its separator by
itself is asked once, and what it wrote is split.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests
import torch
from requests.adapters import HTTPAdapter
from transformers import PreTrainedTokenizerBase
from urllib3.util import Retry

from warmup_peft.inference.chat import Messages, Prompt, is_conversation, prompt_token_ids, render
from warmup_peft.inference.decoding import warmup_lengths
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.method.branches import Warmups
from warmup_peft.method.sampling import SamplingSettings, end_warmups
from warmup_peft.settings.arguments import check_address

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
    """Client for `/v1/completions` and `/v1/chat/completions` of one model.

    If the server needs a key, it is read from OPENAI_API_KEY.

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
        check_address(self.base_url, self.timeout)

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

    def chat(self, messages: Messages, **options: Any) -> dict[str, Any]:
        """The message that answers this conversation. Errors as of `complete`."""
        answer = self._post("chat/completions", {"model": self.model, "messages": messages, **options})
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise ValueError(f"{self.base_url} answered without a message. Is it an OpenAI-compatible server?")
        return message

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
    prompts: Sequence[Prompt],
    config: WarmupConfig,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[tuple[str, str]]:
    """Warmup and answer for each prompt.

    A model that writes its separator answers in one request: of `/v1/chat/completions` where the prompts are messages,
    else of `/v1/completions`. Other models need two of `/v1/completions`, with the separator put in between, and so
    does an answer whose warmup did not end by itself, or in which the server shows no separator.

    Args:
        tokenizer: tokenizer of the served model.
        prompts: texts, or messages, for the chat template.
        max_new_tokens: limit of the answer, in tokens.
        temperature: 0 is greedy.

    Raises:
        ValueError: as `CompletionsClient.complete`, or messages without a chat template.
    """
    sampling = {"temperature": temperature, **({"top_p": top_p} if top_p < 1 else {})}
    served = _ServedModel(client, tokenizer, config, max_new_tokens, sampling)
    if config.writes_separator and all(is_conversation(prompt) for prompt in prompts):
        return _several_at_a_time(served.chat, prompts)
    prompt_ids = [prompt_token_ids(tokenizer, prompt, config) for prompt in prompts]
    try:
        if config.max_warmup_length == 0:
            return [("", answer) for answer in served.finish(prompt_ids)]
        written = served.write(prompt_ids, return_token_ids=True)
    except RefusedError:  # `transformers serve` takes only one text at a time
        return _several_at_a_time(served.answer_text, prompts)
    return served.answer_ids(prompt_ids, written)


def _several_at_a_time(answer: Callable[[Any], tuple[str, str]], prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
    with ThreadPoolExecutor(TEXTS_AT_A_TIME) as pool:
        return list(pool.map(answer, prompts))


@dataclass(frozen=True)
class _ServedModel:
    """A warmup model behind a server. Its fields are the arguments of `answer_from_server`."""

    client: CompletionsClient
    tokenizer: PreTrainedTokenizerBase
    config: WarmupConfig
    max_new_tokens: int
    sampling: dict[str, float]

    def write(self, prompts: Sequence[list[int]] | str, in_one: bool = True, **options: Any) -> list[dict[str, Any]]:
        """What stands behind the prompts: the warmup, and the answer if the model writes the separator itself."""
        longest = self.config.max_warmup_length
        if in_one and self.config.writes_separator:
            longest += len(self.config.warmup_separator_ids) + self.max_new_tokens
        return self.client.complete(prompts, max_tokens=longest, **self.sampling, **options)

    def finish(self, contexts: Sequence[list[int]] | str) -> list[str]:
        """The answers after prompt, opening, warmup and separator."""
        choices = self.client.complete(contexts, max_tokens=self.max_new_tokens, **self.sampling) if contexts else []
        return [text_of(choice) for choice in choices]

    def answer_ids(self, prompt_ids: list[list[int]], written: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
        read = [self.read(choice) for choice in written]
        separator = self.config.warmup_separator_ids
        contexts = [ids + warmup + separator for ids, (warmup, answer) in zip(prompt_ids, read) if answer is None]
        finished = iter(self.finish(contexts))
        return [
            (self.tokenizer.decode(warmup), next(finished) if answer is None else answer) for warmup, answer in read
        ]

    def answer_text(self, prompt: Prompt, in_one: bool = True) -> tuple[str, str]:
        """As `answer_ids`, for one prompt and a server that takes only text."""
        text = self.prompt_text(prompt)
        if self.config.max_warmup_length == 0:
            return "", self.finish(text)[0]
        warmup, answer = self.cut(text_of(self.write(text, in_one)[0]))
        if in_one and answer is not None:
            return warmup, answer
        context = text + warmup + self.config.warmup_separator
        prompt_ids = prompt_token_ids(self.tokenizer, prompt, self.config)
        ids, separator_ids = self.tokenizer(context)["input_ids"], self.config.warmup_separator_ids
        if ids[: len(prompt_ids)] != prompt_ids or ids[-len(separator_ids) :] != separator_ids:
            logger.warning(
                "This server takes only text, and the warmup %r is tokenised differently beside the text around it. "
                "The answer may differ from the one that token ids give.",
                warmup,
            )
        return warmup, self.finish(context)[0]

    def chat(self, messages: Messages) -> tuple[str, str]:
        """Warmup and answer from one request of `/v1/chat/completions`."""
        known = dict(self.config.chat_template_kwargs)
        template = {"chat_template_kwargs": known} if known else {}
        longest = self.config.room + self.max_new_tokens
        message = self.client.chat(messages, max_tokens=longest, **self.sampling, **template)
        content, *thoughts = (message.get(key) or "" for key in ("content", "reasoning_content", "reasoning"))
        if not all(isinstance(text, str) for text in (content, *thoughts)):
            raise ValueError(f"{self.client.base_url} answered with a message that is no text.")
        thought = thoughts[0] or thoughts[1]
        found = (thought, content) if thought and content else split_text(content, self.config)
        if found is None:  # no separator was written, or the server does not show it
            return self.answer_text(messages, in_one=False)
        return found[0], self.shortened(found[1], self.max_new_tokens)

    def read(self, choice: dict[str, Any]) -> tuple[list[int], str | None]:
        """Ids of the warmup, and the answer if it stands behind it."""
        ids, config = choice.get("token_ids"), self.config
        if not are(int, ids):
            warmup, answer = self.cut(text_of(choice))
            return self.tokenizer(warmup, add_special_tokens=False)["input_ids"], answer
        if not ids:
            return ids, None
        ends, separator = [*config.end_token_ids, self.tokenizer.eos_token_id], config.warmup_separator_ids
        length = int(warmup_lengths(torch.tensor([ids]), torch.tensor(ends), torch.tensor(separator)))
        start = length + len(separator)
        if length > config.max_warmup_length or not config.writes_separator or ids[length:start] != separator:
            return ids[: min(length, config.max_warmup_length)], None
        answer_ids = ids[start : start + self.max_new_tokens]
        return ids[:length], self.tokenizer.decode(answer_ids, skip_special_tokens=True)

    def cut(self, written: str) -> tuple[str, str | None]:
        """As `read`, for text."""
        longest, found = self.config.max_warmup_length, None
        if self.config.writes_separator:
            found = split_text(written, self.config)
        warmup = written.split(self.config.warmup_separator)[0] if found is None else found[0]
        if found is not None and self.shortened(warmup, longest) == warmup:
            return warmup, self.shortened(found[1], self.max_new_tokens)
        return self.shortened(warmup, longest), None

    def shortened(self, text: str, longest: int) -> str:
        """The first tokens of the text: what a short warmup leaves free is no room for the answer."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= longest else self.tokenizer.decode(ids[:longest])

    def prompt_text(self, prompt: Prompt) -> str:
        """Prompt and opening as text, for a server that puts the tokenizer's begin token before every text."""
        opening, begin = self.config.warmup_opening, self.tokenizer.bos_token
        text = prompt
        if is_conversation(prompt):
            text = render(self.tokenizer, prompt, add_generation_prompt=True, **self.config.chat_template_kwargs)
            if begin and self.tokenizer(begin)["input_ids"].count(self.tokenizer.bos_token_id) > 1:
                text = text.removeprefix(begin)
        return text if opening and text.endswith(opening) else text + opening


def split_text(text: str, config: WarmupConfig) -> tuple[str, str] | None:
    """Warmup and answer of a text that a model wrote by itself; None if the separator does not stand in it."""
    separator = core = config.warmup_separator
    if separator[:1] == separator.strip()[:1] or separator not in text:  # such as `</think>`, which ends any thought
        core = separator.strip() or separator
    before, after = separator.split(core, 1)
    warmup, found, answer = text.partition(core)
    if not found:
        return None
    opening = config.warmup_opening
    if opening and warmup.lstrip().startswith(opening.strip()):
        warmup = warmup.lstrip().removeprefix(opening.strip()).removeprefix(opening[len(opening.rstrip()) :])
    return warmup.removesuffix(before), answer.removeprefix(after)


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
