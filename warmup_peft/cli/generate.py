"""`warmup-peft generate`: answer prompts, with the model of a folder or with a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from warmup_peft.cli.prompts import checked_prompts
from warmup_peft.evaluation.answering import generate_texts
from warmup_peft.files import first_line
from warmup_peft.inference.chat import Prompt, prompt_token_ids
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import write_warmups
from warmup_peft.inference.hub import with_local_folder
from warmup_peft.inference.loading import LoadedModel, Loading, context_length, load_folder, load_tokenizer
from warmup_peft.inference.server import CompletionsClient, answer_from_server
from warmup_peft.method.branches import left_padded
from warmup_peft.method.model import evaluation_mode
from warmup_peft.settings.arguments import ChatArguments, GenerateArguments, check_counts, check_sampling, check_server
from warmup_peft.settings.parsing import parse_one


def run(argv: Sequence[str]) -> None:
    """Print answers to standard output and warmups to standard error, or both as JSON lines.

    Raises:
        ValueError: there is no prompt, or an empty one.
    """
    options = parse_one(GenerateArguments, argv)
    check_counts(options, batch_size=1)
    check_sampling(options)
    loading = Loading.of(options)
    prompts = checked_prompts(options)
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
    check_server(options)
    config = WarmupConfig.load(options.adapter)
    as_trained = partial(in_trained_form, config)
    if config.uses_chat_template or not all(isinstance(prompt, str) for prompt in prompts):
        check_chat(
            load_tokenizer(options.adapter, trust_remote_code=loading.trust_remote_code), config, as_trained(prompts)
        )
    if options.base_url is not None:
        answer = partial(
            answer_from_server,
            CompletionsClient(options.base_url, options.model, timeout=options.server_timeout),
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


def sampling_of(options: GenerateArguments | ChatArguments) -> dict[str, Any]:
    """What `generate` takes."""
    if not options.do_sample:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}


# ---- Prompts ----


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
