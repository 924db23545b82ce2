"""`warmup-peft generate`: answer prompts, with the model of a folder or with a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from warmup_peft.evaluation.answering import generate_texts
from warmup_peft.evaluation.data import read_json
from warmup_peft.files import first_line, read_text
from warmup_peft.inference.chat import Prompt, prompt_token_ids
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import write_warmups
from warmup_peft.inference.hub import with_local_folder
from warmup_peft.inference.loading import LoadedModel, Loading, context_length, load_folder, load_tokenizer
from warmup_peft.inference.server import CompletionsClient, answer_from_server
from warmup_peft.method.branches import left_padded
from warmup_peft.method.model import evaluation_mode
from warmup_peft.settings.arguments import ChatArguments, GenerateArguments, check_counts
from warmup_peft.settings.parsing import parse_one

MESSAGE = {"role", "content"}


def run(argv: Sequence[str]) -> None:
    """Print answers to standard output and warmups to standard error, or both as JSON lines.

    Raises:
        ValueError: there is no prompt, or an empty one.
    """
    options = parse_one(GenerateArguments, argv)
    check_counts(options, batch_size=1)
    check_sampling(options)
    loading = Loading.of(options)
    prompts = read_prompts(options)
    for number, prompt in enumerate(prompts, 1):
        check_prompt(number, prompt)
    if not prompts:
        raise ValueError("There is no prompt. Pass --prompt, --messages, --prompts_file, or lines on standard input.")
    answer = choose_answerer(with_local_folder(options), prompts, loading)
    batches = [prompts[i : i + options.batch_size] for i in range(0, len(prompts), options.batch_size)]
    for batch in tqdm(batches, disable=len(batches) == 1, unit="batch", desc="answering"):
        for prompt, (warmup, text) in zip(batch, answer(batch)):
            if options.json:
                print(json.dumps({"prompt": prompt, "warmup": warmup, "answer": text}, ensure_ascii=False))
            else:
                print(f"warmup: {warmup.strip()}", file=sys.stderr, flush=True)
                print(text.strip(), flush=True)


def choose_answerer(
    options: GenerateArguments, prompts: Sequence[Prompt], loading: Loading
) -> Callable[[Sequence[Prompt]], list[tuple[str, str]]]:
    """A function from prompts to the warmup and answer of each.

    Raises:
        ValueError: only one of base_url and model is given, the folder holds no warmup adapter, or its chat template
            cannot read one of `prompts`.
    """
    client = choose_client(options)
    config = WarmupConfig.load(options.adapter)
    as_trained = partial(in_trained_form, config)
    if config.uses_chat_template or not all(isinstance(prompt, str) for prompt in prompts):
        check_chat(
            load_tokenizer(options.adapter, trust_remote_code=loading.trust_remote_code), config, as_trained(prompts)
        )
    if client is not None:
        answer = partial(
            answer_from_server,
            client,
            load_tokenizer(options.adapter, trust_remote_code=loading.trust_remote_code),
            config=config,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature if options.do_sample else 0.0,
            top_p=options.top_p if options.do_sample else 1.0,
        )
    else:
        answer = partial(answer_prompts, load_folder(options.adapter, loading), options)
        set_seed(options.seed)
    return lambda batch: answer(as_trained(batch))


def choose_client(options: GenerateArguments) -> CompletionsClient | None:
    if (options.base_url is None) != (options.model is None):
        missing = "--model" if options.model is None else "--base_url"
        raise ValueError(f"{missing} is not given. A server needs both --base_url and --model.")
    if options.base_url is None:
        return None
    return CompletionsClient(options.base_url, options.model, timeout=options.server_timeout)


def check_sampling(options: GenerateArguments | ChatArguments) -> None:
    """Raise ValueError for numbers with which nothing can be generated."""
    check_counts(options, max_new_tokens=1, seed=0)
    if options.temperature <= 0 or not 0 < options.top_p <= 1:
        raise ValueError(
            f"temperature={options.temperature} with top_p={options.top_p} cannot work. Set temperature above 0, and "
            "top_p above 0 and at most 1."
        )


def sampling_of(options: GenerateArguments | ChatArguments) -> dict[str, Any]:
    """What `generate` takes."""
    if not options.do_sample:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}


# ---- Prompts ----


def read_prompts(options: GenerateArguments) -> list[Prompt]:
    given = [name for name in ("prompt", "messages", "prompts_file") if getattr(options, name) is not None]
    if len(given) > 1:
        raise ValueError(f"--{given[0]} and --{given[1]} are both given. Choose one of them.")
    if options.prompt is not None:
        return [options.prompt]
    if options.messages is not None:
        return [read_messages(options.messages)]
    if options.prompts_file is None:
        return sys.stdin.read().splitlines()
    path = Path(options.prompts_file)
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist. Check --prompts_file.")
    if path.suffix in (".jsonl", ".json"):
        rows = list(read_json(path))
        for number, row in enumerate(rows, 1):
            if not isinstance(prompt_of(row), str | list):
                raise ValueError(f"{path}, row {number} has no text in the field `prompt`, and no list of `messages`.")
            for name in ("tools", "chat_template_kwargs"):
                if row.get(name):
                    raise ValueError(f"{path}, row {number} has `{name}`, which `generate` cannot offer. Remove them.")
        return [prompt_of(row) for row in rows]
    return read_text(path).splitlines()


def prompt_of(row: Mapping[str, Any]) -> Any:
    return row.get("prompt", row.get("messages"))


def read_messages(text: str) -> Any:
    """The JSON value of --messages, or of the file that it names."""
    is_json = text.lstrip().startswith(("[", "{"))
    if not is_json and not Path(text).is_file():
        raise ValueError(f"--messages is neither a JSON list nor a file: {text[:100]}")
    try:
        return json.loads(text if is_json else read_text(Path(text)))
    except json.JSONDecodeError as error:
        raise ValueError(f"--messages is no whole JSON value ({error}).") from error


def check_prompt(number: int, prompt: Any) -> None:
    """Raise ValueError if there is nothing to answer."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"Prompt {number} is empty. Give every prompt some text.")
        return
    messages = prompt if isinstance(prompt, list) else []
    if not messages or not all(isinstance(message, dict) and message.keys() >= MESSAGE for message in messages):
        raise ValueError(
            f"Prompt {number} is no conversation. Write it as a list of messages, each with a role and a content: "
            '[{"role": "user", "content": "..."}].'
        )
    odd = [message["content"] for message in messages if not isinstance(message["content"] or "", str | list)]
    if odd or not messages[-1]["content"]:
        raise ValueError(
            f"Prompt {number} has a message whose content is {odd[0] if odd else 'empty'}. Give it some text."
        )
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"Prompt {number} ends with a message of the assistant, so there is nothing to answer. End it with the "
            "user's."
        )


