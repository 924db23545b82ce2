"""Two ranks on a CPU (gloo): they move the weights as one rank does, and read the same warmups."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES
from folders import TRAINING, write_rows
from safetensors.torch import load_file

from warmup_peft.cli.main import main

TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

SCRIPT = """
import dataclasses, json, sys, torch
from datasets import Dataset
from peft import LoraConfig
from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer

model, rows, output, batch_size, sharing = sys.argv[1:]
torch.set_num_threads(1)
args = WarmupSFTConfig(
    output, max_steps=1, per_device_train_batch_size=int(batch_size), num_warmups=3, max_warmup_length=5,
    warmup_anchor=0.5, prefix_sharing=sharing, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
    max_grad_norm=0.0, bf16=False, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    gradient_checkpointing=True, logging_steps=1,
)
lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.0)
trainer = WarmupSFTTrainer(model, args, train_dataset=Dataset.from_list(json.loads(rows)), peft_config=lora)
generator = torch.Generator().manual_seed(1)
for name, parameter in trainer.model.named_parameters():
    if "lora_B" in name:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
# the same warmups in every batch
trainer.sampling = dataclasses.replace(trainer.sampling, do_sample=False, num_beams=3)
before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
trainer.train()
if trainer.is_world_process_zero():
    after = dict(trainer.model.named_parameters())
    moved = torch.cat([(after[name].detach() - before[name]).flatten() for name in sorted(before)])
    torch.save({"moved": moved, "log": trainer.state.log_history[0]}, output + ".pt")
"""


@pytest.mark.parametrize("sharing", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_two_ranks_move_the_weights_like_one(model_folder, tmp_path, sharing):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    results = []
    for ranks in (1, 2):
        output = str(tmp_path / f"ranks{ranks}")
        launch = [sys.executable] if ranks == 1 else TWO_RANKS
        command = [*launch, str(script), model_folder, json.dumps(EXAMPLES), output, str(4 // ranks), sharing]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(output + ".pt"))
    one, two = results
    assert ((two["moved"] - one["moved"]).norm() / one["moved"].norm()).item() < 1e-4
    for key in ("loss", "num_tokens", "warmups/kl", "mean_token_accuracy"):
        assert two["log"][key] == pytest.approx(one["log"][key], rel=1e-3), key


OVERWRITE = """
import os, sys, time
from pathlib import Path
from warmup_peft.cli.main import main
from warmup_peft.cli import train
from warmup_peft.training.pool import WarmupPool

found, *argv = sys.argv[1:]
remove_run, load = train.remove_run, WarmupPool.load

def slowly(*positional, **keywords):
    time.sleep(4)  # the other rank has the time to read what is about to be removed
    remove_run(*positional, **keywords)

def counted(pool):
    load(pool)
    with Path(found + os.environ["RANK"]).open("a") as file:
        file.write(f"{len(pool)} ")

train.remove_run, WarmupPool.load = slowly, counted
sys.exit(main(argv))
"""


@pytest.mark.slow
def test_no_rank_reads_the_warmups_of_the_run_that_is_replaced(model_folder, tmp_path):
    (tmp_path / "train.py").write_text(OVERWRITE)
    options = {
        **TRAINING, "model_name_or_path": model_folder, "dataset_name": write_rows(tmp_path / "rows.jsonl", EXAMPLES),
        "output_dir": tmp_path / "run", "warmup_pool_size": 2, "max_steps": 1, "save_strategy": "no",
        "use_cpu": "true",
    }  # fmt: skip
    argv = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert main(["draw", *argv]) == 0
    command = [*TWO_RANKS, str(tmp_path / "train.py"), str(tmp_path / "found")]
    command += ["train", *argv, "--warmup_source", "base", "--overwrite_output_dir"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [Path(f"{tmp_path}/found{rank}").read_text() for rank in (0, 1)] == ["0 4 ", "0 4 "]


STOPPING = """
import json, os, sys, torch
from datasets import Dataset
from pathlib import Path
from peft import LoraConfig
from transformers import TrainerCallback
from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer
from warmup_peft.training.callbacks import StopOnInterrupt
from warmup_peft.training.checkpoints import is_whole

model, rows, output = sys.argv[1:]
torch.set_num_threads(1)
args = WarmupSFTConfig(
    output, max_steps=1000, per_device_train_batch_size=1, num_warmups=2, max_warmup_length=3, bf16=False,
    use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1000,
)
lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.0)
trainer = WarmupSFTTrainer(model, args, train_dataset=Dataset.from_list(json.loads(rows)), peft_config=lora)

