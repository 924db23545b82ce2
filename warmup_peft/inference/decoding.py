"""Generation with a warmup first: prompt -> opening -> warmup -> separator -> answer.

The model generates a few tokens after the prompt (and an opening such as `<think>`, where it was trained with one), up
to an end token, the separator or a limit. Then the separator's token ids are appended, and the model generates the
answer. (A model that was trained to write opening and separator itself also answers in one plain `generate`.) Works
with any causal language model or PEFT adapter, needs only torch and transformers, reads no file but
`warmup_config.json`, opens no connection. Method: arXiv 2502.12304.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer
from transformers.generation import MaxLengthCriteria, MinPLogitsWarper, StopStringCriteria
from transformers.generation import TopKLogitsWarper as TopK
from transformers.generation import TopPLogitsWarper as TopP

OWN_CONFIG: Any = None  # in the folder of an adapter or a model: its settings


def warmup_generate(
    model: PreTrainedModel,
    inputs: Tensor | None = None,
    *,
    warmup_config: Any = None,
    return_warmup: bool = False,
    num_warmups: int = 1,
    **kwargs: Any,
):
    """`model.generate` with a warmup first. Its arguments apply to the answer; it returns prompt and answer.

    Call it with a model, or pass it on: `model.generate(**batch, custom_generate=warmup_generate, warmup_config=...)`.
    (If passed on, it gets neither `streamer` nor `stop_strings`: transformers does not give them to functions.)

    Args:
        inputs: (B, P) prompts, padded on the left, also as `input_ids`.
        warmup_config: the adapter's folder, or an object with the fields of its `warmup_config.json`. If
            max_warmup_length is 0, this is plain `generate`, without the separator.
        return_warmup: keep opening, warmup and separator in the sequences, padded on the left.
        num_warmups: if above 1, sample this many warmups, answer after each, and return the most frequent answer.
        kwargs: as for `generate`. `do_sample`, `temperature`, `top_k`, `top_p` and `min_p` apply to the warmup too.

    Raises:
        ValueError: no configuration, an empty prompt, filled `past_key_values`, or several warmups and answers.
    """
    config = _read_config(OWN_CONFIG if warmup_config is None else warmup_config)
    settings = {"warmup_config": config, "return_warmup": return_warmup}
    if inputs is not None and hasattr(kwargs.get("generation_config"), "_eos_token_tensor"):  # `generate` calls
        if num_warmups == 1:
            return decode_prepared(model, inputs, **settings, **kwargs)
        _check_vote(num_warmups, return_warmup, vars(kwargs["generation_config"]))
        of_rows = [n for n, x in kwargs.items() if isinstance(x, Tensor) and x.dim() > 1 and len(x) == len(inputs)]
        several = kwargs | {name: kwargs[name].repeat_interleave(num_warmups, 0) for name in of_rows}
        several |= {"input_ids": inputs.repeat_interleave(num_warmups, 0), "sample_warmup": True}
        return _most_frequent(decode_prepared(model, **settings, **several), num_warmups, inputs.size(1))
    generate = type(model).generate  # the model's own may be this very function
    input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
    if input_ids is None or input_ids.dim() != 2 or input_ids.size(1) == 0:
        raise ValueError("Prompt 0 is empty. Give every prompt at least one token, in input_ids of (batch, tokens).")
    if config.max_warmup_length == 0:
        return generate(model, input_ids, **kwargs)
    given = {**vars(kwargs.get("generation_config") or model.generation_config), **kwargs}
    settings["streamer"], tokenizer = kwargs.pop("streamer", None), kwargs.pop("tokenizer", None)
    if given.get("stop_strings") is not None:
        stop = StopStringCriteria(tokenizer=tokenizer, stop_strings=given["stop_strings"])
        kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or []), stop])
        kwargs["generation_config"] = copy.copy(kwargs.get("generation_config") or model.generation_config)
        kwargs["generation_config"].stop_strings = kwargs["stop_strings"] = None
    if num_warmups != 1:
        _check_vote(num_warmups, return_warmup or settings["streamer"], given)
        settings["sample_warmup"] = True
        input_ids = input_ids.repeat_interleave(num_warmups, 0)
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"].repeat_interleave(num_warmups, 0)
    result = generate(model, input_ids, custom_generate=functools.partial(decode_prepared, **settings), **kwargs)
    return result if num_warmups == 1 else _most_frequent(result, num_warmups, input_ids.size(1))


@torch.no_grad()
def decode_prepared(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    warmup_config: Any,
    return_warmup: bool = False,
    sample_warmup: bool = False,
    streamer: Any = None,
    **model_kwargs: Any,  # has attention_mask and past_key_values, too: `generate` would pass a named one twice
):
    """Called by `generate` with prepared arguments. Each prompt is repeated for each of its beams or answers."""
    attention_mask, past_key_values = (model_kwargs.pop(name, None) for name in ("attention_mask", "past_key_values"))
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError("A warmup follows a whole prompt. Leave past_key_values out.")
    beams = generation_config.num_beams or 1  # which share one warmup
    if streamer is not None and beams > 1:
        raise ValueError("Beams cannot be streamed. Leave streamer or num_beams out.")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompt, mask = input_ids[::beams], mask[::beams].bool()
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"Prompt {empty[0]} is empty. Give every prompt at least one token.")
    pad_id = 0 if generation_config._pad_token_tensor is None else generation_config._pad_token_tensor.item()
    sampling = copy.copy(generation_config)
    sampling.do_sample = sampling.do_sample or sample_warmup
    training = [module for module in model.modules() if module.training]
    model.eval()  # in training mode with gradient checkpointing the cache would be dropped
    try:
        opened, mask = _with_opening(prompt, mask, getattr(warmup_config, "warmup_opening_ids", []), pad_id)
        cache = new_cache(model, mask, warmup_config.max_warmup_length)
        written, lengths = decode_warmups(model, opened, mask, warmup_config, sampling, cache)
        separator = torch.tensor(warmup_config.warmup_separator_ids, device=prompt.device).expand(len(prompt), -1)
        is_warmup = torch.arange(written.size(1), device=prompt.device) < lengths.unsqueeze(1)
        context = torch.cat([opened, written.masked_fill(~is_warmup, pad_id), separator], 1)
        mask = torch.cat([mask, is_warmup, torch.ones_like(separator, dtype=torch.bool)], 1)
        if cache is not None and _keeps_every_token(model, cache):
            cache.batch_repeat_interleave(beams)
            model_kwargs |= {"past_key_values": cache, "use_cache": True}
        else:  # the cache holds tokens after a warmup's end, a window, or positions by column: encode again
            context, mask = _packed(context, mask), _packed(mask, mask)
            if past_key_values is not None:  # the given one may be sized for prompt and answer only
                model_kwargs["past_key_values"] = DynamicCache(config=model.config)
        if _takes(model, "position_ids"):
            model_kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0).repeat_interleave(beams, 0)

        start = context.size(1)  # of the answer; processors and criteria do not see the warmup before it
        generation_config = copy.copy(generation_config)
        generation_config.max_length += start - prompt.size(1)
        generation_config.use_cache = model_kwargs.get("use_cache", generation_config.use_cache)
        if streamer is not None:
            streamer.put(prompt.cpu())  # as `generate` does
        result = (type(model)._beam_search if beams > 1 else type(model)._sample)(
            model,
            context.repeat_interleave(beams, 0),
            logits_processor=LogitsProcessorList([_Blind(logits_processor, prompt, start)]),
            stopping_criteria=StoppingCriteriaList(_blind(c, prompt, start) for c in stopping_criteria),
            generation_config=generation_config,
            streamer=streamer,
            attention_mask=mask.long().repeat_interleave(beams, 0),
            **model_kwargs,
        )
    finally:
        for module in training:
            module.training = True

    sequences = result if isinstance(result, Tensor) else result.sequences
    shown = _packed(sequences, mask) if return_warmup else _without_warmup(sequences, prompt, start)
    if isinstance(result, Tensor):
        return shown
    result.sequences = shown
    return result


def _with_opening(prompt: Tensor, mask: Tensor, opening_ids: list[int], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts (B, P) and their mask with the opening behind them, once, padded on the left."""
    opening = torch.tensor(opening_ids, dtype=prompt.dtype, device=prompt.device).expand(len(prompt), -1)
    size = opening.size(1)
    is_there = prompt.size(1) >= size and (prompt[:, prompt.size(1) - size :] == opening).all(1, keepdim=True)
    added = torch.ones_like(opening, dtype=torch.bool) & ~torch.as_tensor(is_there, device=prompt.device)
    ids = torch.cat([prompt, opening.masked_fill(~added, pad_id)], 1)
    mask = torch.cat([mask, added], 1)
    return _packed(ids, mask), _packed(mask, mask)