def in_trained_form(config: WarmupConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """A text becomes one message of the user where the adapter was trained on conversations."""
    is_chat = config.uses_chat_template
    return [
        [{"role": "user", "content": prompt}] if is_chat and isinstance(prompt, str) else prompt for prompt in prompts
    ]


def check_chat(tokenizer: PreTrainedTokenizerBase, config: WarmupConfig, prompts: Sequence[Prompt]) -> None:
    """Raise ValueError if there is no chat template, or if it refuses one of the prompts."""
    for number, prompt in enumerate(prompts, 1):
        try:
            prompt_token_ids(tokenizer, prompt, config)
        except (ValueError, ImportError):
            raise
        except Exception as error:  # a template may raise whatever it likes
            raise ValueError(f"The chat template cannot read prompt {number}: {first_line(error)}") from error


# ---- Answers ----


def check_room(model: PreTrainedModel, config: WarmupConfig, prompt_length: int, max_new_tokens: int) -> None:
    """Raise ValueError if prompt, warmup, separator and answer do not fit into the model's context."""
    context = context_length(model.config)
    needed = prompt_length + config.room + max_new_tokens
    if context is not None and needed > context:
        raise ValueError(
            f"A prompt of {prompt_length} tokens with its warmup and an answer of up to {max_new_tokens} needs "
            f"{needed}, and the model's context has {context}. Shorten the prompt, or lower --max_new_tokens."
        )


def answer_prompts(
    loaded: LoadedModel, options: GenerateArguments, prompts: Sequence[Prompt]
) -> list[tuple[str, str]]:
    """Warmup and answer of each prompt."""
    tokenizer, model = loaded.tokenizer, loaded.model
    prompt_ids = [prompt_token_ids(tokenizer, prompt, loaded.warmup_config) for prompt in prompts]
    check_room(model, loaded.warmup_config, max(map(len, prompt_ids)), options.max_new_tokens)
    prompt = left_padded(prompt_ids, model.device)
    sampling, config = sampling_of(options), loaded.warmup_config
    if config.max_warmup_length == 0:
        answers = generate_texts(model, tokenizer, prompt, None, None, options.max_new_tokens, **sampling)
        return [("", text) for text in answers]
    with evaluation_mode(model):
        warmups = write_warmups(model, prompt, config, **sampling)
        answers = generate_texts(model, tokenizer, prompt, warmups, config, options.max_new_tokens, **sampling)
    written = [tokenizer.decode(warmups.ids[row, 0, : warmups.lengths[row, 0]]) for row in range(len(prompts))]
    return list(zip(written, answers))
