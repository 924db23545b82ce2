"""Every README: links lead somewhere, commands parse, options exist, Python runs as it stands."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from folders import TRAINING, logiqa_folder, write_rows
from summaries import USUAL
from worlds import ROOT

import warmup_peft
from warmup_peft.cli.main import COMMANDS, quick_options, take_launch_options
from warmup_peft.comparison.arms import arms_of
from warmup_peft.settings.options import WarmupOptions
from warmup_peft.settings.parsing import option_hints
from warmup_peft.settings.traits import OBJECTIVE_TRAITS, SOURCE_TRAITS
from warmup_peft.training.config import TRAINING_KINDS, parse_training

HOUSE = ROOT / "warmup_peft"
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (*ROOT.glob("*.md"), *HOUSE.rglob("README.md"), *(ROOT / "recipes").rglob("README.md"))
}
LONGEST = 150  # lines of the first page
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {
    "recipe.yaml": "recipes/logiqa/relay.yaml"
}  # files that a reader would write, and what stands for them here
OTHERS_PROGRAMS = ("export", "llama-server", "transformers", "vllm")


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGES[page].read_text(encoding="utf-8")) if kind == language]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


# ---- What the pages have to say ----


def what_there_is() -> dict[str, tuple[str, set[str]]]:
    """Of each kind of thing, the page that lists it, and the names."""
    return {
        "arms": ("warmup_peft/comparison/README.md", set(arms_of(None))),
        "commands": ("warmup_peft/README.md", {f"warmup-peft {name}" for name in COMMANDS}),
        "objectives": ("warmup_peft/method/README.md", set(OBJECTIVE_TRAITS)),
        "sources": ("warmup_peft/README.md", set(SOURCE_TRAITS)),
        "options": ("warmup_peft/README.md", {option.name for option in dataclasses.fields(WarmupOptions)}),
    }


@pytest.mark.parametrize("kind", what_there_is())
def test_pages_list_everything_that_there_is(kind):
    page, names = what_there_is()[kind]
    text = PAGES[page].read_text(encoding="utf-8")
    ticked = set(re.findall(r"`([^`\n]+)`", text))
    assert {name for name in names if name not in ticked and not re.search(rf"^{name} ", text, re.M)} == set()


def test_the_first_page_is_one_page():
    assert len(PAGES["README.md"].read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_version_to_cite_is_this_one():
    assert f"version {warmup_peft.__version__}" in PAGES["README.md"].read_text(encoding="utf-8")


def test_every_recipe_and_every_guide_is_reached_from_the_first_page():
    seen, ahead = set(), ["README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        ahead += [other for other in map(page_name, targets(page)) if other in PAGES and other not in seen]
    assert set(PAGES) - seen == set()


def test_the_tests_that_a_table_names_are_there():
    table = PAGES["warmup_peft/README.md"].read_text(encoding="utf-8").partition("## What works together")[2]
    named = set(re.findall(r"`(test_\w+)`", table))
    assert len(named) > 10
    assert named <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_no_cell_of_the_table_is_without_an_answer():
    """Each row trains by a test, or it is refused, or the cell says what it needs."""
    text = PAGES["warmup_peft/README.md"].read_text(encoding="utf-8")
    table = text.partition("## What works together")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert len(rows) > 30
    assert {len(row) for row in rows} == {6}
    cells = [cell for row in rows[2:] for cell in row[1:] if cell]
    answers = re.compile(r"`test_\w+`|refused|needs |the same|`--device` only|as dequantised")
    assert [cell for cell in cells if not answers.search(cell)] == []
    assert "untested" not in table.lower()


# ---- Links ----


def prose(page: str) -> str:
    """Without blocks of code, and without code in a line."""
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", PAGES[page].read_text(encoding="utf-8")))


def links(page: str) -> list[str]:
    """Those within the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)|\bsrc(?:set)?=\"([^\"]+)\"", prose(page))
    return [link for pair in found for link in pair if link and not link.startswith(("http:", "https:", "mailto:"))]


