"""The command line without a model: exit codes, one sentence for bad input, strict options, quick help."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import EXAMPLES
from folders import puzzles, random_adapter, save_adapter, tree, write_rows
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from warmup_peft import __version__
from warmup_peft.cli.completion import hints_of
from warmup_peft.cli.main import (
    ALIASES,
    BAD_INPUT,
    COMMANDS,
    COMPARE_PACKAGES,
    FIRST_OF_TRLS,
    INTERRUPTED,
    imported,
    main,
)
from warmup_peft.settings.early import check_early


@pytest.fixture
def parsed(monkeypatch):
    """The options with which `train` would start, as `TrainingSettings`."""

    def run(*argv: str):
        seen = []
        monkeypatch.setattr("warmup_peft.cli.train.run_training", seen.append)
        monkeypatch.setattr("warmup_peft.cli.main.early_check", lambda *_: None)
        assert main(["train", *argv]) == 0
        return seen[0]

    return run


def recipe(tmp_path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output_dir: {tmp_path / 'run'}\nbf16: false\nreport_to: none\n{text}", encoding="utf-8")
    return str(path)


# ---- Commands and help ----


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_commands_are_listed(capsys, argv):
    assert main(argv) == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"warmup_peft {__version__}\n"


def test_unknown_command_names_the_nearest(refusal):
    assert refusal("trian") == "There is no command 'trian'. Did you mean 'train'?"
    assert refusal("xyzzy") == "There is no command 'xyzzy'. See --help."


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_a_row_and_a_module(command):
    assert callable(importlib.import_module(f"warmup_peft.cli.{command}").run)


def test_garbage_is_collected_again_after_an_import(monkeypatch, tmp_path):
    (tmp_path / "looks.py").write_text("import gc\nWAS_ON = gc.isenabled()\n")
    (tmp_path / "fails.py").write_text("raise ImportError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not imported("looks").WAS_ON
    with pytest.raises(ImportError):
        imported("fails")
    assert gc.isenabled()


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_older_name_works_and_is_not_listed(capsys, alias, name):
    assert main([alias, "--help"]) == 0
    help_of_alias = capsys.readouterr().out
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out == help_of_alias
    assert main(["--help"]) == 0
    assert not re.search(rf"^  {alias} ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    for kind in COMMANDS[command].options:
        for name in kind.__dataclass_fields__:
            assert re.search(rf"^  --{name} .*\((required|default: .+)\)$", out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_examples_whose_options_there_are(capsys, command):
    examples = COMMANDS[command].examples
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.endswith("\n  ".join(["For example:", *examples]) + "\n")
    options = {f"--{name}" for name in hints_of(COMMANDS[command])}
    for words in map(shlex.split, examples):
        assert words[:2] == ["warmup-peft", command]
        assert {word for word in words if word.startswith("--")} <= options


def test_help_of_training_begins_with_what_newcomers_set_and_ends_with_vllm(capsys):
    assert main(["train", "--help"]) == 0
    options = re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE)
    assert options[: len(FIRST_OF_TRLS)] == list(FIRST_OF_TRLS)
    assert options.index("task") < options.index("num_warmups") < options.index("use_vllm")
    assert all("vllm" in name for name in options[options.index("use_vllm") :])


def test_defaults_in_the_help_are_those_of_trl():
    defaults = check_early((), [])
    for name, text in FIRST_OF_TRLS.items():
        assert name == "config" or name in defaults
        if named := re.search(r"\(default: (\d+)\)", text):
            assert float(named[1]) == defaults[name]


def processor_seconds(argv: list[str]) -> float:
    """Of a command, which other work on the machine does not make longer."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "warmup_peft.cli", *argv], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_is_quick(argv):
    assert processor_seconds(argv) < 1


