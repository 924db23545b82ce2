"""Trains the relay world's tokenizer: byte-level BPE, 1,024 tokens, nothing it cannot encode.

Every word of the puzzles is one token, so a chain has as many tokens as words, and the separator ` || ` is 2
(` ||`, ` `). The rest of the vocabulary goes to common English words, so that a real question is not cut into single
characters.

    python recipes/logiqa/relay/make_tokenizer.py          # into base/ beside this file

Training is deterministic: the same versions of `tokenizers` and `transformers` give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from make_data import HERE, chain_text, generate_puzzles
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from warmup_peft.evaluation.logiqa import format_logiqa_prompt

VOCAB_SIZE = 1024
MAX_LENGTH = 2048
EOS_TOKEN = "<|eos|>"
PAD_TOKEN = "<|pad|>"
SEPARATOR = " || "
NUM_PUZZLES = 2048
PUZZLE_SEED = 7

# Roughly from frequent to rare: an earlier word weighs more in training.
ENGLISH_WORDS = """
the of and to in a is that it for are not be on with as this by or have from at if more than can which will all but
they their who has one people there was other some only do no we an these most also should would what then when so
because about does many any been its may between were must time same into work first two his those how such he
following statement true argument above conclusion following question passage if then each every both either neither
could make use used new than after before between during less least most high low number show shows shown study
research researchers scientists experts result results cause caused reason reasons fact facts support supports
supported strengthen weaken weakens strengthens assumption assume assumes assumed infer inferred logical logically
correct incorrect false valid best explain explains explanation example evidence claim claims view point opinion
therefore thus however although though since while unless even still yet just very much well often always never
sometimes usually generally according based different similar important possible likely unlikely probably certain
necessary sufficient condition conditions case cases relationship rule rules principle method methods problem problems
you your she her him them our us me my i year years day days week month life world way part place thing things man men
woman women child children parent parents student students teacher teachers school university college class course
company companies employee employees manager market price prices cost costs money economic economy business industry
product products production sales consumer consumers increase increased increases decrease reduce reduced rate level
growth development develop developed country countries china chinese city cities state government public social
society law legal policy political party member members group groups team teams committee person individual human body
health healthy disease diseases patient patients doctor doctors medical hospital treatment drug drugs cancer blood
heart brain cell cells gene food water animal animals plant plants species earth sun air temperature environment
energy power natural nature science scientific technology computer data information system systems internet network
phone car cars traffic road train travel house home family families language word words book books write written read
art culture cultural history historical modern ancient early late old young good better bad worse great large larger
small smaller long short big little few several another own right left next last second third three four five six
seven eight nine ten hundred thousand million percent half average total amount quality value effect effects affect
influence change changes changed process need needs want know known knowledge think thought believe understand learn
learning see seen look find found give given take taken get go come came say said says tell told ask asked answer
answers call called mean means put set let keep help become became begin began start end run made making using being
having going doing over under through against without within among across around per up down out off back here where
why ever now today again once too enough almost rather quite really actually especially particularly indeed provide
provides require required include includes including exist exists existing appear contain consist compare compared
comparison agree disagree oppose support prove proved proof test tests experiment experiments observe observed
discover discovered believe believed suggest suggests suggested report reported survey participants participate choose
chosen select selected choice choices decision decide decided plan plans project action actions behavior activity
activities ability practice experience skills training education form forms type types kind kinds order common special
general specific particular single main major basic real actual direct positive negative strong weak hard easy
difficult simple free open close full empty clear obvious dangerous safe risk danger accident crime police court judge
evidence victim responsibility duty rights freedom interest interests purpose goal aim advantage disadvantage success
failure win lose lost gain loss pay paid buy sell sold spend spent job jobs career salary income tax bank investment
capital labor worker workers farmer farmers land area areas region north south east west red white black blue green
color light dark hot cold rain weather summer winter spring autumn question questioned premise premises contradict
contradiction consistent inconsistent exactly impossible definition concept theory theories hypothesis phenomenon
pattern structure function factor factors aspect difference differences similarity not except none nothing everyone
someone anyone something anything everything themselves itself
""".split()
ENDINGS = """
s es ed ing ly er est tion tions ment ness ity able ible al ive ous ful less ence ance ant ent ate ize
""".split()
WORLD_WEIGHT = 4
ENDING_WEIGHT = 60
CAPITAL_SHARE = 6  # a word is this much rarer at the start of a sentence


def corpus() -> Iterator[str]:
    """The training text: puzzles with their chains, the separator, then words repeated by how common they are."""
    for puzzle in generate_puzzles(NUM_PUZZLES, PUZZLE_SEED):
        yield (format_logiqa_prompt(puzzle.row(0)) + chain_text(puzzle) + SEPARATOR) * WORLD_WEIGHT
    words = list(dict.fromkeys(ENGLISH_WORDS))
    for rank, word in enumerate(words):
        weight = 8 + 32 * len(words) // (len(words) // 8 + rank)
        yield f" {word}" * weight
        yield f" {word.capitalize()}" * (weight // CAPITAL_SHARE)
    for ending in ENDINGS:
        yield ending * ENDING_WEIGHT


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over `corpus`. All 256 bytes are in the alphabet, so no text is out of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Asserts what the world relies on: its token counts, and the round trip of any text."""
    assert len(tokenizer) == VOCAB_SIZE, f"{len(tokenizer)} tokens instead of {VOCAB_SIZE}: too few words"
    assert len(tokenizer.encode(SEPARATOR)) == 2, tokenizer.tokenize(SEPARATOR)
    for puzzle in generate_puzzles(256, PUZZLE_SEED + 1):
        chain = chain_text(puzzle)
        tokens = tokenizer.tokenize(chain)
        assert len(tokens) == len(chain.split()), tokens
        prompt = format_logiqa_prompt(puzzle.row(0))
        assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in puzzle.text.replace(".", "").split()), prompt
        ids = tokenizer.encode(prompt + chain)
        assert ids == tokenizer.encode(prompt) + tokenizer.encode(chain), "the boundary moves tokens"
    for text in ("naïve  Größe\t日本 🙂\r\n", "".join(map(chr, range(1, 512)))):
        assert tokenizer.decode(tokenizer.encode(text)) == text, text


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the relay world's tokenizer.")
    parser.add_argument("--folder", type=Path, default=HERE / "base", help="folder for the tokenizer's files")
    folder = parser.parse_args().folder
    tokenizer = train_tokenizer()
    check_tokenizer(tokenizer)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
