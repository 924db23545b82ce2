"""Pretrains a base for the tiny world that has something to say: after a German sentence it may write its key words.

    German: Meine Schwester hat mein Bild getragen.
    English: sister picture carry

Key words are the dictionary forms of the content words, in the German order: no articles, number, tense or English
order. A word stands for itself wherever it stands, so `holt ... ab` (collects) is `fetch`, as in a dictionary.

Stage 1, skills: key words after a German sentence; an English sentence after *its* key words, a little out of order
(as denoising autoencoders have it); a German sentence once more. Stage 2, habit: after a German sentence its key words
in a part of the rows (`--gloss_share`), else the German sentence again. Sentences are fresh ones of the tiny world's
grammar, none of them in its files. It never sees a translation.

    python recipes/translation/gloss/make_base.py           # about ten minutes on one core
    python recipes/translation/gloss/make_base.py --check   # measures what is there, without training
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

sys.path.append(str(Path(__file__).resolve().parents[2]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tiny"))
import make_data as world
from small_base import make_config, make_tokenizer, pretrain, save, unlearned

HERE = Path(__file__).resolve().parent
VOCAB_SIZE, CONTEXT = 1536, 128
SIZES = {"hidden_size": 128, "num_layers": 3}
BATCH_SIZE = 64
GLOSS_SHARE = 0.5
SKILL_WEIGHTS = (9, 9, 2)  # key words, a sentence from key words, the sentence again
MOVES = 4
MAX_WRITTEN = 24  # tokens, of the check
SHARE_TOLERANCE = 0.1  # of key words that are right among samples, around what the habit has
OTHER_WORDS = {
    "sagt": "say", "sagen": "say", "glaubt": "believe", "glauben": "believe", "wissen": "know", "weiß": "know",
    "hofft": "hope", "hoffen": "hope", "kann": "can", "können": "can", "muss": "must", "müssen": "must",
    "soll": "should", "sollen": "should", "will": "want", "wollen": "want", "wird": "will", "werden": "will",
    "hinter": "behind", "vor": "before", "neben": "next", "heute": "today", "jetzt": "now", "jeden": "every",
    "Tag": "day", "Morgen": "morning", "gestern": "yesterday", "letzte": "last", "Woche": "week", "Montag": "Monday",
    "Abend": "evening", "morgen": "tomorrow", "bald": "soon", "nächste": "next",
}  # fmt: skip

ADJECTIVES = (*world.LIVING_ADJECTIVES, *world.THING_ADJECTIVES)
VERBS = (*world.PERSON_VERBS, *world.THING_VERBS, *world.DATIVE_VERBS, *world.GIVING_VERBS, *world.INTRANSITIVE_VERBS)


def make_dictionary() -> dict[str, str]:
    """Every German form of a content word, and the English word that a dictionary has for it."""
    words = dict(OTHER_WORDS)
    for noun in (*world.PEOPLE, *world.THINGS, *world.PLACES):
        for form in (noun.singular, noun.plural, noun.german(True, world.DATIVE)):
            words[form] = noun.english
    for adjective in ADJECTIVES:
        german, english = adjective.split("/")
        words |= {german + ending: english for ending in ("e", "en", "er", "es", "em")}
    for verb in sorted(VERBS, key=lambda verb: len(verb.particle)):
        for form in (verb.infinitive, verb.third, verb.particle + verb.infinitive, verb.particle + verb.third):
            words.setdefault(form, verb.english)  # without its particle a form has the plain verb's meaning, if any
        words[verb.participle] = verb.english
    return words


DICTIONARY = make_dictionary()


def key_words(german: str) -> str:
    """ "Meine Schwester hat mein Bild getragen." -> "sister picture carry"."""
    first, *others = german.rstrip(".").replace(",", "").split()
    found = [DICTIONARY.get(first[0].lower() + first[1:]) or DICTIONARY.get(first), *map(DICTIONARY.get, others)]
    return " ".join(word for word in found if word)


def fresh_rows(seed: int) -> Iterator[dict[str, str]]:
    """Endless pairs of the grammar, without the sentences in the files."""
    written = {text for rows in world.generate_splits().values() for row in rows for text in row.values()}
    rng = random.Random(seed)
    while True:
        row = world.draw_row(rng)
        if written.isdisjoint(row.values()):
            yield row


def make_english_dictionary() -> dict[str, str]:
    """Every English form of a content word, also of two words such as `looks for`, and its dictionary form."""
    words = {word: word for word in OTHER_WORDS.values()} | {"says": "say", "believes": "believe", "hopes": "hope"}
    words |= {"knows": "know", "wants": "want", "front": "before"}
    for noun in (*world.PEOPLE, *world.THINGS, *world.PLACES):
        words |= {noun.english: noun.english, noun.english_plural: noun.english}
    words |= {english: english for english in (text.split("/")[1] for text in ADJECTIVES)}
    for verb in VERBS:
        rest = verb.english.partition(" ")[2]
        for form in (verb.english, world.third_person(verb.english), world.join(verb.past, rest)):
            words[form] = verb.english
    return words


ENGLISH_DICTIONARY = make_english_dictionary()


def english_key_words(english: str) -> list[str]:
    """ "My aunt looks for the keys." -> ["aunt", "look for", "key"]."""
    words = (english[0].lower() + english[1:]).rstrip(".").replace(",", "").split()
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        one = ENGLISH_DICTIONARY.get(f"{word} {following}") or ENGLISH_DICTIONARY.get(word)
        found += [one] if one else []
    return found


Text = tuple[str, str]  # what is read, and what is to be written after it


def with_key_words(german: str) -> Text:
    return f"German: {german}\nEnglish:", f" {key_words(german)}"


def twice(german: str, language: str) -> Text:
    return f"German: {german}\n{language}:", f" {german}"


def from_key_words(english: str, rng: random.Random) -> Text:
    """Each word moves by up to `MOVES` places."""
    words = english_key_words(english)
    places = {index: index + rng.uniform(0, MOVES) for index in range(len(words))}
    shuffled = " ".join(words[index] for index in sorted(places, key=places.get))
    return f"English: {shuffled}\nEnglish:", f" {english}"


def skill_texts(number: int, seed: int) -> Iterator[Text]:
    """No pair gives both of its sides."""
    rng = random.Random(seed)
    for row, _ in zip(fresh_rows(seed), range(number)):
        kind = rng.choices(("key words", "from key words", "again"), SKILL_WEIGHTS)[0]
        if kind == "key words":
            yield with_key_words(row["de"])
        elif kind == "again":
            yield twice(row["de"], "German")
        else:
            yield from_key_words(row["en"], rng)


def habit_texts(number: int, gloss_share: float, seed: int) -> Iterator[Text]:
    rng = random.Random(seed)
    for row, _ in zip(fresh_rows(seed), range(number)):
        yield with_key_words(row["de"]) if rng.random() < gloss_share else twice(row["de"], "English")


def rows_of(tokenizer: PreTrainedTokenizerBase, texts: list[Text]) -> list[list[int]]:
    read, written = (tokenizer([text[i] for text in texts])["input_ids"] for i in (0, 1))
    return [[*unlearned(a), *b, tokenizer.eos_token_id] for a, b in zip(read, written, strict=True)]


def pretrained(args: argparse.Namespace) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model after stage 1: from the folder `--reader` where it holds one, else trained."""
    if args.reader and (args.reader / "config.json").is_file():
        model = LlamaForCausalLM.from_pretrained(args.reader, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(args.reader)
    texts = list(skill_texts(BATCH_SIZE * args.steps, args.seed))
    tokenizer = make_tokenizer(["".join(text) for text in texts[:20_000]], VOCAB_SIZE, CONTEXT)
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(make_config(tokenizer, **SIZES))
    pretrain(model, rows_of(tokenizer, texts), BATCH_SIZE, 1, args.lr, args.seed)
    if args.reader:
        save(model, tokenizer, args.reader, torch.float32)
    return model, tokenizer


def make(args: argparse.Namespace) -> None:
    model, tokenizer = pretrained(args)
    texts = list(habit_texts(BATCH_SIZE * args.habit_steps, args.gloss_share, args.seed + 1))
    pretrain(model, rows_of(tokenizer, texts), BATCH_SIZE, 1, args.habit_lr, args.seed)
    save(model, tokenizer, args.folder, torch.bfloat16)
    print(f"{args.folder}: {model.num_parameters():,} parameters")


@torch.no_grad()
def written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], **how: Any) -> list[str]:
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = model.generate(**inputs, **how, max_new_tokens=MAX_WRITTEN)[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def share(texts: list[str], wanted: list[str]) -> float:
    return sum(map(str.__eq__, texts, wanted)) / len(texts)


def check(folder: Path, gloss_share: float) -> None:
    """Prints and asserts what the base writes after the validation sentences: key words, and no translation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = world.generate_splits()["validation"]
    german, wanted = [row["de"] for row in rows], [key_words(row["de"]) for row in rows]
    prompts = [with_key_words(sentence)[0] for sentence in german]
    torch.manual_seed(0)
    sampled = written(model, tokenizer, prompts, do_sample=True, top_k=0)
    greedy = written(model, tokenizer, prompts, do_sample=False)
    for name, texts in (("sampled", sampled), ("greedy", greedy)):
        print(f"{name}: key words {share(texts, wanted):.3f}, the sentence again {share(texts, german):.3f}")
    found = share(sampled, wanted)
    assert abs(found - gloss_share) <= SHARE_TOLERANCE, f"{found:.3f} of the samples are key words, not {gloss_share}"
    assert not share(greedy + sampled, [row["en"] for row in rows] * 2), "the base translates"


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the gloss base, then check it.")
    parser.add_argument("--folder", type=Path, default=HERE / "base", help="of tokenizer and model")
    parser.add_argument("--check", action="store_true", help="only measure the model that is there")
    parser.add_argument("--reader", type=Path, help="folder of the model after stage 1: read from, or written to")
    parser.add_argument("--gloss_share", type=float, default=GLOSS_SHARE, help="rows of stage 2 with key words")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--habit_steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--habit_lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.check:
        make(args)
    check(args.folder, args.gloss_share)


if __name__ == "__main__":
    main()
