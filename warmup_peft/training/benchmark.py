"""One training step in several ways, in one process: the arms of `warmup-peft bench`, timed and measured.

    sft       TRL's own `SFTTrainer`
    sft_rows  TRL's own on K rows [prompt | W more tokens | target] for each example
    naive     the obvious ten lines: `generate` with K return sequences, then K full rows
    plain     `WarmupSFTTrainer` without sharing: K full rows, sampling from a prompt encoded once
    shared    `WarmupSFTTrainer` with each prompt encoded once
    anchored  shared, with the anchor
    learned   anchored, and the model learns to write the separator
    base      shared, with the anchor and warmups that were sampled before
    jensen, log_mean_exp, ...   shared, with that objective

The arms take turns, so that changes in the machine's speed affect all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from warmup_peft.files import first_line
from warmup_peft.inference.loading import check_is_there, load_tokenizer
from warmup_peft.method.model import evaluation_mode
from warmup_peft.settings.arguments import BenchArguments
from warmup_peft.settings.bench import ARMS, SHAPES
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.memory import LORA, AliveBytes, PredictedMemory
from warmup_peft.training.trainer import WarmupSFTTrainer

# of a step, and the trainer's attribute that does it
TIMED = {
    "prompt": "encoder",
    "sampling": "sample_warmups",
    "branches": "score_warmups",
    "anchor": "_reference",
    "diagnostics": "record_metrics",
}
SEPARATOR = "||"  # two tokens of the byte tokenizer


@dataclass
class Arm:
    """One way to run a training step, and its measurements (seconds, bytes)."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], None]
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in TIMED})
    peak_bytes: int | None = None
    predicted: PredictedMemory | None = None

    def split(self) -> dict[str, float]:
        """Median seconds of each part of a step, and of the rest; empty for an arm of TRL's."""
        split = {part: statistics.median(values) for part, values in self.parts.items() if values}
        if split:
            split["branches"] -= split.get("anchor", 0)  # which is done within
            split["backward and the rest"] = statistics.median(self.seconds) - sum(split.values())
        return split


