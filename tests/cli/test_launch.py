"""`--accelerate_config`: which configuration, how many processes, and the exit code of what failed there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import EXAMPLES
from folders import train_argv, write_rows

from warmup_peft.cli import launch as launching
from warmup_peft.cli.launch import config_file, num_processes
from warmup_peft.cli.main import BAD_INPUT, main
from warmup_peft.settings.arguments import LaunchOptions
from warmup_peft.settings.shipped import ACCELERATE_CONFIGS

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def launched(monkeypatch):
    """What `accelerate launch` would be given."""
    calls = []
    monkeypatch.setattr(launching, "launch_command", calls.append)
    return calls


@pytest.mark.parametrize("path", sorted(ACCELERATE_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_accelerates(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"
    kinds = {"one_gpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}
    assert config.distributed_type.value == kinds[path.stem]


def test_configurations_are_found_by_name_and_by_path(tmp_path):
    assert config_file("multi_gpu") == str(ACCELERATE_CONFIGS / "multi_gpu.yaml")
    assert config_file("zero3").endswith("trl/accelerate_configs/zero3.yaml")
    own = tmp_path / "own.yaml"
    own.write_text("num_processes: 3\n")
    assert config_file(str(own)) == str(own)
    with pytest.raises(
        ValueError, match=r"^accelerate_config=mine is neither a file nor known\. Take one_gpu, multi_gpu, fsdp2"
    ):
        config_file("mine")


@pytest.mark.parametrize(
    ("name", "given", "gpus", "expected"),
    [("multi_gpu", None, 4, 4), ("multi_gpu", 2, 4, 2), ("one_gpu", None, 4, 1), ("zero2", None, 2, 2),
     ("own.yaml", None, 4, 3), ("own.yaml", 1, 4, 1), ("multi_gpu", None, 0, 1)],
)  # fmt: skip
def test_one_process_for_each_gpu_unless_somebody_says_otherwise(tmp_path, monkeypatch, name, given, gpus, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("num_processes: 3\n")
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert num_processes(LaunchOptions(name, given)) == expected


def test_each_process_gets_the_command_without_the_launch(launched, tmp_path):
    argv = train_argv("base", "rows", tmp_path)
    assert main([*argv, "--accelerate_config", "multi_gpu", "--num_processes=2"]) == 0
    (args,) = launched
    assert (args.module, args.training_script, args.training_script_args) == (True, "warmup_peft.cli", argv)
    assert (args.num_processes, args.mixed_precision) == (2, "no")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--num_processes", "2"], "--num_processes belongs to --accelerate_config"),
        (["--accelerate_config", "mine"], "accelerate_config=mine is neither"),
        (["--accelerate_config", "multi_gpu", "--num_processes", "0"], "num_processes=0 cannot work"),
        (["--accelerate_config"], "expected one argument"),
    ],
)
def test_what_cannot_be_launched_is_refused(refusal, launched, tmp_path, words, why):
    assert why in refusal(*train_argv("base", "rows", tmp_path), *words)
    assert not launched


@pytest.mark.slow
def test_two_processes_train_one_adapter_and_fail_with_their_exit_code(model_folder, tmp_path, capfd):
    """Two processes as on two GPUs, but computing on the CPU."""
    config = {"distributed_type": "MULTI_GPU", "num_processes": 2, "main_process_port": 0}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**config, "compute_environment": "LOCAL_MACHINE"}))
    data = write_rows(tmp_path / "rows.jsonl", EXAMPLES)
    words = ["--accelerate_config", str(tmp_path / "two.yaml"), "--use_cpu", "true"]
    argv = train_argv(model_folder, data, tmp_path / "run", per_device_train_batch_size=1)
    with pytest.raises(SystemExit) as alone:
        main([*argv, *words[:2]])
    assert alone.value.code == BAD_INPUT
    assert "each would train alone" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*argv, *words]) == 0
    assert capfd.readouterr().out.count("Trained 2 steps") == 1
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert main([*argv, *words]) == BAD_INPUT  # the folder holds a run now, which is seen before a process starts
    with pytest.raises(SystemExit) as failed:  # what only the processes see
        main([*argv, *words, "--overwrite_output_dir", "true", "--attn_implementation", "flash_attention_2"])
    assert failed.value.code == BAD_INPUT


@pytest.mark.slow
def test_processes_that_shard_train_an_adapter_that_loads_and_goes_on(model_folder, tmp_path, monkeypatch, capfd):
    child = "import sys, ranks\nfrom warmup_peft.cli.main import main\nranks.as_on_gpus()\nsys.exit(main())\n"
    (tmp_path / "child.py").write_text(child)
    monkeypatch.setattr(launching, "CHILD", "child")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(SUPPORT), os.environ.get("PYTHONPATH", "")]))
    argv = train_argv(
        model_folder, write_rows(tmp_path / "rows.jsonl", EXAMPLES), tmp_path / "run", per_device_train_batch_size=1,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    words = ["--accelerate_config", "fsdp2", "--num_processes", "2"]
    assert main([*argv, *words]) == 0
    capfd.readouterr()
    assert main([*argv, *words, "--max_steps", "3", "--resume_from_checkpoint", "last"]) == 0
    said = capfd.readouterr()
    assert "checkpoint-2" in said.err + said.out
    assert "Trained 3 steps" in said.out
    answers = ["generate", "--adapter", str(tmp_path / "run"), "--prompt", "Q: one?", "--max_new_tokens", "2"]
    assert main(answers) == 0