def new_cache(model: PreTrainedModel, mask: Tensor, room: int) -> DynamicCache | None:
    """An empty cache for prompts (B, P) and `room` more tokens; None if every step has to encode whole rows.

    That is so for models that keep their state elsewhere, and if a row becomes so long that all its positions change.
    """
    if not _takes(model, "past_key_values") or not model._supports_default_dynamic_cache():
        return None
    limit, lengths = _rope_limit(model), mask.sum(1)
    if limit is not None and bool(((lengths <= limit) & (lengths.max() + room > limit)).any()):
        return None
    return DynamicCache(config=model.config)


def _rope_limit(model: PreTrainedModel) -> int | None:
    """Row length beyond which the rotary embeddings of all positions change (longrope: Phi-3 128k)."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return parameters.get("original_max_position_embeddings") if parameters.get("rope_type") == "longrope" else None


def decode_warmups(
    model: PreTrainedModel, prompt: Tensor, mask: Tensor, config: Any, sampling: GenerationConfig, cache: Any
) -> tuple[Tensor, Tensor]:
    """Tokens generated after prompts (B, P): (B, at most W), and how many are the warmup (B,). Fills `cache`."""
    ends = [own] if isinstance(own := sampling.eos_token_id, int) else own or []
    ends = torch.tensor([*config.end_token_ids, *ends], dtype=torch.long, device=prompt.device)
    separator = torch.tensor(config.warmup_separator_ids, device=prompt.device)
    written, new, ids = prompt[:, :0], prompt, prompt
    while True:
        logits = _last_logits(model, ids, mask) if cache is None else _next_logits(model, new, mask, cache)
        new = _choose(logits.float(), sampling)
        written, ids = torch.cat([written, new], 1), torch.cat([ids, new], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        lengths = warmup_lengths(written, ends, separator)
        if written.size(1) == config.max_warmup_length or (lengths < written.size(1)).all():
            return written, lengths


def _next_logits(model: PreTrainedModel, new: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Next-token logits (B, V) after the `new` tokens, which follow those in the cache."""
    options: dict[str, Any] = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
    if _takes(model, "position_ids"):
        options["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -new.size(1) :]
    output = model(input_ids=new, attention_mask=mask.long(), past_key_values=cache, use_cache=True, **options)
    return output.logits[:, -1]


def _last_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Next-token logits (B, V) from whole rows, padded on the right, where padding does not change them."""
    if _rope_limit(model) is not None:  # here it does: the longest row would decide for all
        rows = [model(input_ids=row[real].unsqueeze(0), use_cache=False).logits for row, real in zip(ids, mask)]
        return torch.cat([logits[:, -1] for logits in rows])
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    return logits[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]


def _keeps_every_token(model: PreTrainedModel, cache: Any) -> bool:
    """Whether the cache may have masked gaps: it holds keys and values of all tokens, and positions are given."""
    return cache is not None and _takes(model, "position_ids") and all(type(x) is DynamicLayer for x in cache.layers)


def _takes(model: PreTrainedModel, name: str) -> bool:
    return name in inspect.signature(type(model).forward).parameters


def _check_vote(num_warmups: int, keeps_more: Any, given: dict[str, Any]) -> None:
    is_single = all(given.get(name) in (None, 1) for name in ("num_beams", "num_return_sequences"))
    if num_warmups < 1 or keeps_more or given.get("return_dict_in_generate") or not is_single:
        raise ValueError("num_warmups must be 1 or more, with one answer each: no beams, dictionary or streamer.")


def _read_config(config: Any) -> Any:
    if config is not None and not isinstance(config, str | Path):
        return config
    path = Path(config or "", "warmup_config.json")
    if config is None or not path.is_file():
        missing = "warmup_config is missing" if config is None else f"There is no {path}"
        raise ValueError(f"{missing}. Pass a warmup adapter's folder; or decode with `generate`.")
    return SimpleNamespace(**{"end_token_ids": [], **json.loads(path.read_text(encoding="utf-8"))})


def _choose(logits: Tensor, sampling: GenerationConfig) -> Tensor:
    """(B, 1) next tokens."""
    if not sampling.do_sample:
        return logits.argmax(-1, keepdim=True)
    scores = logits / (sampling.temperature or 1.0)
    for warper, value in ((TopK, sampling.top_k), (TopP, sampling.top_p), (MinPLogitsWarper, sampling.min_p)):
        if value:
            scores = warper(value)(None, scores)
    return torch.multinomial(scores.softmax(-1), num_samples=1)


def warmup_lengths(written: Tensor, ends: Tensor, separator: Tensor) -> Tensor:
    """(B,) number of tokens in each row before its first end token or separator."""
    width, size = written.size(1), len(separator)
    stops = torch.isin(written, ends)
    if size <= width:
        stops[:, : width - size + 1] |= (written.unfold(1, size, 1) == separator).all(-1)
    return torch.where(stops.any(1), stops.long().argmax(1), width)


def _without_warmup(ids: Tensor, prompt: Tensor, start: int) -> Tensor:
    return torch.cat([prompt.repeat_interleave(len(ids) // len(prompt), 0), ids[:, start:]], 1)


def _packed(sequences: Tensor, context_mask: Tensor) -> Tensor:
    """Rows [prompt | opening | warmup | separator | answer] without gaps, padded on the left."""
    answer = torch.ones_like(sequences[:, context_mask.size(1) :], dtype=torch.bool)
    is_real = torch.cat([context_mask.repeat_interleave(len(sequences) // len(context_mask), 0), answer], 1)
    order = is_real.to(torch.uint8).argsort(dim=1, stable=True)
    return sequences.gather(1, order)[:, int((~is_real).sum(1).min()) :]


class _Blind:
    """A logits processor or stopping criterion that sees only the prompt and the answer, which begins at `start`."""

    def __init__(self, inner: Any, prompt: Tensor, start: int):
        self.inner, self.prompt, self.start = inner, prompt, start
        if hasattr(inner, "eos_token_id"):  # `generate` looks for a criterion that has it
            self.eos_token_id = inner.eos_token_id

    def __call__(self, input_ids: Tensor, scores: Any) -> Tensor:
        return self.inner(_without_warmup(input_ids, self.prompt, self.start), scores)


def _blind(criterion: Any, prompt: Tensor, start: int) -> Any:
    if isinstance(criterion, MaxLengthCriteria):
        return MaxLengthCriteria(criterion.max_length + start - prompt.size(1))
    return _Blind(criterion, prompt, start)


def _most_frequent(sequences: Tensor, num_warmups: int, start: int) -> Tensor:
    """The most frequent answer of each prompt; among equally frequent ones the first."""
    answers = [tuple(row) for row in sequences[:, start:].tolist()]
    rows = []
    for first in range(0, len(answers), num_warmups):
        winner = Counter(answers[first : first + num_warmups]).most_common(1)[0][0]
        rows.append(answers.index(winner, first))
    return sequences[rows]
