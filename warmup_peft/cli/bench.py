"""`warmup-peft bench`: what do warmups cost on my machine? Times one training step in several ways in one process.

    sft       TRL's own `SFTTrainer`
    sft_rows  TRL's own on K rows [prompt | W more tokens | target] for each example
    naive     the obvious ten lines: `generate` with K return sequences, then K full rows
    plain     `WarmupSFTTrainer` without sharing: K full rows, sampling from a prompt encoded once
    shared    `WarmupSFTTrainer` with each prompt encoded once
    anchored  shared, with the anchor
    learned   anchored, and the model learns to write the separator
    base      shared, with the anchor and warmups that were sampled before
    jensen, log_mean_exp, ...   shared, with that objective

The arms take turns, so that changes in the machine's speed affect all of them. Compare the ratios, not the seconds.
Beside the peak memory of an arm of ours stands what `warmup_peft.training.memory` predicts for it. With `--predict
true` that is all there is: no weights are read and nothing is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.table import Table
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

from warmup_peft.files import first_line, write_json
from warmup_peft.inference.folder import looks_like_a_path
from warmup_peft.inference.loading import check_is_no_adapter, load_tokenizer
from warmup_peft.method.model import evaluation_mode
from warmup_peft.method.objective import OBJECTIVES
from warmup_peft.settings.arguments import BenchArguments, check_counts
from warmup_peft.settings.parsing import parse_one
from warmup_peft.training.config import WarmupSFTConfig
from warmup_peft.training.memory import LORA, MARGIN, AliveBytes, PredictedMemory, Step, predicted_memory
from warmup_peft.training.monitor import log_console
from warmup_peft.training.trainer import WarmupSFTTrainer

ARMS: dict[str, dict[str, Any] | None] = {
    "sft": None,
    "sft_rows": None,
    "naive": None,
    "plain": {"prefix_sharing": "never"},
    "shared": {},
    "anchored": {"warmup_anchor": 0.3},
    "learned": {"warmup_anchor": 0.3, "learn_separator": True},
    "base": {"warmup_anchor": 0.3, "warmup_source": "base"},
    **{name: {"objective": name} for name in OBJECTIVES if name != "warmup"},
}
OURS = tuple(name for name, changes in ARMS.items() if changes is not None)
# of a step, and the trainer's attribute that does it
TIMED = {
    "prompt": "encoder",
    "sampling": "sample_warmups",
    "branches": "score_warmups",
    "anchor": "_reference",
    "diagnostics": "record_metrics",
}
SEPARATOR = "||"  # two tokens of the byte tokenizer
GB = 2**30  # as makers of cards count
LARGEST_BATCH = 1024
SHAPES: dict[str, dict[str, Any]] = {
    "small": dict(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=8192,
    ),
    "small-llama-3-vocabulary": dict(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=128256, tie_word_embeddings=True,
    ),
    "llama-3.2-1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, tie_word_embeddings=True,
    ),
    "llama-3.1-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256,
    ),
}  # fmt: skip


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

    def summary(self, sft_seconds: float, batch_size: int) -> dict[str, Any]:
        seconds = statistics.median(self.seconds)
        split = {part: statistics.median(values) for part, values in self.parts.items() if values}
        if split:
            split["branches"] -= split.get("anchor", 0)  # which is done within
            split["backward and the rest"] = seconds - sum(split.values())
        return {
            "arm": self.name,
            "median_seconds": seconds,
            "ratio_to_sft": seconds / sft_seconds,
            "examples_per_second": batch_size / seconds,
            "peak_bytes": self.peak_bytes,
            "predicted_bytes": None if self.predicted is None else self.predicted.summary(),
            "split_seconds": split,
        }


# ---- Model and batch ----


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, for random models."""
    vocabulary = {token: i for i, token in enumerate(["<|pad|>", "<|eos|>", *pre_tokenizers.ByteLevel.alphabet()])}
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
    if looks_like_a_path(name) and not Path(name).is_dir():
        raise ValueError(f"The model folder {name} does not exist. Name a folder, or a model's id on the Hub.")
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
    """Run two steps of each arm, the second to measure memory, then `steps` timed steps in turn."""
    for arm in arms:
        arm.step()
        with peak_of(arm):
            arm.step()
        for values in arm.parts.values():
            values.clear()
    for _ in tqdm(range(steps), desc="timing", unit="round"):
        for arm in arms:
            timed(arm.step, arm.seconds)()