# ---- Model and batch ----


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, for random models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # which has another order in each process
    vocabulary = {token: i for i, token in enumerate(["<|pad|>", "<|eos|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>")


def read_config(options: BenchArguments) -> PretrainedConfig:
    """Of the user's model, of which nothing else is read, or of a random one of a given shape.

    Raises:
        ValueError: there is no such configuration.
    """
    name = options.model_name_or_path
    if name is None:
        return LlamaConfig(
            **SHAPES[options.shape], max_position_embeddings=8192, bos_token_id=None, eos_token_id=1, pad_token_id=0
        )
    check_is_there(name)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{name} gives no configuration ({first_line(error)}). Name a folder with a config.json, or a model's id "
            "on the Hub."
        ) from error


def load_model(options: BenchArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The user's model, or a random one of a given shape. For 4 bit, it is saved to a temporary folder first."""
    quantization = None
    dtype = getattr(torch, options.dtype)
    if options.load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    load = {"dtype": dtype, "quantization_config": quantization, "device_map": {"": device}}
    if options.model_name_or_path is not None:
        model = AutoModelForCausalLM.from_pretrained(options.model_name_or_path, **load)
        return model, load_tokenizer(options.model_name_or_path)
    with torch.device(device):
        model = LlamaForCausalLM(read_config(options)).to(dtype)
    if quantization is not None:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, **load)
    return model, byte_tokenizer()


def random_rows(batch_size: int, context_length: int, target_length: int, vocab_size: int) -> Dataset:
    """Rows of random tokens, of which only the target has labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(260, vocab_size, (batch_size, context_length + target_length), generator=generator)
    labels = ids.clone()
    labels[:, :context_length] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


# ---- Arms ----


def build_arms(options: BenchArguments, folder: str) -> list[Arm]:
    """All arms, with one model and one adapter."""
    set_seed(0)
    base, tokenizer = load_model(options)
    model = get_peft_model(base, LoraConfig(**LORA))
    vocab_size = base.config.get_text_config().vocab_size
    rows = random_rows(options.batch_size, options.prompt_length, options.target_length, vocab_size)
    long_rows = random_rows(
        options.batch_size * options.num_warmups,
        options.prompt_length + options.max_warmup_length,
        options.target_length,
        vocab_size,
    )
    common = dict(
        per_device_train_batch_size=len(long_rows),  # of the rows there are
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_length=None,
        bf16=False,
        report_to="none",
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )
    arms, optimizer = [], torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    for name in options.arms:
        changes = ARMS[name]
        if changes is None:
            own_rows = long_rows if name == "sft_rows" else rows
            trainer = SFTTrainer(
                model, SFTConfig(folder, **common), train_dataset=own_rows, processing_class=tokenizer
            )
        else:
            settings = {
                "num_warmups": options.num_warmups,
                "max_warmup_length": options.max_warmup_length,
                "warmup_separator": SEPARATOR,
                "warmup_pool_size": options.num_warmups,
                "objective": "warmup",
                "warmup_anchor": 0.0,
                "prefix_sharing": "always",
                **common,
                **changes,
            }
            trainer = WarmupSFTTrainer(
                model, WarmupSFTConfig(folder, **settings), train_dataset=rows, processing_class=tokenizer
            )
            trainer.sampling = dataclasses.replace(trainer.sampling, end_token_ids=())  # use all W tokens
            if trainer.args.warmup_source == "base":
                trainer.fill_warmup_pool()
        arms.append(make_arm(name, trainer, optimizer, options))
    return arms


def make_arm(name: str, trainer: SFTTrainer, optimizer: torch.optim.Optimizer, options: BenchArguments) -> Arm:
    if options.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    num_targets = (batch["labels"] != -100).sum()

    def step() -> None:
        trainer.model.train()
        if name == "naive":
            naive_loss(trainer, batch, options).backward()
        else:
            trainer.training_step(trainer.model, dict(batch), num_items_in_batch=num_targets)
            trainer.state.global_step += 1  # some diagnostics are taken every so many steps
        optimizer.step()
        optimizer.zero_grad()

    arm = Arm(name, trainer.model, optimizer, step)
    if isinstance(trainer, WarmupSFTTrainer):
        for part, seconds in arm.parts.items():
            setattr(trainer, TIMED[part], timed(getattr(trainer, TIMED[part]), seconds))
    return arm


def naive_loss(trainer: SFTTrainer, batch: dict[str, torch.Tensor], options: BenchArguments) -> torch.Tensor:
    """The obvious implementation. All prompts have the same length here, so it needs no padding."""
    model, prompt = trainer.model, batch["input_ids"][:, : options.prompt_length]
    with evaluation_mode(model):
        sampled = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=0,
            num_return_sequences=options.num_warmups,
            min_new_tokens=options.max_warmup_length,
            max_new_tokens=options.max_warmup_length,
        )
    separator = torch.tensor(trainer.processing_class(SEPARATOR)["input_ids"], device=sampled.device)
    target = batch["input_ids"][:, options.prompt_length :].repeat_interleave(options.num_warmups, 0)
    rows = torch.cat([sampled, separator.expand(len(sampled), -1), target], dim=1)
    labels = rows.clone()
    labels[:, : -target.size(1)] = -100
    return model(input_ids=rows, attention_mask=torch.ones_like(rows), labels=labels, use_cache=False).loss


# ---- Measuring ----


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable, seconds: list[float]) -> Callable:
    def run(*args, **kwargs):
        synchronize()
        start = time.perf_counter()
        result = function(*args, **kwargs)
        synchronize()
        seconds.append(time.perf_counter() - start)
        return result

    return run


@contextlib.contextmanager
def peak_of(arm: Arm) -> Iterator[None]:
    """Peak bytes during a step: as measured by CUDA; on a CPU those of weights, optimizer and the step's tensors."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield
        arm.peak_bytes = torch.cuda.max_memory_allocated()
        return
    with AliveBytes() as alive:
        yield
    states = [x for state in arm.optimizer.state.values() for x in state.values()]
    arm.peak_bytes = alive.peak + sum(x.numel() * x.element_size() for x in (*arm.model.parameters(), *states))


def measure(arms: list[Arm], steps: int) -> None:
    """Run two steps of each arm, the second to measure memory, then `steps` timed steps in turn.

    Without timed steps one of each arm is enough.
    """
    for arm in arms:
        if steps > 0:
            arm.step()
        with peak_of(arm):
            arm.step()
        for values in arm.parts.values():
            values.clear()
    for _ in tqdm(range(steps), desc="timing", unit="round"):
        for arm in arms:
            timed(arm.step, arm.seconds)()