def anchors(page: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = BLOCK.sub("", PAGES[page].read_text(encoding="utf-8"))
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {heading.strip().replace(" ", "-") for heading in headings}


def targets(page: str) -> list[Path]:
    """The file or folder of each link."""
    paths = (link.partition("#")[0] for link in links(page))
    return [(PAGES[page].parent / path).resolve() if path else PAGES[page] for path in paths]


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link, target in zip(links(page), targets(page)):
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        anchor = link.partition("#")[2]
        assert not anchor or anchor in anchors(page_name(target)), link


def test_dead_links_are_found(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A b: `c`, d!\n[x](page.md#a-b-c-d) [y\nz](nowhere.md) `[n](no.md)`\n```\n[n](no.md)\n```\n")
    monkeypatch.setitem(PAGES, "page", page)
    assert links("page") == ["page.md#a-b-c-d", "nowhere.md"]
    assert anchors("page") == {"a-b-c-d"}


# ---- Commands ----


def commands(page: str) -> Iterator[list[str]]:
    """The words of every line of every block."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield [EXAMPLES.get(word, word) for word in words]


def check_command(words: list[str]) -> None:
    """Raise ValueError or AssertionError for a command that cannot work here."""
    program, *rest = words
    if program == "warmup-peft":
        check_own_command(rest)
    elif program.startswith("--"):  # options alone, of any command that trains
        check_own_command(["train", *words])
    elif program == "make":
        check_make(rest)
    elif program == "python":
        check_script(rest)
    elif program == "pip":
        check_install(rest)
    elif program == "accelerate":
        check_own_command(rest[rest.index("warmup_peft.cli") + 1 :])
    else:
        assert program in OTHERS_PROGRAMS, words


def check_own_command(words: list[str]) -> None:
    name, *argv = words
    command = COMMANDS[name]
    if command.first_word and argv and not argv[0].startswith("-"):
        argv = [f"--{command.first_word}", *argv]
    _, argv = take_launch_options(command, argv)
    quick_options(command, argv)


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MAKE_RUNS = {"bench": "bench", "recipe-logiqa": "train", "compare-logiqa": "compare"}  # what ARGS goes to


def check_make(words: list[str]) -> None:
    target, *settings = words
    assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE), f"there is no make {target}"
    for setting in settings:
        name, _, value = setting.partition("=")
        assert re.search(rf"^{name} \?=", MAKEFILE, re.MULTILINE), f"the Makefile has no {name}"
        if name == "ARGS":
            check_own_command([MAKE_RUNS[target], *shlex.split(value)])


def check_script(words: list[str]) -> None:
    """A script of a recipe names its options in its own source, or in that of the module which makes small bases."""
    script = ROOT / words[0]
    if words[0] == "convert_hf_to_gguf.py":  # of llama.cpp
        return
    source = "".join(path.read_text(encoding="utf-8") for path in (script, ROOT / "recipes" / "small_base.py"))
    assert {word for word in words[1:] if word.startswith("--") and f'"{word}"' not in source} == set()


def check_install(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {extra for word in words for group in re.findall(r"\[(.+)\]", word) for extra in group.split(",")}
    assert named <= set(extras)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        try:
            check_command(words)
        except (AssertionError, KeyError, ValueError, OSError) as error:
            pytest.fail(f"{shlex.join(words)}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    "line",
    [
        "warmup-peft train --config recipes/logiqa/relay.yaml --num_warmup 3",
        "warmup-peft trian --config recipes/logiqa/relay.yaml",
        "warmup-peft evaluate --warmups own",
        "make nothing",
        "make bench ARGUMENTS=x",
        "make bench ARGS='--shap small'",
        "python recipes/none.py",
        "python recipes/thinking/sft.py --nothing 1",
        'pip install ".[nothing]"',
        "rm -rf /",
    ],
)
def test_commands_that_cannot_work_are_found(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, KeyError, ValueError, OSError)):
        check_command(shlex.split(line))


# ---- Settings and data ----


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_recipes_in_a_page_parse(page, tmp_path):
    for block in blocks(page, "yaml"):
        path = tmp_path / "recipe.yaml"
        path.write_text(block)
        assert len(yaml.safe_load(block)) > 3
        parse_training(["--config", str(path), "--report_to", "none"])


@pytest.mark.parametrize("page", pages_with("json"))
def test_rows_in_a_page_are_json(page):
    for block in blocks(page, "json"):
        for line in block.splitlines():
            json.loads(line)


def test_options_that_pages_name_in_a_line_are_there():
    """Such as `--device_map auto`, and `warmup_source: base`."""
    known = {"config", "debug", "help", "apply_chat_template", "enable_thinking", *option_hints(TRAINING_KINDS)}
    known |= set(option_hints([kind for command in COMMANDS.values() for kind in command.options]))
    for script in (ROOT / "recipes").rglob("*.py"):
        known |= set(re.findall(r'"--(\w+)"', script.read_text(encoding="utf-8")))
    for page in set(PAGES) - {"CHANGELOG.md"}:
        text = BLOCK.sub("", PAGES[page].read_text(encoding="utf-8"))
        named = set(re.findall(r"`(?:warmup-peft \w+ )?--([a-z_]+)", text))
        named |= set(re.findall(r"`([a-z]+_[a-z_]+): ", text))
        assert named - known == set(), page


# ---- Python ----

RUN = (
    "README.md",
    "warmup_peft/inference/README.md",
    "warmup_peft/evaluation/README.md",
    "warmup_peft/comparison/README.md",
)  # in this order: what the first page trains is used by the others


def test_every_page_with_python_is_run():
    assert set(RUN) == set(pages_with("python"))


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder but for what a reader would have: models under the names that the pages use, rows, a recipe."""
    for folder in ("meta-llama", "Qwen", "me"):
        (tmp_path / folder).mkdir()
    (tmp_path / "meta-llama" / "Llama-3.2-1B").symlink_to(ROOT / "recipes" / "logiqa" / "relay" / "base")
    (tmp_path / "Qwen" / "Qwen3-0.6B").symlink_to(ROOT / "recipes" / "thinking" / "base")
    (tmp_path / "me" / "adapter").symlink_to(tmp_path / "runs" / "mine")
    (tmp_path / "me" / "merged").symlink_to(tmp_path / "runs" / "merged")
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "Who knows?", "completion": " Eve"}] * 2)
    puzzles = (ROOT / "recipes" / "thinking" / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    chats = [row["prompt"] + row["completion"] for row in map(json.loads, puzzles)]
    write_rows(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    recipe = {
        **TRAINING,
        "model_name_or_path": "meta-llama/Llama-3.2-1B",
        "dataset_name": str(logiqa_folder(tmp_path / "puzzles")),
        "task": "logiqa",
        "save_strategy": "no",
        "output_dir": "runs/recipe",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_runs_as_it_stands(desk, capsys, monkeypatch):
    """But for two things that take long and have tests of their own: the comparison's trainings, and the check of
    samples of 512 tokens."""
    planned = []
    monkeypatch.setattr("warmup_peft.method.sampling.why_wrong", lambda *args: None)
    monkeypatch.setattr("warmup_peft.comparison.compare.run_experiment", lambda *args: planned.append(args) or USUAL)
    for page in RUN:
        names: dict = {}
        for number, block in enumerate(blocks(page, "python"), 1):
            try:
                exec(compile(block, f"{page}, Python block {number}", "exec"), names)
            except Exception as error:
                error.add_note(f"in {page}, Python block {number}:\n{block}")
                raise
    assert (desk / "runs" / "merged" / "custom_generate" / "generate.py").is_file()
    ((experiment, _),) = planned
    assert experiment.num_runs == 9
    assert (desk / "folder" / "report.html").is_file()
    assert "adapter, after its warmup" in capsys.readouterr().out
