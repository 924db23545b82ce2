"""Two ranks on a CPU (gloo): they move the weights as one rank does, and read the same warmups."""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from conftest import EXAMPLES
from datasets import Dataset
from folders import TRAINING, assert_serves, write_rows
from peft import LoraConfig
from ranks import as_on_gpus, on_ranks
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_available

from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer, merge_adapter
from warmup_peft.cli import train
from warmup_peft.cli.main import main
from warmup_peft.inference.loading import load_folder
from warmup_peft.method.model import is_sharded
from warmup_peft.settings.shipped import ACCELERATE_CONFIGS
from warmup_peft.settings.traits import OBJECTIVE_TRAITS
from warmup_peft.training.callbacks import StopOnInterrupt
from warmup_peft.training.checkpoints import is_whole
from warmup_peft.training.pool import WarmupPool

SETTINGS = dict(
    max_steps=1, num_warmups=3, max_warmup_length=5, optim="sgd", learning_rate=0.5, lr_scheduler_type="constant",
    max_grad_norm=0.0, bf16=False, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    gradient_checkpointing=False, logging_steps=1, warmup_gain_steps=1,
)  # fmt: skip
ROWS = Dataset.from_list(EXAMPLES)  # of unequal length


def make_trainer(model: str, folder: Path, rows: Dataset = ROWS, **settings) -> WarmupSFTTrainer:
    """For batches of four rows on all ranks together, unless the settings say otherwise."""
    num_parts = int(os.environ.get("WORLD_SIZE", "1")) * settings.get("gradient_accumulation_steps", 1)
    args = WarmupSFTConfig(
        str(folder),
        **{**SETTINGS, "per_device_train_batch_size": 4 // num_parts, "logging_nan_inf_filter": False} | settings,
    )
    lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.0)
    return WarmupSFTTrainer(model, args, train_dataset=rows, eval_dataset=rows, peft_config=lora)


def with_random_adapter(trainer: WarmupSFTTrainer) -> WarmupSFTTrainer:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return trainer


