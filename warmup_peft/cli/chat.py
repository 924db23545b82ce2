"""`warmup-peft chat`: a conversation in the terminal, each warmup dimmed before its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from transformers import TextStreamer, set_seed

from warmup_peft.cli.generate import check_chat, check_room, sampling_of
from warmup_peft.inference.chat import Messages, prompt_token_ids
from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import append_warmups, pad_token_id, write_warmups
from warmup_peft.inference.hub import with_local_folder
from warmup_peft.inference.loading import LoadedModel, Loading, context_length, load_folder, load_tokenizer
from warmup_peft.method.branches import left_padded
from warmup_peft.method.model import evaluation_mode
from warmup_peft.settings.arguments import ChatArguments, check_sampling
from warmup_peft.settings.parsing import parse_one


def run(argv: Sequence[str]) -> None:
    """Answer line after line of standard input, up to `/exit` or its end.

    Raises:
        ValueError: bad options, or no chat template.
    """
    options = parse_one(ChatArguments, argv)
    check_sampling(options)
    loading = Loading.of(options)
    options = with_local_folder(options)
    config = WarmupConfig.load(options.adapter)
    start = [] if options.system is None else [{"role": "system", "content": options.system}]
    tokenizer = load_tokenizer(options.adapter, trust_remote_code=loading.trust_remote_code)
    check_chat(tokenizer, config, [[*start, {"role": "user", "content": "Hello"}]])
    loaded, console = load_folder(options.adapter, loading), Console()
    set_seed(options.seed)
    console.print("/reset begins a new conversation, /exit ends.", style="dim", highlight=False)
    messages = list(start)
    while (line := next_line(console)) != "/exit":
        if line == "/reset":
            messages = list(start)
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                messages = [*asked, {"role": "assistant", "content": answer(loaded, options, asked, console)}]
            except ValueError as error:  # no room for it
                console.print(f"{error} /reset forgets what was said.", style="dim", markup=False, soft_wrap=True)


def next_line(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        console.print()
        return "/exit"


def answer(loaded: LoadedModel, options: ChatArguments, messages: Messages, console: Console) -> str:
    """Print the warmup and, token by token, the answer. Returns the answer, which alone stays in the conversation.

    Raises:
        ValueError: the conversation has become too long.
    """
    tokenizer, model, config = loaded.tokenizer, loaded.model, loaded.warmup_config
    ids = prompt_token_ids(tokenizer, messages, config)
    check_room(model, config, len(ids), max_new_tokens=1)
    left = (context_length(model.config) or math.inf) - len(ids) - config.room
    context, sampling = left_padded([ids], model.device), sampling_of(options)
    with evaluation_mode(model):
        if config.max_warmup_length:
            warmups = write_warmups(model, context, config, **sampling)
            warmup = tokenizer.decode(warmups.ids[0, 0, : warmups.lengths[0, 0]]).strip()
            console.print(warmup, style="dim", markup=False, highlight=False, soft_wrap=True)
            context = append_warmups(context, warmups, config, pad_token_id(model))
        sequences = model.generate(
            input_ids=context.ids,
            attention_mask=context.mask.long(),
            max_new_tokens=min(options.max_new_tokens, left),
            pad_token_id=pad_token_id(model),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            **sampling,
        )
    return tokenizer.decode(sequences[0, context.ids.size(1) :], skip_special_tokens=True).strip()
