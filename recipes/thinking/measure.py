"""Scores models by one plain `model.generate` each: is the answer right and in the new form, and does it still think?

    python recipes/thinking/measure.py base warmup=runs/thinking sft=runs/sft --output runs/thinking/metrics.json

`base` is the model before any fine-tuning, every other argument a name for the output and the folder of an adapter.
Greedy, on the test split, with the base in NF4:

    exact_match             the text after the thought is exactly `Answer: Eve`
    thinks                  the thought is exactly the asked chain
    closes                  the text has `</think>`
    thought_tokens          mean number of tokens in the thought
    right_in_any_form       the text after the thought names the right person, and no other
    right_without_thought   the same, where the prompt ends in an empty thought (`enable_thinking: false`)
    other_right             the same, on questions that were never fine-tuned on
    other_thinks            there, the thought is exact
    other_kl                there, KL(base || model) in nats a token, along the base's own greedy thoughts
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from world import BASE, NAMES, Chat, Puzzle, last_hearer, other_chats, relay_splits, small_base

MAX_WRITTEN = 32
BATCH_SIZE = 128
OPENING, CLOSING = "<think>", "</think>"


@dataclass(frozen=True)
class Measured:
    """What a model does, by the columns above. `example` is the whole text after the first puzzle's prompt."""

    exact_match: float
    thinks: float
    closes: float
    thought_tokens: float
    right_in_any_form: float
    right_without_thought: float
    other_right: float
    other_thinks: float
    other_kl: float
    example: str


@dataclass(frozen=True)
class Text:
    """What a model wrote after a prompt, up to the end of its turn."""

    whole: str

    @property
    def closes(self) -> bool:
        return CLOSING in self.whole

    @property
    def thought(self) -> str:
        """An opened thought that is never closed goes on to the end."""
        if OPENING not in self.whole and not self.closes:
            return ""
        return self.whole.split(CLOSING)[0].replace(OPENING, "").strip()

    @property
    def answer(self) -> str:
        """Without a thought all of the text is answer."""
        if OPENING not in self.whole and not self.closes:
            return self.whole.strip()
        return self.whole.partition(CLOSING)[2].strip()


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, puzzles: Sequence[Puzzle], seed: int
) -> Measured:
    chats, others = [last_hearer(puzzle) for puzzle in puzzles], other_chats(puzzles, random.Random(seed))
    texts = write(model, tokenizer, chats)
    unthought = write(model, tokenizer, chats, enable_thinking=False)
    other_texts = write(model, tokenizer, others)
    return Measured(
        exact_match=share(text.answer == chat.new_answer for text, chat in zip(texts, chats)),
        thinks=share(text.thought == chat.thought for text, chat in zip(texts, chats)),
        closes=share(text.closes for text in texts),
        thought_tokens=sum(len(tokenizer.encode(text.thought)) for text in texts) / len(texts),
        right_in_any_form=share(names_only(text.answer, chat) for text, chat in zip(texts, chats)),
        right_without_thought=share(names_only(text.answer, chat) for text, chat in zip(unthought, chats)),
        other_right=share(names_only(text.answer, chat) for text, chat in zip(other_texts, others)),
        other_thinks=share(text.thought == chat.thought for text, chat in zip(other_texts, others)),
        other_kl=kl_to_base(model, tokenizer, others),
        example=texts[0].whole,
    )


def share(found: Iterator[bool]) -> float:
    values = list(found)
    return sum(values) / len(values)


def names_only(answer: str, chat: Chat) -> bool:
    """Whether the right person is the only one in the answer."""
    words = answer.replace(".", " ").split()
    return {word for word in words if word in NAMES} == {chat.name}


def prompts_of(chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase, **template: bool) -> list[str]:
    return [
        tokenizer.apply_chat_template(chat.messages, add_generation_prompt=True, tokenize=False, **template)
        for chat in chats
    ]


@torch.no_grad()
def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], **template: bool
) -> list[Text]:
    """One plain greedy `generate` for each batch of questions."""
    texts = []
    for start in range(0, len(chats), BATCH_SIZE):
        prompts = prompts_of(chats[start : start + BATCH_SIZE], tokenizer, **template)
        batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        rows = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_WRITTEN)
        texts += tokenizer.batch_decode(rows[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [Text(text) for text in texts]


@torch.no_grad()
def kl_to_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> float:
    """Mean over the tokens of the base's thoughts, from `<think>` to `</think>`. 0 for the base itself."""
    if not hasattr(model, "disable_adapter"):
        return 0.0
    total, count = 0.0, 0
    for start in range(0, len(chats), BATCH_SIZE):
        some = chats[start : start + BATCH_SIZE]
        with model.disable_adapter():
            thoughts = [f"{text.whole.split(CLOSING)[0]}{CLOSING}" for text in write(model, tokenizer, some)]
        prompts = tokenizer(prompts_of(some, tokenizer))["input_ids"]
        ids = [prompt + thought for prompt, thought in zip(prompts, tokenizer(thoughts)["input_ids"])]
        batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        positions = torch.arange(inputs["input_ids"].shape[1] - 1)
        first = torch.tensor([len(prompt) - 1 for prompt in prompts])[:, None]
        last = torch.tensor([len(row) - 2 for row in ids])[:, None]
        written = (positions >= first) & (positions <= last)
        log_model = model(**inputs).logits[:, :-1][written].float().log_softmax(-1)
        with model.disable_adapter():
            log_base = model(**inputs).logits[:, :-1][written].float().log_softmax(-1)
        total += torch.nn.functional.kl_div(log_model, log_base, reduction="sum", log_target=True).item()
        count += int(written.sum())
    return total / count


def load(adapter: str | None) -> PreTrainedModel:
    model = small_base.load_base(BASE, four_bit=True)
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score models by one plain generate each.")
    parser.add_argument("models", nargs="+", help="`base`, or NAME=FOLDER of an adapter")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the scores, under each arm's name; others in it are kept"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--seed", type=int, default=0, help="of the other questions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, puzzles, scores = AutoTokenizer.from_pretrained(BASE), relay_splits()[args.split], {}
    for argument in args.models:
        name, _, folder = argument.partition("=")
        scores[name] = asdict(measure(load(folder or None), tokenizer, puzzles, args.seed))
        print(name, json.dumps(scores[name]), flush=True)
    if args.output is not None:
        write_scores(args.output, scores)


def write_scores(path: Path, scores: dict[str, dict]) -> None:
    """Beside what is there already, such as the `metrics.json` of `warmup-peft evaluate`."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    new = {name: {**old.get(name, {}), **values} for name, values in scores.items()}
    path.write_text(json.dumps({**old, **new}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
