"""The translation recipe's files: they parse, they are what their scripts make, they have the sizes 4 bit needs."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from transformers import AutoTokenizer
from worlds import ROOT, check_base, check_data, read_splits, run_script

from warmup_peft.evaluation.tasks import find_task, read_questions
from warmup_peft.training.config import parse_training

RECIPE = ROOT / "recipes" / "translation"
TINY, GLOSS = RECIPE / "tiny", RECIPE / "gloss"
TASK = find_task(str(RECIPE / "task.py"))


def test_the_sentences_are_what_their_script_makes(tmp_path):
    check_data(TINY, tmp_path)


def test_no_sentence_is_in_two_splits():
    splits = read_splits(TINY)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 6000, "validation": 256, "test": 512}
    for language in ("de", "en"):
        sentences = [row[language] for rows in splits.values() for row in rows]
        assert len(set(sentences)) == len(sentences)


def test_sizes():
    check_base(TINY / "base")


def test_every_row_fits_the_profile():
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    *_, args, _ = parse_training(["--config", str(RECIPE / "tiny.yaml")])
    rows = [row for split in read_splits(TINY).values() for row in split]
    texts = [question.prompt + question.completion for question in TASK.read(rows)]
    assert max(map(len, tokenizer(texts)["input_ids"])) + 1 < args.max_length


@pytest.mark.parametrize("name", ["tiny", "qlora"])
def test_profiles_go_through_the_real_parser(name):
    script, options, args, model = parse_training(["--config", str(RECIPE / f"{name}.yaml"), "--bf16", "false"])
    assert options.task == "recipes/translation/task.py"
    assert options.task_args == {"source": "de", "target": "en"}
    assert script.dataset_test_split == "test"
    assert (args.num_warmups, args.max_warmup_length) == (4, 8)
    assert model.lora_r in (16, 64)


def test_rows_become_questions():
    row = {"de": " Ein Hund. ", "en": "A dog."}
    (question,) = TASK.read([row])
    assert (question.prompt, question.completion) == ("German: Ein Hund.\nEnglish:", " A dog.")
    (question,) = read_questions(TASK, [{"translation": row}], {"source": "en", "target": "de"})
    assert (question.prompt, question.completion) == ("English: A dog.\nGerman:", " Ein Hund.")


def test_a_bad_row_is_named():
    good = {"de": "Ein Hund.", "en": "A dog."}
    with pytest.raises(ValueError, match="Row 2 has no text in the column `en`"):
        TASK.read([good, {"de": "Ein Hund.", "en": " "}])
    with pytest.raises(ValueError, match="Row 1 has no text in the column `fr`"):
        TASK.read([good], target="fr")


@pytest.fixture(scope="module")
def gloss():
    """The script's module. What it imports from beside it has siblings of the same names, so nothing stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        spec = importlib.util.spec_from_file_location("gloss_base", GLOSS / "make_base.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    for name in ("make_data", "small_base"):
        del sys.modules[name]
    return module


def test_the_gloss_base_has_the_sizes_that_4_bit_needs():
    check_base(GLOSS / "base")


@pytest.mark.parametrize(
    ("german", "words"),
    [
        ("Meine Schwester hat mein Bild getragen.", "sister picture carry"),
        ("Am Morgen ruft der Koch die Kinder an.", "morning call cook child"),
        ("Morgen wird der kluge Hund einschlafen.", "tomorrow will clever dog fall asleep"),
        ("Wenn die Tante den Brief holt, schläft die Katze.", "aunt letter fetch sleep cat"),
    ],
)
def test_key_words_are_dictionary_forms_in_the_german_order(gloss, german, words):
    assert gloss.key_words(german) == words


def test_both_languages_have_the_same_key_words(gloss):
    """Their order differs, and a few words that German splits (`holt ... ab`) stand for a plain verb."""
    rows = read_splits(TINY)["validation"]
    same = [
        sorted(gloss.key_words(row["de"]).split()) == sorted(" ".join(gloss.english_key_words(row["en"])).split())
        for row in rows
    ]
    assert sum(same) >= 0.9 * len(rows)
    assert any(gloss.key_words(row["de"]) != " ".join(gloss.english_key_words(row["en"])) for row in rows)


def test_the_gloss_base_sees_no_translation_and_no_sentence_of_the_files(gloss):
    """Whatever stands after a German sentence are its key words or itself; a sentence is after its own key words."""
    written = {text for rows in read_splits(TINY).values() for row in rows for text in row.values()}
    for read, text in [*gloss.skill_texts(400, 3), *gloss.habit_texts(100, 0.5, 4)]:
        source, language = read.split("\n")
        name, sentence = source.split(": ")
        assert written.isdisjoint([sentence, text.strip()])
        if name == "German":
            assert text.strip() in (gloss.key_words(sentence), sentence)
        else:
            assert (name, language) == ("English", "English:")
            assert sorted(sentence.split()) == sorted(" ".join(gloss.english_key_words(text.strip())).split())


@pytest.mark.slow
def test_the_gloss_base_writes_what_it_was_taught():
    """Asserts in the script: the share of key words among its samples, and that it cannot translate directly."""
    run_script(GLOSS / "make_base.py", "--check")


@pytest.mark.slow
def test_a_base_is_made_from_line_aligned_texts(tmp_path):
    rows = read_splits(TINY)["validation"]
    for language in ("de", "en"):
        lines = "".join(row[language] + "\n" for row in rows)
        (tmp_path / f"train.{language}").write_text(lines, encoding="utf-8")
    sizes = ["--vocab_size", "320", "--hidden_size", "64", "--num_layers", "1", "--epochs", "1", "--dtype", "bfloat16"]
    folder = tmp_path / "base"
    run_script(RECIPE / "make_base.py", "--data", str(tmp_path), "--output_dir", str(folder), "--echo", *sizes)
    check_base(folder)