def trained_weights(trainer: WarmupSFTTrainer) -> torch.Tensor:
    named = sorted((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad)
    whole = (p.full_tensor() if isinstance(p, DTensor) else p for _, p in named)
    return torch.cat([p.detach().flatten() for p in whole])


def moved_by_training(trainer: WarmupSFTTrainer) -> tuple[torch.Tensor, list[dict]]:
    """How far the weights went, and what was logged."""
    before = trained_weights(trainer)
    trainer.train()
    return trained_weights(trainer) - before, trainer.state.log_history


COMPARED = ("loss", "grad_norm", "num_tokens", "mean_token_accuracy", "warmups/kl", "warmups/gain_over_none")


def assert_equal_movement(one, two, tolerance: float) -> None:
    (moved, log), (moved_2, log_2) = one, two
    assert moved.norm() > 0
    assert ((moved_2 - moved).norm() / moved.norm()).item() < tolerance
    for row, expected in zip(log_2, log, strict=True):
        found = {key: row[key] for key in COMPARED if key in row}
        assert found == pytest.approx({key: expected[key] for key in COMPARED if key in expected}, rel=10 * tolerance)


def with_beams(trainer: WarmupSFTTrainer) -> WarmupSFTTrainer:
    """The same warmups in every batch, whatever random numbers a rank has."""
    trainer.sampling = dataclasses.replace(trainer.sampling, do_sample=False, num_beams=3)
    return trainer


def one_step(model: str, folder: Path, sharing: str):
    settings = dict(warmup_anchor=0.5, prefix_sharing=sharing, gradient_checkpointing=True, warmup_gain_steps=0)
    return moved_by_training(with_beams(with_random_adapter(make_trainer(model, folder, **settings))))


@pytest.mark.parametrize("sharing", ["always", pytest.param("never", marks=pytest.mark.slow)])
def test_two_ranks_move_the_weights_like_one(model_folder, tmp_path, sharing):
    one, two = (on_ranks(n, tmp_path / str(n), one_step, model_folder, tmp_path, sharing)[0] for n in (1, 2))
    assert_equal_movement(one, two, 1e-6)


def pooled(source: str, folder: Path) -> dict:
    """Settings of a source of warmups."""
    pool = {"warmup_pool": str(folder / "pool"), "warmup_pool_size": 4}
    return {"warmup_source": source, **(pool if source == "base" else {})}


def every_objective(model: str, folder: Path):
    found = {}
    for objective, traits in OBJECTIVE_TRAITS.items():
        for source in ("policy", *(["base"] if traits.takes_base_warmups else [])):
            settings = dict(objective=objective, warmup_anchor=0.3, prefix_sharing="never", **pooled(source, folder))
            trainer = with_random_adapter(make_trainer(model, folder / "run", **settings))
            found[objective, source] = moved_by_training(trainer if source == "base" else with_beams(trainer))
    return found


@pytest.mark.slow
def test_two_ranks_train_like_one_with_every_objective(model_folder, tmp_path):
    one, two = (on_ranks(n, tmp_path / str(n), every_objective, model_folder, tmp_path)[0] for n in (1, 2))
    assert len(one) == len(OBJECTIVE_TRAITS) + 2
    for case in one:
        assert_equal_movement(one[case], two[case], 1e-5)


def from_the_pool(model: str, folder: Path, pool: Path):
    """Samples are fixed, several steps; and the pool is sampled in shares."""
    trainer = make_trainer(model, folder, max_steps=3, **pooled("base", pool))
    moved, log = moved_by_training(trainer)
    return trained_weights(trainer), moved, log


@pytest.mark.slow
def test_with_fixed_samples_two_ranks_train_like_one(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("warmup_peft.training.pool.PROMPTS_PER_FILE", 1)  # so that each rank has a share
    pool = tmp_path
    two, _ = on_ranks(2, tmp_path / "2", from_the_pool, model_folder, tmp_path / "two", pool)
    assert len(list(pool.glob("pool/part-*"))) == len(ROWS)
    (one,) = on_ranks(1, tmp_path / "1", from_the_pool, model_folder, tmp_path / "one", pool)
    assert len(one[2]) == 4  # three steps, and the end
    assert ((two[0] - one[0]).norm() / one[0].norm()).item() < 1e-6
    assert_equal_movement(one[1:], two[1:], 1e-5)


def sampled(model: str, folder: Path):
    """One prompt in every row: what a rank samples differs by its random numbers alone. Twice."""
    rows, found = Dataset.from_list([EXAMPLES[0]] * 4), []
    for _ in range(2):
        trainer = make_trainer(model, folder, rows, max_steps=2, warmup_dropout=0.3, objective="warmup")
        seen, sample = [], trainer.sample_warmups

        def recording(*args, seen=seen, sample=sample):
            seen.append(sample(*args))
            return seen[-1]

        trainer.sample_warmups = recording
        trainer.train()
        found.append([(warmups.ids.tolist(), warmups.lengths.tolist()) for warmups in seen])
    return found


@pytest.mark.slow
def test_ranks_sample_apart_and_repeat_themselves(model_folder, tmp_path):
    (first, again), (other, other_again) = on_ranks(2, tmp_path, sampled, model_folder, tmp_path / "run")
    assert len(first) == 2
    assert (first, other) == (again, other_again)
    assert all(mine != theirs for mine, theirs in zip(first, other))  # every batch


def epochs(model: str, folder: Path, source: str):
    """Two epochs of three rows, the second one twice. Two ranks have a short last batch; an evaluation sees it too."""
    found = []
    for resume in (None, str(folder / "checkpoint-2")):
        trainer = make_trainer(
            model, folder, ROWS.select(range(3)), max_steps=-1, num_train_epochs=2.0, per_device_train_batch_size=1,
            per_device_eval_batch_size=1, eval_strategy="epoch", save_strategy="epoch", learning_rate=0.01,
            **pooled(source, folder),
        )  # fmt: skip
        if resume or not Path(folder, "checkpoint-2").is_dir():
            trainer.train(resume_from_checkpoint=resume)
            found.append((trained_weights(trainer), trainer.state.log_history))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", ["policy", "base", "shuffled", "empty"])
def test_a_run_goes_on_bit_by_bit_and_with_another_number_of_ranks(model_folder, tmp_path, source):
    run = tmp_path / "run"
    ranks = on_ranks(2, tmp_path / "2", epochs, model_folder, run, source)
    for name in ("loss", "eval_loss"):
        values = [[row[name] for row in log if name in row] for _, log in ranks[0]]
        assert len(values[0]) == {"loss": 4, "eval_loss": 2}[name]
        assert values[0] == values[1]
    weights = [found for rank in ranks for found, _ in rank]
    assert all(torch.equal(found, weights[0]) for found in weights)
    saved = load_file(run / "checkpoint-4" / "adapter_model.safetensors")
    assert torch.equal(torch.cat([saved[name].flatten() for name in sorted(saved)]), weights[0])
    assert merge_adapter(run / "checkpoint-4", tmp_path / "merged").relative_logit_error < 1e-5
    assert_serves(load_folder(run / "checkpoint-4"), tmp_path / "merged")
    ((alone, log),) = on_ranks(1, tmp_path / "1", epochs, model_folder, run, source)[0]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4, 5, 6]  # epochs of three batches
    assert alone.isfinite().all()
    assert not torch.equal(alone, weights[0])


# ---- Sharded weights (FSDP2), sharded gradients and optimizer (ZeRO-2) ----

FSDP = dict(fsdp=True, fsdp_config={"version": 2}, use_cpu=False)
AUTO = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
ZERO2 = dict(
    deepspeed={"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True, **dict.fromkeys(AUTO, "auto")}
)
NEEDS_DEEPSPEED = pytest.mark.skipif(not is_deepspeed_available(), reason="needs deepspeed")


@pytest.fixture
def no_compiler(monkeypatch):
    """DeepSpeed would first compile an all-reduce for ranks of one CPU, for minutes; gloo has one."""
    if is_deepspeed_available():
        monkeypatch.setattr(importlib.import_module("deepspeed.comm.torch"), "build_shm_op", lambda: None)


def with_greedy_warmups(trainer: WarmupSFTTrainer) -> WarmupSFTTrainer:
    trainer.sampling = dataclasses.replace(trainer.sampling, do_sample=False)
    return trainer


def cases_of(model: str, folder: Path, pool: Path, of_ranks: dict):
    """Evaluated, trained and saved; several ranks with the settings `of_ranks`."""
    settings_of_ranks = of_ranks if "WORLD_SIZE" in os.environ else {}
    if "fsdp" in settings_of_ranks:
        as_on_gpus()
    cases = {
        "anchor": dict(objective="warmup", warmup_anchor=0.5, gradient_checkpointing=True),
        "gain": dict(objective="rlpr", warmup_anchor=0.0, gradient_accumulation_steps=2),
        "base": dict(objective="posterior", warmup_anchor=0.3, max_steps=2, **pooled("base", pool)),
        "bfloat16": dict(
            objective="posterior",
            model_init_kwargs={"dtype": "bfloat16"},
            prefix_sharing="never",
            **pooled("base", pool / "bfloat16"),
        ),
    }
    if "fsdp" in of_ranks:  # DeepSpeed would round the adapter, too
        cases["autocast"] = cases["bfloat16"] | dict(bf16=True, learning_rate=0.1)
    found = {}
    for name, settings in cases.items():
        run = folder / name
        trainer = make_trainer(model, run, eval_strategy="steps", eval_steps=1, **{**settings, **settings_of_ranks})
        assert trainer.is_deepspeed_enabled == ("deepspeed" in settings_of_ranks)
        found[name] = moved_by_training(with_greedy_warmups(with_random_adapter(trainer)))
        assert is_sharded(trainer.model) == ("fsdp" in settings_of_ranks)
        trainer.save_model()
        trainer.accelerator.wait_for_everyone()
        found[name] += (load_file(run / "adapter_model.safetensors"), trainer.encoder.shares)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_ranks", "can_share"),
    [(FSDP, False), pytest.param(ZERO2, True, marks=NEEDS_DEEPSPEED)],
    ids=["fsdp2", "zero2"],
)
def test_sharded_ranks_train_and_save_like_one(model_folder, tmp_path, no_compiler, of_ranks, can_share):
    (one,) = on_ranks(1, tmp_path / "1", cases_of, model_folder, tmp_path / "one", tmp_path, of_ranks)
    two, other = on_ranks(2, tmp_path / "2", cases_of, model_folder, tmp_path / "two", tmp_path, of_ranks)
    for case, (moved, log, saved, shares) in one.items():
        assert_equal_movement((moved, log), two[case][:2], 1e-2 if case == "autocast" else 1e-5)
        is_float32 = case not in ("bfloat16", "autocast")  # in which shared prompts and plain rows are equal
        assert (shares, two[case][3]) == (is_float32, is_float32 and can_share)
        assert two[case][2].keys() == saved.keys()
        for name, weight in saved.items():
            tolerance = 1e-3 if case == "autocast" else 1e-5
            torch.testing.assert_close(two[case][2][name], weight, rtol=tolerance, atol=tolerance)
        assert torch.equal(two[case][0], other[case][0])
    assert merge_adapter(tmp_path / "two" / "anchor", tmp_path / "merged").relative_logit_error < 1e-5
    assert_serves(load_folder(tmp_path / "two" / "anchor"), tmp_path / "merged")


@pytest.fixture
def environment(monkeypatch):
    """What `accelerate launch` sets for a configuration of sharded ranks."""

    def of(config: Path) -> dict[str, str]:
        found = {}
        monkeypatch.setattr("torch.distributed.run.run", lambda args: found.update(os.environ))
        words = ["--config_file", str(config), "--num_processes", "2", "--main_process_port", "0", "script"]
        launch_command(launch_command_parser().parse_args(words))
        return {name: value for name, value in found.items() if "FSDP" in name or "DEEPSPEED" in name}

    return of


def sharded_run(model: str, folder: Path, launched: dict[str, str]):
    """Samples that end at different lengths on the ranks; a checkpoint, and the second half once more."""
    os.environ.update(launched)
    is_fsdp = "FSDP_VERSION" in launched
    if is_fsdp:
        as_on_gpus()
    found = []
    for resume in (None, str(folder / "checkpoint-2")):
        trainer = make_trainer(
            model, folder, max_steps=4, max_warmup_length=12, per_device_train_batch_size=1, save_strategy="steps",
            save_steps=2, optim="adamw_torch", learning_rate=0.01, max_grad_norm=1.0, warmup_anchor=0.3,
            use_cpu=not is_fsdp,
        )  # fmt: skip
        lengths, sample = [], trainer.sample_warmups

        def recording(*args, lengths=lengths, sample=sample):
            warmups = sample(*args)
            lengths.append(warmups.lengths.tolist())
            return warmups

        trainer.sample_warmups = recording
        trainer.train(resume_from_checkpoint=resume)
        assert is_sharded(trainer.model) == is_fsdp
        found.append((trained_weights(trainer), [row["loss"] for row in trainer.state.log_history if "loss" in row]))
        found[-1] += (lengths,)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2", pytest.param("zero2", marks=NEEDS_DEEPSPEED)])
def test_a_sharded_run_samples_apart_and_goes_on_bit_by_bit(model_folder, tmp_path, environment, no_compiler, config):
    run = tmp_path / "run"
    launched = environment(ACCELERATE_CONFIGS / f"{config}.yaml")
    if config == "fsdp2":  # the other rank has nothing but what it is sent
        assert launched["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    ranks = on_ranks(2, tmp_path / "2", sharded_run, model_folder, run, launched)
    (weights, losses, lengths), (again, losses_again, lengths_again) = ranks[0]
    assert len(losses) == 4
    assert losses_again == losses
    assert torch.equal(again, weights)
    assert lengths_again == lengths[2:]
    assert ranks[1][0][2] != lengths
    assert torch.equal(ranks[1][0][0], weights)
    assert all("lora_" in name for name in load_file(run / "checkpoint-4" / "adapter_model.safetensors"))
    assert (run / "checkpoint-4" / "global_step4").is_dir() == (config == "zero2")  # DeepSpeed's own


def read_while_it_is_replaced(argv: list[str], found: Path) -> int:
    remove_run, load = train.remove_run, WarmupPool.load

    def slowly(*positional, **keywords):
        time.sleep(4)  # the other rank has the time to read what is about to be removed
        remove_run(*positional, **keywords)

    def counted(pool):
        load(pool)
        with Path(f"{found}{os.environ['RANK']}").open("a") as file:
            file.write(f"{len(pool)} ")

    train.remove_run, WarmupPool.load = slowly, counted
    return main(argv)


@pytest.mark.slow
def test_no_rank_reads_the_warmups_of_the_run_that_is_replaced(model_folder, tmp_path):
    options = {
        **TRAINING, "model_name_or_path": model_folder, "dataset_name": write_rows(tmp_path / "rows.jsonl", EXAMPLES),
        "output_dir": tmp_path / "run", "warmup_pool_size": 2, "max_steps": 1, "save_strategy": "no",
        "use_cpu": "true",
    }  # fmt: skip
    argv = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert main(["draw", *argv]) == 0
    argv = ["train", *argv, "--warmup_source", "base", "--overwrite_output_dir"]
    assert on_ranks(2, tmp_path / "2", read_while_it_is_replaced, argv, tmp_path / "found") == [0, 0]
    assert [Path(f"{tmp_path}/found{rank}").read_text() for rank in (0, 1)] == ["0 4 ", "0 4 "]


class SignalToOneRank(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            os.kill(os.getpid(), 15)


def stopped(model: str, folder: Path):
    trainer = make_trainer(model, folder, max_steps=1000, num_warmups=2, max_warmup_length=3, warmup_gain_steps=0)
    trainer.add_callback(SignalToOneRank())
    trainer.add_callback(StopOnInterrupt())
    trainer.train()
    checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
    whole = is_whole(checkpoint) and all((checkpoint / f"rng_state_{rank}.pth").is_file() for rank in (0, 1))
    return trainer.state.global_step, whole


def test_a_signal_to_one_rank_stops_all_at_the_same_step(model_folder, tmp_path):
    assert on_ranks(2, tmp_path / "2", stopped, model_folder, tmp_path / "run") == [(3, True), (3, True)]