# ---- Options ----


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "--num_warmup", "2"], "There is no option --num_warmup. Did you mean --num_warmups?"),
        (["train", "--learning_rat", "1"], "There is no option --learning_rat. Did you mean --learning_rate?"),
        (["train", "--num_warmup=2"], "There is no option --num_warmup. Did you mean --num_warmups?"),
        (["evaluate", "--adaptor", "x"], "There is no option --adaptor. Did you mean --adapter?"),
        (["generate", "--adapter", "x", "--prompts", "y"], "There is no option --prompts. Did you mean --prompt"),
        (["merge", "--adapter", "x", "--out", "y"], "There is no option --out. "),
        (["push", "--folder", "x", "--zzzz", "y"], "There is no option --zzzz. See --help."),
        (["push", "--folder", "x"], "The following arguments are required: --repo_id"),
        (["evaluate"], "The following arguments are required: --adapter"),
        (["train", "--num_warmups", "two"], "Argument --num_warmups"),
        (["train", "--bf16", "false", "--num_warmups", "0"], "num_warmups=0 cannot work. Set it to 1 or more"),
        (["train", "--warmup_sampling", "beams"], "Argument --warmup_sampling"),
        (["train", "--bf16", "false", "--packing", "true"], "packing=True does not work with warmups."),
        (["merge", "--adapter", "x", "--output_dir", "y", "--dtype", "int4"], "Argument --dtype"),
        (["generate", "--adapter", "x", "stray"], ""),
        (["train", "--config"], "--config names nothing"),
    ],
)
def test_bad_options(refusal, argv, said):
    assert refusal(*argv).startswith(said)


# ---- Recipes ----


def test_recipe_is_read_and_the_command_line_overrides_it(parsed, tmp_path):
    path = recipe(tmp_path, "num_warmups: 2\nmax_warmup_length: 3\nlearning_rate: 2.0e-3\ntask: logiqa\nlora_r: 5\n")
    _, options, args, model_args = parsed("--config", path)
    assert (args.num_warmups, args.max_warmup_length, args.learning_rate) == (2, 3, 0.002)
    assert (options.task, model_args.lora_r) == ("logiqa", 5)
    _, _, args, model_args = parsed("--config", path, "--num_warmups", "7", "--lora_r=6")
    assert (args.num_warmups, args.max_warmup_length, model_args.lora_r) == (7, 3, 6)


@pytest.mark.parametrize(
    ("value", "kept"), [("true", "always"), ("false", "never"), ("auto", "auto"), ("always", "always")]
)
def test_prefix_sharing_in_a_recipe_may_look_like_a_boolean(parsed, tmp_path, value, kept):
    assert parsed("--config", recipe(tmp_path, f"prefix_sharing: {value}\n"))[2].prefix_sharing == kept


@pytest.mark.parametrize(("value", "kept"), [("true", "always"), ("false", "never"), ("never", "never")])
def test_older_names_of_prefix_sharing_are_options_too(parsed, tmp_path, value, kept):
    assert parsed("--config", recipe(tmp_path, ""), "--prefix_sharing", value)[2].prefix_sharing == kept


def test_recipe_with_an_equals_sign_is_read_too(parsed, tmp_path):
    assert parsed(f"--config={recipe(tmp_path, 'num_warmups: 2')}")[2].num_warmups == 2


@pytest.mark.parametrize("name", ["relay", "qlora"])
def test_recipes_of_the_repository_parse(parsed, name, request):
    path = request.config.rootpath / "recipes" / "logiqa" / f"{name}.yaml"
    _, options, args, _ = parsed("--config", str(path), "--bf16", "false")
    assert options.task == "logiqa"
    assert args.num_warmups >= 1


def test_unknown_key_names_the_nearest(refusal, tmp_path):
    path = recipe(tmp_path, "num_warmup: 2\n")
    assert refusal("train", "--config", path) == f"{path} has an unknown key 'num_warmup'. Did you mean 'num_warmups'?"