def check_options(options: BenchArguments) -> None:
    """Raise ValueError for options that cannot work, or not together."""
    check_is_no_adapter(options.model_name_or_path or "")
    if options.model_name_or_path is None and options.shape not in SHAPES:
        raise ValueError(f"shape={options.shape} is unknown. Choose one of {', '.join(SHAPES)}.")
    if options.predict:
        if not set(options.arms) <= set(ARMS) or all(ARMS[name] is None for name in options.arms):
            raise ValueError(f"arms={options.arms} cannot be predicted. Choose of {', '.join(OURS)}.")
    elif "sft" not in options.arms or not set(options.arms) <= set(ARMS):
        raise ValueError(f"arms={options.arms} cannot be compared. Choose sft and others of {', '.join(ARMS)}.")
    check_counts(options, prompt_length=1, target_length=1, max_warmup_length=1, num_warmups=1, batch_size=1, steps=1)
    if options.card_memory is not None and not 0 < options.card_memory < float("inf"):
        raise ValueError(f"card_memory={options.card_memory:g} cannot work. Set it to the card's GB, as in 24.")
    if options.card_memory is not None and not options.predict:
        raise ValueError("card_memory is for predictions. Add --predict true, or leave it out.")
    if options.output_file is not None and not Path(options.output_file).parent.is_dir():
        raise ValueError(f"The folder of output_file={options.output_file} does not exist. Create it first.")


# ---- Predicting ----


def step_of(options: BenchArguments, arm: str, batch_size: int) -> Step | None:
    """What an arm does with that many examples; None for an arm that is not ours."""
    changes = ARMS[arm]
    if changes is None:
        return None
    return Step(
        batch_size=batch_size,
        num_warmups=options.num_warmups,
        prompt_length=options.prompt_length,
        max_warmup_length=options.max_warmup_length,
        target_length=options.target_length,
        separator_length=len(SEPARATOR),
        dtype=getattr(torch, options.dtype),
        load_in_4bit=options.load_in_4bit,
        gradient_checkpointing=options.gradient_checkpointing,
        **{name: value for name, value in changes.items() if name != "prefix_sharing"},
        shares=changes.get("prefix_sharing") != "never",
    )


def predict(options: BenchArguments, arm: str, batch_size: int) -> PredictedMemory | None:
    """Bytes of an arm's step; None for an arm that is not ours."""
    step = step_of(options, arm, batch_size)
    return None if step is None else predicted_memory(read_config(options), step)


def largest_fitting(options: BenchArguments, arm: str) -> tuple[int, PredictedMemory]:
    """The largest batch, a power of two, that fits into the card with `MARGIN` left free, and what it takes.

    Where not even a batch of one fits, the size is 0, and the memory is that of one.
    """
    room = options.card_memory * GB * (1 - MARGIN)
    size, memory = 1, predict(options, arm, 1)
    if memory.total > room:
        return 0, memory
    while size < LARGEST_BATCH:
        larger = predict(options, arm, 2 * size)
        if larger.total > room:
            break
        size, memory = 2 * size, larger
    return size, memory


def run_prediction(options: BenchArguments) -> dict[str, Any]:
    """Print, for each arm of ours, the parts of its memory and a sentence, and write them as JSON.

    Without `card_memory` it is about `batch_size`, with it about the largest batch that fits.
    """
    check_options(options)
    arms = []
    for name in (name for name in options.arms if name in OURS):
        if options.card_memory is None:
            size, memory = options.batch_size, predict(options, name, options.batch_size)
        else:
            size, memory = largest_fitting(options, name)
        arms.append({"arm": name, "batch_size": size, "predicted_bytes": memory.summary()})
        arms[-1]["sentence"] = sentence(options, size, memory)
    result = {"settings": dataclasses.asdict(options), "arms": arms}
    console = log_console()
    console.print(prediction_table(result))
    for arm in arms:
        console.print(f"{arm['arm']}: {arm['sentence']}", soft_wrap=True, highlight=False)
    if options.card_memory is not None:
        console.print(f"{MARGIN:.0%} of the card are left free, for what CUDA and its allocator take themselves.")
    write_result(options, result)
    return result