class SignalToOneRank(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == 1:
            os.kill(os.getpid(), 15)

trainer.add_callback(SignalToOneRank())
trainer.add_callback(StopOnInterrupt())
trainer.train()
folder = Path(output, f"checkpoint-{trainer.state.global_step}")
whole = is_whole(folder) and all((folder / f"rng_state_{rank}.pth").is_file() for rank in (0, 1))
Path(output, f"rank-{args.process_index}").write_text(f"{trainer.state.global_step} {whole}")
"""


def test_a_signal_to_one_rank_stops_all_at_the_same_step(model_folder, tmp_path):
    script, output = tmp_path / "stop.py", tmp_path / "run"
    script.write_text(STOPPING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(script), model_folder, json.dumps(EXAMPLES), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(output / f"rank-{rank}").read_text() for rank in (0, 1)] == ["3 True", "3 True"]


RUNS = """
import json, sys, torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from warmup_peft import WarmupSFTConfig, WarmupSFTTrainer

model, rows, output, batch_size = sys.argv[1:]
torch.set_num_threads(1)
rows = Dataset.from_list(json.loads(rows))
SETTINGS = dict(
    per_device_train_batch_size=int(batch_size), num_warmups=2, max_warmup_length=5, optim="sgd", learning_rate=0.5,
    lr_scheduler_type="constant", bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, max_grad_norm=0.0,
    gradient_checkpointing=False, logging_steps=1, save_strategy="no", warmup_gain_steps=1,
)

def trainer(name, rows, **settings):
    args = WarmupSFTConfig(f"{output}/{name}", **{**SETTINGS, **settings})
    lora = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.0)
    return WarmupSFTTrainer(model, args, train_dataset=rows, eval_dataset=rows, peft_config=lora)

def recorded(trainer):
    seen, sample = [], trainer.sample_warmups
    def recording(*args):
        seen.append(sample(*args))
        return seen[-1]
    trainer.sample_warmups = recording
    return seen

def trained(name, rows, resume=None, **settings):
    made = trainer(name, rows, **settings)
    seen = recorded(made)
    made.train(resume_from_checkpoint=resume)
    made.save_model()
    made.accelerator.wait_for_everyone()
    return made, [warmups.ids.tolist() for warmups in seen]

found = {}
# samples are fixed, and the rows differ in length
made, _ = trained("base", rows, max_steps=3, warmup_source="base", warmup_pool=f"{output}/../pool",
                  warmup_pool_size=4, eval_strategy="steps", eval_steps=3)
log = made.state.log_history
KEYS = ("loss", "grad_norm", "num_tokens", "warmups/kl")
found["base"] = [{key: value for key, value in row.items() if key in KEYS} for row in log]
if made.accelerator.num_processes > 1:
    # one prompt in every row: what a rank samples differs by its random numbers alone
    same = Dataset.from_list([rows[0]] * 4)
    found["twice"] = [trained("same", same, max_steps=2, warmup_dropout=0.3, objective="warmup")[1] for _ in range(2)]
    # three rows on two ranks: the last batch is short, and an evaluation sees it too
    short, _ = trained("short", rows.select(range(3)), num_train_epochs=2.0, per_device_eval_batch_size=1,
                       eval_strategy="epoch", save_strategy="epoch")
    found["short"] = [row["loss"] for row in short.state.log_history if "loss" in row]
    found["eval"] = [row["eval_loss"] for row in short.state.log_history if "eval_loss" in row]
    made = short
else:
    checkpoint = f"{output}/../two/short/checkpoint-2"  # which two ranks wrote
    last, _ = trained("two/short", rows, resume=checkpoint, max_steps=3)
    found["resumed"] = [last.state.global_step, last.state.log_history[-2]["loss"]]
torch.save(found, f"{output}-{made.args.process_index}.pt")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ranks_sample_apart_repeat_themselves_and_train_as_one(model_folder, tmp_path):
    script = tmp_path / "runs.py"
    script.write_text(RUNS)
    for name, launch, batch_size in (("two", TWO_RANKS, 2), ("one", [sys.executable], 4)):
        command = [*launch, str(script), model_folder, json.dumps(EXAMPLES), str(tmp_path / name), str(batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = (torch.load(f"{tmp_path}/{name}.pt") for name in ("one-0", "two-0", "two-1"))
    for row, expected in zip(two[0]["base"], one["base"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)
    weights = [load_file(tmp_path / name / "base" / "adapter_model.safetensors") for name in ("one", "two")]
    moved = torch.cat([weights[0][name].flatten() for name in weights[0]])
    assert ((torch.cat([weights[1][name].flatten() for name in weights[0]]) - moved).norm() / moved.norm()) < 1e-6
    (first, again), (other, other_again) = (rank["twice"] for rank in two)
    assert first == again
    assert other == other_again
    assert all(mine != theirs for mine, theirs in zip(first, other))  # every batch
    assert len(two[0]["short"]) == 4
    assert all(0 < loss < 1e3 for loss in two[0]["short"] + two[0]["eval"])
    assert one["resumed"][0] == 3
    assert 0 < one["resumed"][1] < 1e3