@pytest.mark.parametrize("text", ["", "- one\n- two\n", "just words"])
def test_recipe_that_is_no_mapping(refusal, tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert refusal("train", "--config", str(path)) == f"{path} holds no `key: value` lines."


def test_recipe_that_is_no_yaml(refusal, tmp_path):
    path = recipe(tmp_path, "num_warmups: [\n")
    assert refusal("train", "--config", path).startswith(f"{path} is no valid YAML: ")


def test_recipe_that_is_not_there(refusal, tmp_path):
    assert "is neither a file nor a recipe" in refusal("train", "--config", str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("num_warmups: two", "num_warmups"),
        ("num_warmups: 2.5", "num_warmups"),
        ("num_warmups: null", "num_warmups"),
        ("num_warmups: [2]", "num_warmups"),
        ("temperature: null", "temperature"),
        ("max_warmup_length: {}", "max_warmup_length"),
        ("warmup_anchor: [0.3]", "warmup_anchor"),
        ("task_args: 3", "task_args"),
        ("answer_format: letters", "answer_format"),
        ("test_split_size: half", "test_split_size"),
        ("max_train_samples: few", "max_train_samples"),
    ],
)
def test_value_of_the_wrong_kind_in_a_recipe(refusal, tmp_path, line, named):
    assert re.search(rf"\b{named}\b", refusal("train", "--config", recipe(tmp_path, line)))


# ---- Inputs that are refused before anything is loaded ----


@pytest.fixture
def good(tmp_path, model_folder) -> dict[str, str]:
    rows = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    return {"model_name_or_path": model_folder, "dataset_name": str(rows), "output_dir": str(tmp_path / "run")}


def argv_of(options: dict[str, str]) -> list[str]:
    options = {"bf16": "false", "report_to": "none", **options}
    return ["train", *(word for key, value in options.items() for word in (f"--{key}", value))]


@pytest.mark.parametrize("missing", ["model_name_or_path", "dataset_name"])
def test_train_needs_model_and_data(refusal, good, missing):
    assert f"Set --{missing} to" in refusal(*argv_of({k: v for k, v in good.items() if k != missing}))


def test_output_folder_that_holds_a_run_is_refused(refusal, good, tmp_path):
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    said = refusal(*argv_of(good))
    assert "holds another run" in said
    assert "--overwrite_output_dir" in said
    assert "--resume_from_checkpoint" in said


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--adapter"],
        ["generate", "--prompt", "x", "--adapter"],
        ["generate", "--prompt", "x", "--base_url", "http://localhost:1/v1", "--model", "m", "--adapter"],
        ["merge", "--output_dir", "merged", "--adapter"],
        ["inspect"],
        ["push", "--repo_id", "me/mine", "--dry_run", "--folder"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["nowhere", "runs/nowhere", "/no/where"])
