"""`warmup-peft compare`: its words, what it refuses and what it says."""

from __future__ import annotations

import re

import pytest
from comparisons import runs_of

from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.comparison.arms import arms_of
from warmup_peft.comparison.results import Job


@pytest.mark.parametrize("arms", ["sft", pytest.param("sft,paper", marks=pytest.mark.slow)])
def test_a_comparison_in_processes_of_its_own(argv, tmp_path, capsys, arms):
    """Really started, twice: the second time everything is taken over and only the report is written anew."""
    command = argv(arms=arms, jobs="2")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert all(f"{arm}, seed 0: accuracy" in said for arm in arms.split(","))
    folder = tmp_path / "cmp"
    times = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/run.json")}
    (folder / "report.html").unlink()
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/run.json")} == times
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "still running" not in page
    assert all(arm in page for arm in arms.split(","))
    assert (folder / "report.md").read_text(encoding="utf-8").count("Colour") > 0


@pytest.mark.slow
def test_a_sweep_given_in_several_words(argv, tmp_path, in_this_process):
    command = [*argv(arms="sft,warmup"), "--sweep", "num_warmups=1,2", "--sweep=max_warmup_length=2,3"]
    assert main(command) == 0
    names = [f"warmup_num_warmups={k}_max_warmup_length={w}" for k in (1, 2) for w in (2, 3)]
    runs = runs_of(tmp_path / "cmp")
    assert set(runs) == {"sft", *names}
    assert Job.load(tmp_path / "cmp" / "runs" / names[0] / "seed-0").options["num_warmups"] == 1


def test_the_help_lists_every_arm(capsys):
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    for arm in arms_of(None).values():
        assert f"  {arm.name}\n        {arm.description}\n" in said


def test_without_options_both_sentences_are_answered(argv, tmp_path, in_this_process, capsys):
    assert main(argv()) == 0
    assert in_this_process.started == ["sft 0", "warmup 0", "more_sft 0"]
    said = " ".join(capsys.readouterr().out.split())
    assert "the best SFT in as much training time (" in said
    assert re.search(r"The warmups of warmup are (read|only a pause|unused): they make the reference", said)
    assert said.index("as much training time") < said.index("The warmups of warmup are") < said.index("Report:")


def test_where_every_run_fails_the_first_reason_is_said(argv, in_this_process, capsys):
    in_this_process.fail["sft"] = RuntimeError("no luck")
    assert main(argv(arms="sft")) == BAD_INPUT
    assert "Every run failed, the first one so: RuntimeError: no luck" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arms": "sft,posteriour"}, "no arm 'posteriour'. Did you mean 'posterior'?"),
        ({"arms": "warmup", "sweep": "num_warmup=2"}, "no option of the recipe ('num_warmup')"),
        ({"arms": "warmup", "sweep": "dataset_name=a,b"}, "no option of the recipe ('dataset_name')"),
        ({"arms": "sft,paper", "seeds": "0,x"}, "--seeds 0,x cannot work"),
        ({"arms": "sft,paper", "seeds": "0,0"}, "--seeds 0,0 cannot work"),
        ({"arms": "sft,paper", "goal": "80"}, "goal=80.0 cannot work"),
        ({"arms": "sft,paper", "jobs": "0"}, "jobs=0 cannot work"),
        ({"arms": "sft,paper", "max_samples": "3"}, "3 test rows are too few: no difference between 1 arms"),
        ({"arms": "sft,paper", "num_warmups": "1"}, "The arm paper cannot run: warmup_num_beams"),
        ({"arms": "sft,paper", "task": "nothing.py"}, "no task 'nothing.py'"),
        ({"arms": "sft,paper", "model_name_or_path": "/no/such/model"}, "/no/such/model"),
        ({"arms": "sft,paper", "arm": "x"}, "no option --arm"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run_or_written(
    argv, tmp_path, in_this_process, capsys, options, words
):
    assert main(argv(**options)) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert in_this_process.started == []
    assert not (tmp_path / "cmp").exists()


def test_few_rows_say_the_minimum_detectable_effect(argv, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    assert "12 test rows: the minimum detectable effect is about 57 points" in capsys.readouterr().out


def test_dashes_and_another_order_are_the_same_options(argv, tmp_path, in_this_process):
    assert main(argv(arms="sft", max_samples="8")) == 0
    command, *pairs = argv(arms="sft")
    turned = [word for i in range(len(pairs) - 2, -1, -2) for word in pairs[i : i + 2]]
    assert main([command, *(w.replace("_", "-") if w.startswith("--") else w for w in turned), "--max-samples=8"]) == 0
    assert in_this_process.started == ["sft 0"]


def test_a_recipe_and_the_command_line_are_the_same_options(argv, tmp_path, in_this_process):
    assert main(argv(arms="sft", lr_scheduler_type="constant", seed="5")) == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr_scheduler_type: constant\nlearning_rate: 1\noutput_dir: elsewhere\n")
    assert main([*argv(arms="sft"), "--config", str(recipe)]) == 0
    assert in_this_process.started == ["sft 0"]


def test_compares_own_options_in_a_recipe_are_refused(argv, tmp_path, in_this_process, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seeds: '0,1'\n")
    assert main([*argv(arms="sft"), "--config", str(recipe)]) == BAD_INPUT
    assert "key 'seeds', which is compare's own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--overwrite_output_dir", "false"],
        ["--overwrite_output_dir", "no"],
        ["--overwrite_output_dir=False"],
        ["--overwrite-output-dir", "0"],
        ["--overwrite_output_dir", "true", "--overwrite_output_dir", "false"],
    ],
)
def test_told_not_to_overwrite_it_keeps_what_is_done(argv, tmp_path, in_this_process, words):
    assert main(argv(arms="sft")) == 0
    assert main([*argv(arms="sft"), *words]) == 0
    assert in_this_process.started == ["sft 0"]


@pytest.mark.parametrize("words", [["--overwrite_output_dir"], ["--overwrite-output-dir", "Yes"]])
def test_told_to_overwrite_it_begins_anew(argv, tmp_path, in_this_process, words):
    assert main(argv(arms="sft")) == 0
    assert main([*argv(arms="sft"), *words]) == 0
    assert in_this_process.started == ["sft 0", "sft 0"]


def test_overwriting_is_said_on_the_command_line_only(argv, tmp_path, in_this_process):
    """In a recipe it is meant for `train`, and here would delete what is done at every call."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("overwrite_output_dir: true\n")
    command = [*argv(arms="sft"), "--config", str(recipe)]
    assert main(command) == 0
    assert main(command) == 0
    assert in_this_process.started == ["sft 0"]


def test_a_value_that_is_neither_true_nor_false_is_refused(argv, tmp_path, in_this_process, capsys):
    assert main(argv(arms="sft")) == 0
    assert main([*argv(arms="sft"), "--overwrite_output_dir", "maybe"]) == BAD_INPUT
    assert "maybe" in capsys.readouterr().err
    assert in_this_process.started == ["sft 0"]
    assert (tmp_path / "cmp" / "runs" / "sft" / "seed-0" / "run.json").is_file()
