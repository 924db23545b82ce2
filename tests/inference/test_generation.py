"""End tokens, and rows that hold a warmup."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import append_warmups, end_token_ids
from warmup_peft.method.branches import Tokens, Warmups


@pytest.fixture(scope="module")
def base(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


def test_warmups_and_separator_are_appended_by_hand():
    prompt = Tokens(torch.tensor([[0, 5], [6, 7]]), torch.tensor([[False, True], [True, True]]))
    warmups = Warmups(torch.tensor([[[8, 9]], [[8, 1]]]), torch.tensor([[2], [0]]), torch.tensor([[2], [1]]))
    context = append_warmups(prompt, warmups, WarmupConfig("||", [3, 3], 2), pad_id=4)
    assert context.ids.tolist() == [[5, 8, 9, 3, 3], [4, 6, 7, 3, 3]]
    assert context.mask.tolist() == [[True] * 5, [False, True, True, True, True]]


def test_end_tokens_are_the_models_and_the_tokenizers(base, tokenizer):
    assert end_token_ids(base) == (1, *range(200, 270))
    assert end_token_ids(base, tokenizer) == (1, *range(200, 270))