def sentence(options: BenchArguments, batch_size: int, memory: PredictedMemory) -> str:
    """Such as "Llama-3.2-1B, NF4, 24 GB: fits with batch 4 at W 512; 16.1 GB"."""
    what = options.model_name_or_path or options.shape
    words = [Path(what).name, "NF4" if options.load_in_4bit else options.dtype]
    at, size = f"batch {batch_size or 1} at W {options.max_warmup_length}", f"{memory.total / GB:.1f} GB"
    if options.card_memory is None:
        return f"{', '.join(words)}: {at}; {size}"
    verdict = "fits with" if batch_size else "does not fit, even with"
    return f"{', '.join(words)}, {options.card_memory:g} GB: {verdict} {at}; {size}"


def prediction_table(result: dict[str, Any]) -> Table:
    settings = result["settings"]
    table = Table(
        title=f"Predicted memory of a step in GB: prompt {settings['prompt_length']}, target "
        f"{settings['target_length']}, K {settings['num_warmups']}, W {settings['max_warmup_length']}"
        + (", gradient checkpointing" if settings["gradient_checkpointing"] else "")
    )
    table.add_column("")
    for arm in result["arms"]:
        table.add_column(f"{arm['arm']}, batch {arm['batch_size'] or 1}", justify="right")
    columns = [dict(arm["predicted_bytes"]) for arm in result["arms"]]
    for column in columns:
        column |= {f"peak: {moment}": size for moment, size in column.pop("moments").items()}
        column["total"] = column.pop("total")  # the last row
    for part in dict.fromkeys(part for column in columns for part in column):
        sizes = [f"{column[part] / GB:.2f}" if part in column else "" for column in columns]
        table.add_row(part.replace("_", " "), *sizes, style="bold" if part == "total" else None)
    return table


# ---- Running ----


def run(argv: Sequence[str]) -> None:
    options = parse_one(BenchArguments, argv)
    (run_prediction if options.predict else run_bench)(options)


def run_bench(options: BenchArguments) -> dict[str, Any]:
    """Measure, print the table and, if `output_file` is given, write the results as JSON.

    Raises:
        ValueError: a shape or an arm is unknown, a count cannot work, or the folder of `output_file` does not exist.
    """
    check_options(options)
    with tempfile.TemporaryDirectory() as folder:
        arms = build_arms(options, folder)
        measure(arms, options.steps)
    for arm in arms:
        try:
            arm.predicted = predict(options, arm.name, options.batch_size)
        except ValueError as error:  # what was measured is not lost for it
            log_console().print(f"{arm.name}: {error}", soft_wrap=True, highlight=False)
    sft = statistics.median(next(arm for arm in arms if arm.name == "sft").seconds)
    result = {
        "settings": dataclasses.asdict(options),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arms": [arm.summary(sft, options.batch_size) for arm in arms],
    }
    log_console().print(bench_table(result))
    write_result(options, result)
    return result


def write_result(options: BenchArguments, result: dict[str, Any]) -> None:
    if options.output_file is not None:
        write_json(Path(options.output_file), result)
        print(f"Written to {options.output_file}")


def bench_table(result: dict[str, Any]) -> Table:
    settings = result["settings"]
    what = settings["model_name_or_path"] or settings["shape"]
    table = Table(
        title=f"One training step: {what} on {result['device']}, batch {settings['batch_size']}, prompt "
        f"{settings['prompt_length']}, target {settings['target_length']}, K {settings['num_warmups']}, "
        f"W {settings['max_warmup_length']}"
    )
    parts = list(dict.fromkeys(part for arm in result["arms"] for part in arm["split_seconds"]))
    for column in ("", "seconds", "to SFT", "examples/s", "peak MiB", "predicted", "to SFT", *parts):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    peaks = {arm["arm"]: arm["peak_bytes"] for arm in result["arms"]}
    for arm in result["arms"]:
        table.add_row(
            arm["arm"],
            f"{arm['median_seconds']:.3f}",
            f"{arm['ratio_to_sft']:.2f}",
            f"{arm['examples_per_second']:.2f}",
            f"{arm['peak_bytes'] / 2**20:.0f}",
            f"{arm['predicted_bytes']['total'] / 2**20:.0f}" if arm["predicted_bytes"] else "",
            f"{arm['peak_bytes'] / peaks['sft']:.2f}",
            *(f"{arm['split_seconds'][part]:.3f}" if part in arm["split_seconds"] else "" for part in parts),
        )
    return table
