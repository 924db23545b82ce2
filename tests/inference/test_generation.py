"""Separators, end tokens, and rows that hold a warmup."""

from __future__ import annotations

import pytest
import torch
from folders import SEPARATOR
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from warmup_peft.inference.folder import WarmupConfig
from warmup_peft.inference.generation import append_warmups, end_token_ids, separator_token_ids
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


def word_tokenizer(**special) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "||": 2, "<bos>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


def test_separator_ids_have_no_special_tokens(tokenizer):
    assert tokenizer.decode(separator_token_ids(tokenizer, SEPARATOR)) == SEPARATOR
    assert separator_token_ids(word_tokenizer(bos_token="<bos>"), " || ") == [2]


@pytest.mark.parametrize("separator", ["  ", "###", "|| ###"])
def test_separator_that_cannot_be_written_is_refused(separator):
    with pytest.raises(ValueError, match=r"^warmup_separator='.*' cannot be written by this tokenizer.*Choose a sep"):
        separator_token_ids(word_tokenizer(), separator)
