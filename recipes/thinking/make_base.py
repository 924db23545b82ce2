"""Makes the recipe's base: the relay world's model of two layers as a chat model that thinks, then answers.

The first two stages are the relay world's own (`recipes/logiqa/relay/make_base.py`): following chains, recalling
lists. The others are the recipe's, on conversations in the chat template, half of them about the last hearer and half
of the two other kinds (`world.py`). The model writes `<think>`, the names, `</think>` and `It is Eve.` Without its
thought it cannot tell the answer: two layers cannot follow four links at once. In the last two stages the forward pass
has the weights in NF4, so that the base thinks as well in 4 bit; in the very last one questions about lists are
answered by `Name: Tim`, so that it knows two forms. It never sees the form that is fine-tuned later.

    python recipes/thinking/make_tokenizer.py          # first: the tokenizer is read from base/
    python recipes/thinking/make_base.py               # about 45 minutes on one core
    python recipes/thinking/make_base.py --reader runs/reader   # keeps, or takes, the model after two stages
    python recipes/thinking/make_base.py --check       # measures what is there, without training

The seed fixes the initial weights and the batches, but other CPUs sum in another order. What has to hold everywhere is
what `--check` asserts, and every pretraining ends with it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from measure import Measured, measure
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from world import (
    BASE,
    LIST_FORM,
    OWN_FORM,
    RELAY,
    Chat,
    last_hearer,
    other_chats,
    relay_make_base,
    relay_splits,
    small_base,
)

MIN_SHARE, MIN_OTHER_SHARE, MAX_WITHOUT_THOUGHT = 0.99, 0.97, 0.35


@dataclass(frozen=True)
class Stage:
    """Of the recipe's own pretraining, with its own cycle of the learning rate."""

    name: str
    steps: int
    lr: float
    in_4_bit: bool = False
    list_form: str = OWN_FORM


STAGES = (
    Stage("chatting", 900, 1e-3),
    Stage("chatting in 4 bit", 150, 5e-4, in_4_bit=True),
    Stage("another form for lists", 200, 1e-3, in_4_bit=True, list_form=LIST_FORM),
)


def conversations(size: int, stage: Stage, seed: int) -> Iterator[list[Chat]]:
    """Batches of fresh puzzles: half about the last hearer, half of the other kinds."""
    rng = random.Random(seed)
    for puzzles in relay_make_base.own_batches(3 * size // 4, stage.steps, seed):
        half = size // 2
        yield [last_hearer(puzzle) for puzzle in puzzles[:half]] + other_chats(puzzles[half:], rng, stage.list_form)


def turns(chats: list[Chat], tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts and of what the model shall write: thought, answer, end of turn."""
    prompts, texts = [], []
    for chat in chats:
        answer = {"role": "assistant", "reasoning_content": chat.thought, "content": chat.own_answer}
        prompt = tokenizer.apply_chat_template(chat.messages, add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template([*chat.messages, answer], tokenize=False)
        prompts.append(prompt)
        texts.append(whole.removeprefix(prompt).removesuffix("\n"))
    return tokenizer(prompts)["input_ids"], tokenizer(texts)["input_ids"]


def learn_to_chat(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, stage: Stage, batch_size: int, seed: int
) -> None:
    batches = (
        small_base.continuations(*turns(chats, tokenizer), tokenizer.pad_token_id)
        for chats in conversations(batch_size, stage, seed)
    )
    loss_of = loss_in_4_bit if stage.in_4_bit else small_base.continuation_loss
    small_base.fit(model, batches, stage.steps, stage.lr, stage.name, loss_of=loss_of)
    model.to(torch.bfloat16).to(torch.float32)  # the precision in which it is saved


def loss_in_4_bit(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the weights of the layers as NF4 has them; the gradient goes to the weights as they are."""
    weights = {
        name: weight + (in_nf4(weight.detach()) - weight.detach())
        for name, weight in model.named_parameters()
        if name.endswith("_proj.weight")
    }
    inputs = {"input_ids": ids, "labels": labels, "use_cache": False}
    return torch.func.functional_call(model, weights, kwargs=inputs).loss


def in_nf4(weight: torch.Tensor) -> torch.Tensor:
    return dequantize_4bit(*quantize_4bit(weight, blocksize=small_base.BLOCK_SIZE, quant_type="nf4"))


def make_reader(args: argparse.Namespace) -> LlamaForCausalLM:
    """The relay world's model after its first two stages. Its words have the ids of this recipe's tokenizer."""
    if args.reader is not None and (args.reader / "config.json").is_file():
        return LlamaForCausalLM.from_pretrained(args.reader, dtype=torch.float32)
    model = relay_make_base.make_reader(AutoTokenizer.from_pretrained(RELAY / "base"), args)
    if args.reader is not None:
        model.save_pretrained(args.reader)
    return model


def forget_exchanged_tokens(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """New tokens start with small random embeddings: their ids had other meanings, or none."""
    embeddings = model.get_input_embeddings().weight
    new = [index for index in range(len(tokenizer)) if index < 2 or index >= len(tokenizer) - 5]
    with torch.no_grad():
        embeddings[new] = torch.randn(len(new), embeddings.shape[1]) * model.config.initializer_range


def check(folder: Path, seed: int) -> None:
    """Prints and asserts what the base does on the validation puzzles, in float32 and NF4."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    puzzles = relay_splits()["validation"]
    for four_bit in (False, True):
        measured: Measured = measure(small_base.load_base(folder, four_bit), tokenizer, puzzles, seed)
        name = "4-bit NF4" if four_bit else "float32  "
        print(f"{name}  {measured}")
        for share in (measured.thinks, measured.closes, measured.right_in_any_form):
            assert share >= MIN_SHARE, measured
        assert measured.other_thinks >= MIN_OTHER_SHARE, measured
        assert measured.exact_match == 0, measured
        assert measured.right_without_thought <= MAX_WITHOUT_THOUGHT, measured


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the recipe's base model, then check it.")
    parser.add_argument("--folder", type=Path, default=BASE, help="holds the tokenizer; the model is added")
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    parser.add_argument("--reader", type=Path, help="folder of the model after two stages: read from, or written to")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--recall_steps", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--recall_lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.check:
        tokenizer = AutoTokenizer.from_pretrained(args.folder)
        model = make_reader(args)
        torch.manual_seed(args.seed)
        forget_exchanged_tokens(model, tokenizer)
        for number, stage in enumerate(STAGES, start=5):
            learn_to_chat(model, tokenizer, stage, args.batch_size, args.seed + number)
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.to(torch.bfloat16).save_pretrained(args.folder)
        print(f"{args.folder}: {model.num_parameters():,} parameters")
    check(args.folder, args.seed)


if __name__ == "__main__":
    main()
