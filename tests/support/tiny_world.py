"""Two words, a separator and a stop; W = 2: a world so small that all its warmups can be listed."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from conftest import tiny_config
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from trainers import make_trainer, randomise_adapter
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

WORDS, SEPARATOR, STOP = (0, 1), 2, 3
PROMPT, TARGET = [0, 1, 1], [0, STOP]


class Outcome(NamedTuple):
    """One way sampling can go: the tokens sampled, and how many of them are the warmup."""

    sampled: tuple[int, ...]
    length: int


def all_outcomes() -> list[Outcome]:
    """Both ends of an empty warmup, both ends of each one-word warmup, and the two-word ones cut by the limit."""
    ended = [Outcome((*words, end), len(words)) for words in [(), *((w,) for w in WORDS)] for end in (SEPARATOR, STOP)]
    return ended + [Outcome(pair, 2) for pair in itertools.product(WORDS, repeat=2)]


OUTCOMES = all_outcomes()


@pytest.fixture(scope="module")
def world():
    set_seed(0)
    config = tiny_config(
        vocab_size=4,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=STOP,
        pad_token_id=STOP,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6.0)
    vocabulary = {word: i for i, word in enumerate(["a", "b", "|", "<stop>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<stop>", pad_token="<stop>")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0))
    randomise_adapter(model)
    return model, tokenizer


def build_trainer(world, tmp_path, objective, beta=0.0, **settings):
    model, tokenizer = world
    rows = [{"input_ids": PROMPT + TARGET, "labels": [-100] * len(PROMPT) + TARGET}]
    return make_trainer(
        model,
        tmp_path,
        tokenizer,
        rows=rows,
        num_warmups=2,
        max_warmup_length=2,
        warmup_separator="|",
        objective=objective,
        warmup_anchor=beta,
        **settings,
    )


class Quantities(NamedTuple):
    """Of every outcome, with gradient, by plain forwards: log P(c|x), R(c), KL(c), q(c) and log Q(c|x)."""

    logp: Tensor
    reward: Tensor
    kl: Tensor
    token_prob: Tensor
    base_logp: Tensor


def quantities(model) -> Quantities:
    logp, reward, kl, token_prob, base_logp = [], [], [], [], []
    for sampled, length in OUTCOMES:
        context = torch.tensor([[*PROMPT, *sampled]])
        known = model(context).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        with torch.no_grad(), model.disable_adapter():
            reference = model(context).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        logp.append(sum(known[t, token] for t, token in enumerate(sampled)))
        kl.append((known.exp() * (known - reference)).sum())
        row = torch.tensor([[*PROMPT, *sampled[:length], SEPARATOR, *TARGET]])
        target_law = model(row).logits[0, -3:-1].log_softmax(-1)
        reward.append(target_law[0, TARGET[0]] + target_law[1, TARGET[1]])
        token_prob.append((target_law[0, TARGET[0]].exp() + target_law[1, TARGET[1]].exp()) / 2)
        base_logp.append(sum(reference[t, token] for t, token in enumerate(sampled)))
    return Quantities(*(torch.stack(values) for values in (logp, reward, kl, token_prob, base_logp)))
