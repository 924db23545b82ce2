"""Prompts and fingerprints."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from trainers import randomise_adapter
from transformers import AutoModelForCausalLM

from warmup_peft.training.dataset import base_fingerprint, checksums, prompts_of, tokenizer_fingerprint


def test_a_prompt_ends_at_the_first_supervised_label():
    rows = Dataset.from_dict(
        {"input_ids": [[5, 6, 7], [8, 9]], "labels": [[-100, -100, 7], [-100, 9]], "more": [1, 2]}
    )
    assert [ids.tolist() for ids in prompts_of(rows)] == [[5, 6], [8]]


@pytest.fixture
def model(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def test_the_base_is_known_by_its_weights_whatever_the_adapter(model, lora):
    before = base_fingerprint(model)
    adapted = get_peft_model(model, lora)
    assert base_fingerprint(adapted) == before
    randomise_adapter(adapted)
    assert base_fingerprint(adapted) == before


def test_other_adapters_do_not_matter(model, lora):
    before = base_fingerprint(model)
    adapted = get_peft_model(model, lora)
    adapted.add_adapter("second", lora)
    assert base_fingerprint(adapted) == before
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    assert base_fingerprint(adapted) == before


def test_the_scales_of_4_bit_weights_matter(model_folder, nf4):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, quantization_config=nf4)
    before = base_fingerprint(model)
    model.model.layers[0].mlp.up_proj.weight.quant_state.absmax += 1
    assert base_fingerprint(model) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.model.norm.weight.data.add_(1e-3),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.model.embed_tokens.weight.data[300:].mul_(2),
        lambda m: m.config.rope_parameters.update(rope_theta=5.0),
    ],
)
def test_other_weights_are_another_base(model, change):
    before = base_fingerprint(model)
    with torch.no_grad():
        change(model)
    assert base_fingerprint(model) != before


def swap(weight):
    weight[3:5] = weight[3:5].flip(0).clone()


@pytest.mark.parametrize(
    "change",
    [lambda weight: weight[1].add_(1e-3), lambda weight: weight[-2].add_(1e-3), lambda weight: weight[7].neg_(), swap],
    ids=["second value", "last but one", "sign", "two swapped"],
)
@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_every_value_matters(model, name, change):
    before = base_fingerprint(model)
    weight = model.get_parameter(name).data.view(-1)
    weight.copy_(torch.arange(1, len(weight) + 1))
    known = base_fingerprint(model)
    change(weight)
    assert len({before, known, base_fingerprint(model)}) == 3


def test_weights_in_buffers_matter_and_what_is_not_saved_does_not(model):
    """GPTQ and AWQ keep their weights in buffers."""
    model.model.register_buffer("qweight", torch.arange(6, dtype=torch.int32))
    before = base_fingerprint(model)
    model.model.rotary_emb.inv_freq.add_(1)
    assert base_fingerprint(model) == before
    model.model.qweight[3] = 7
    assert base_fingerprint(model) != before


def test_checksums_do_not_depend_on_how_a_tensor_lies_in_memory():
    values = torch.randn(1000, 37)
    assert checksums(values.T.contiguous().T) == checksums(values)
    assert checksums(values[:0]) == [0]
    assert checksums(torch.tensor(1.0)) != checksums(torch.tensor(2.0))


def test_other_tokens_are_another_tokenizer(model_folder, tokenizer):
    same = type(tokenizer).from_pretrained(model_folder)
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tokenizer)
    same.add_tokens(["<new>"])
    assert tokenizer_fingerprint(same) != tokenizer_fingerprint(tokenizer)