def test_a_folder_that_does_not_exist_is_named(refusal, command, name, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refusal(*command, name) == (
        f"The folder {name} does not exist. Name the output_dir of a training or of a merge."
    )


@pytest.mark.parametrize("command", ["train", "sample", "compare", "bench"])
def test_an_adapter_as_the_base_model_is_refused_before_anything_is_loaded(refusal, good, tmp_path, command):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    options = {**good, "model_name_or_path": str(adapter), "dataset_name": "not/read", "task": "logiqa"}
    argv = argv_of(options)[1:] if command != "bench" else ["--model_name_or_path", str(adapter)]
    said = refusal(command, *argv)
    assert said.startswith(
        f"The base model {adapter} is an adapter itself. Merge it first (warmup-peft merge --adapter"
    )


@pytest.mark.parametrize("name", ["last", "true"])
def test_resuming_needs_a_checkpoint(refusal, good, tmp_path, name):
    said = refusal(*argv_of({**good, "resume_from_checkpoint": name}))
    assert said == f"There is no checkpoint in {tmp_path / 'run'} to resume from. Start the run without it."
    assert not (tmp_path / "run").exists()


def test_resuming_needs_a_real_checkpoint(refusal, good, tmp_path):
    said = refusal(*argv_of({**good, "resume_from_checkpoint": str(tmp_path)}))
    assert said.startswith(f"{tmp_path} is no checkpoint.")


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "--prompt", "one?"],
        ["merge", "--output_dir", "merged"],
        ["evaluate", "--dataset_name", "ROWS", "--task", "logiqa"],
        ["evaluate"],
    ],
    ids=" ".join,
)
def test_folders_that_are_no_adapter(refusal, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    row = {"text": "a", "question": "b?", "options": list("abcd"), "answer": 0}
    rows = str(write_rows(tmp_path / "rows.jsonl", [row]))
    before = tree(tmp_path)
    said = refusal(*[rows if word == "ROWS" else word for word in argv], "--adapter", "nowhere")
    assert "nowhere" in said
    assert tree(tmp_path) == before


# ---- Errors ----


@pytest.fixture
def fails_with(monkeypatch):
    """Let every command end with this error."""

    def patch(error: BaseException) -> None:
        def run_command(*_):
            raise error

        monkeypatch.setattr("warmup_peft.cli.main.run_command", run_command)

    return patch


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (ImportError("No module named 'bitsandbytes'"), "No module named 'bitsandbytes'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(refusal, fails_with, error, said):
    fails_with(error)
    assert refusal("train") == said


@pytest.mark.parametrize("command", [name for name, row in COMMANDS.items() if row.needs_compare])
def test_packages_that_are_missing_are_named_before_anything_is_imported(refusal, monkeypatch, tmp_path, command):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in COMPARE_PACKAGES else find(name))
    said = refusal(*[command, *([str(tmp_path)] if command == "inspect" else [])])
    assert said == f"{command} needs {', '.join(COMPARE_PACKAGES)}. Run: pip install 'warmup_peft[compare]'"


@pytest.mark.parametrize("argv", [["train", "--config", "logiqa"], ["bench", "--load_in_4bit", "true"]], ids=" ".join)
def test_4_bit_without_bitsandbytes_is_refused_before_anything_is_imported(refusal, monkeypatch, argv):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    said = "load_in_4bit needs bitsandbytes. Run: pip install 'warmup_peft[qlora]', or add --load_in_4bit false."
    assert refusal(*argv) == said


@pytest.mark.parametrize("argv", [["--debug"], ["--num_warmups", "2", "--debug"], ["--debug", "--num_warmups", "2"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_traceback_on_request(monkeypatch, command, argv):
    given = []

    def failing(*named_and_words):
        given.append(named_and_words)
        raise ValueError("it")

    monkeypatch.setattr("warmup_peft.cli.main.run_command", failing)
    with pytest.raises(ValueError, match="it"):
        main([command, *argv])
    assert given == [(command, [word for word in argv if word != "--debug"])]


def test_a_debug_option_with_a_value_is_the_trainings(parsed, good):
    args = parsed(*argv_of({**good, "debug": "underflow_overflow"})[1:])[2]
    assert [option.value for option in args.debug] == ["underflow_overflow"]


@pytest.mark.parametrize("error", [HfHubHTTPError, RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError])
def test_errors_of_the_hub_are_one_line(refusal, fails_with, error):
    response = SimpleNamespace(headers={}, request=None)
    fails_with(error("404 Client Error", response=response))
    assert refusal("push").startswith("404 Client Error")


def test_too_little_memory_is_said_with_its_advice(refusal, fails_with):
    fails_with(torch.OutOfMemoryError("Out of memory. Halve the batch."))
    assert refusal("train") == "Out of memory. Halve the batch."


@pytest.mark.parametrize("error", [KeyError, TypeError, AttributeError, AssertionError, RuntimeError, IndexError])
def test_programming_errors_are_not_hidden(fails_with, error):
    fails_with(error("bug"))
    with pytest.raises(error, match="bug"):
        main(["train"])


# ---- Broken files and impossible numbers ----

LATIN = '{"prompt": "caf\u00e9", "completion": "x"}\n'.encode("latin-1")
NO_UTF8 = r"{path} is not UTF-8 text \(byte \d+ is 0x[0-9a-f]{{2}}\)\. Save it as UTF-8\."


@pytest.mark.parametrize("content", [LATIN, LATIN.decode("latin-1").encode("utf-16"), bytes(range(256))])
@pytest.mark.parametrize("kind", ["dataset_name", "config", "prompts_file"])
def test_text_in_another_encoding(refusal, good, tmp_path, kind, content):
    path = tmp_path / "given.jsonl"
    path.write_bytes(content)
    if kind == "prompts_file":
        said = refusal("generate", "--adapter", "none", "--prompts_file", str(path))
    else:
        said = refusal(*argv_of({**good, kind: str(path)}))
    assert re.fullmatch(NO_UTF8.format(path=re.escape(str(path))), said)


def test_a_table_in_another_encoding_says_what_its_reader_said(refusal, good, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("prompt,completion\ncaf\u00e9,x\n".encode("latin-1"))
    assert re.search(r"cannot be read as csv: .*utf-8.*0xe9", refusal(*argv_of({**good, "dataset_name": str(path)})))


def test_a_folder_is_no_recipe(refusal, tmp_path):
    assert "is neither a file nor a recipe" in refusal("train", "--config", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [("per_device_train_batch_size", 0), ("gradient_accumulation_steps", 0), ("gradient_accumulation_steps", -1),
     ("max_length", -3), ("dataloader_num_workers", -1), ("seed", -1), ("num_train_epochs", -1)],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "compare"])
def test_impossible_numbers_of_a_training(refusal, good, tmp_path, command, name, value):
    if command == "compare":
        good["dataset_name"] = str(write_rows(tmp_path / "data" / "test.jsonl", puzzles(40)).parent)
        good["task"] = "logiqa"
        if name == "seed":
            pytest.skip("a comparison has --seeds")
    words = argv_of({**good, name: str(value)})[1:]
    said = refusal(command, *words)
    assert re.search(rf"{name}={value}(\.0)? (cannot work|trains nothing)", said)
    assert not (tmp_path / "run").exists()


BREAK = {
    "cut off": lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
    "other sizes": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"hidden_size": 64', '"hidden_size": 128')
    ),
}


@pytest.mark.parametrize("broken", BREAK)
def test_a_model_with_broken_weights(refusal, good, tmp_path, model_folder, tokenizer, lora, capsys, broken):
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    adapter = save_adapter(tmp_path / "adapter", random_adapter(str(base), lora), tokenizer, str(base))
    BREAK[broken](base)
    capsys.readouterr()
    for argv in (
        argv_of({**good, "model_name_or_path": str(base)}),
        ["generate", "--adapter", str(adapter), "--prompt", "one?"],
        ["merge", "--adapter", str(adapter), "--output_dir", str(tmp_path / "merged")],
    ):
        assert main(argv) == BAD_INPUT
        assert f"error: The model {base} cannot be loaded (" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_comparison_of_an_unknown_architecture_starts_no_run(good, tmp_path, model_folder, capsys):
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    (base / "config.json").write_text('{"model_type": "nosuch"}')
    rows = write_rows(tmp_path / "data" / "test.jsonl", puzzles(40)).parent
    argv = argv_of({**good, "model_name_or_path": str(base), "dataset_name": str(rows), "task": "logiqa"})
    assert main(["compare", *argv[1:]]) == BAD_INPUT
    assert "nosuch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_recipes_environment_is_set_before_a_library_can_read_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WARMUP_PEFT_TEST", "before")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("env: {WARMUP_PEFT_TEST: now}\n")
    seen = []
    monkeypatch.setattr("warmup_peft.cli.main.early_check", lambda *_: None)
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name: seen.append(os.environ["WARMUP_PEFT_TEST"]) or SimpleNamespace(run=list),
    )
    assert main(["train", "--config", str(recipe)]) == 0
    assert seen == ["now"]


def test_interrupt(fails_with, capsys):
    fails_with(KeyboardInterrupt())
    assert main(["train"]) == INTERRUPTED == 130
    assert "interrupted" in capsys.readouterr().err


def test_exit_code_reaches_the_shell():
    run = subprocess.run(
        [sys.executable, "-m", "warmup_peft.cli", "trian"], capture_output=True, text=True, env={**os.environ}
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "warmup-peft: error: There is no command 'trian'. Did you mean 'train'?\n"
