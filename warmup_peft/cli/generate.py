"""`warmup-peft generate`: answer prompts, with the model of a folder or with a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, set_seed

from warmup_peft.evaluation.data import read_json
from warmup_peft.evaluation.predictor import generate_texts
from warmup_peft.files import read_text
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import write_warmups
from warmup_peft.inference.loading import LoadedModel, context_length, load_folder, load_tokenizer
from warmup_peft.inference.server import CompletionsClient, answer_from_server
from warmup_peft.method.branches import left_padded
from warmup_peft.method.model import evaluation_mode
from warmup_peft.settings.arguments import GenerateArguments, check_counts
from warmup_peft.settings.parsing import parse_one


def run(argv: Sequence[str]) -> None:
    """Print answers to standard output and warmups to standard error, or both as JSON lines.

    Raises:
        ValueError: there is no prompt, or an empty one.
    """
    options = parse_one(GenerateArguments, argv)
    check_counts(options, batch_size=1, max_new_tokens=1, seed=0)
    if options.temperature <= 0 or not 0 < options.top_p <= 1:
        raise ValueError(
            f"temperature={options.temperature} with top_p={options.top_p} cannot work. Set temperature above 0, and "
            "top_p above 0 and at most 1."
        )
    prompts = read_prompts(options)
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ValueError(f"Prompt {number} is empty. Give every prompt some text.")
    if not prompts:
        raise ValueError("There is no prompt. Pass --prompt, --prompts_file, or lines on standard input.")
    answer = choose_answerer(options)
    batches = [prompts[i : i + options.batch_size] for i in range(0, len(prompts), options.batch_size)]
    for batch in tqdm(batches, disable=len(batches) == 1, unit="batch", desc="answering"):
        for prompt, (warmup, text) in zip(batch, answer(batch)):
            if options.json:
                print(json.dumps({"prompt": prompt, "warmup": warmup, "answer": text}, ensure_ascii=False))
            else:
                print(f"warmup: {warmup.strip()}", file=sys.stderr, flush=True)
                print(text.strip(), flush=True)


def choose_answerer(options: GenerateArguments) -> Callable[[Sequence[str]], list[tuple[str, str]]]:
    """A function from prompts to the warmup and answer of each.

    Raises:
        ValueError: only one of base_url and model is given, or the folder holds no warmup adapter.
    """
    if (options.base_url is None) != (options.model is None):
        missing = "--model" if options.model is None else "--base_url"
        raise ValueError(f"{missing} is not given. A server needs both --base_url and --model.")
    if options.base_url is not None:
        client = CompletionsClient(options.base_url, options.model, timeout=options.server_timeout)
        config = WarmupConfig.load(options.adapter)
        return partial(
            answer_from_server,
            client,
            load_tokenizer(options.adapter),
            config=config,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature if options.do_sample else 0.0,
            top_p=options.top_p if options.do_sample else 1.0,
        )
    loaded = load_folder(options.adapter)
    set_seed(options.seed)
    return partial(answer_prompts, loaded, options)


def read_prompts(options: GenerateArguments) -> list[str]:
    if options.prompt is not None:
        return [options.prompt]
    if options.prompts_file is None:
        return sys.stdin.read().splitlines()
    path = Path(options.prompts_file)
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist. Check --prompts_file.")
    if path.suffix in (".jsonl", ".json"):
        rows = list(read_json(path))
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f"{path}, row {number} has no text in the field `prompt`.")
        return [row["prompt"] for row in rows]
    return read_text(path).splitlines()


def check_room(model: PreTrainedModel, config: WarmupConfig, prompt_length: int, max_new_tokens: int) -> None:
    """Raise ValueError if prompt, warmup, separator and answer do not fit into the model's context."""
    context = context_length(model.config)
    needed = prompt_length + config.room + max_new_tokens
    if context is not None and needed > context:
        raise ValueError(
            f"A prompt of {prompt_length} tokens with its warmup and an answer of up to {max_new_tokens} needs "
            f"{needed}, and the model's context has {context}. Shorten the prompt, or lower --max_new_tokens."
        )


def answer_prompts(loaded: LoadedModel, options: GenerateArguments, prompts: Sequence[str]) -> list[tuple[str, str]]:
    """Warmup and answer of each prompt."""
    tokenizer, model = loaded.tokenizer, loaded.model
    prompt_ids = [tokenizer(text)["input_ids"] for text in prompts]
    check_room(model, loaded.warmup_config, max(map(len, prompt_ids)), options.max_new_tokens)
    prompt = left_padded(prompt_ids, model.device)
    sampling = {"do_sample": options.do_sample}
    if options.do_sample:
        sampling |= {"temperature": options.temperature, "top_p": options.top_p}
    with evaluation_mode(model):
        warmups = write_warmups(model, prompt, loaded.warmup_config, **sampling)
        answers = generate_texts(
            model, tokenizer, prompt, warmups, loaded.warmup_config, options.max_new_tokens, **sampling
        )
    written = [tokenizer.decode(warmups.ids[row, 0, : warmups.lengths[row, 0]]) for row in range(len(prompts))]
    return list(zip(written, answers))
