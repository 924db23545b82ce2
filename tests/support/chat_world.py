"""A tiny model whose chat template knows thoughts, and conversations for it."""

from __future__ import annotations

import pytest
from conftest import tiny_config
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RENDERED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def conversation(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


CONVERSATIONS = [conversation(f"{name}?", name.upper()) for name in ("one", "two", "three", "four")]


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("tiny-thinker")
    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        model_max_length=512,
    )
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    own.add_tokens(["<think>", "</think>"])  # which a decoded answer keeps, as in Qwen3
    own.chat_template = TEMPLATE
    set_seed(0)
    model = LlamaForCausalLM(tiny_config())
    for parameter in model.parameters():
        parameter.data.mul_(8.0) if parameter.dim() > 1 else None
    model.generation_config.eos_token_id = [1, own.convert_tokens_to_ids("<|im_end|>")]
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return str(folder)
