"""`warmup-peft doctor`: what is installed, what is missing for which feature, and whether a base fits the card.

Nothing heavy is imported at the top, so that a package that is missing or broken is a line of the report.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from warmup_peft import __version__
from warmup_peft.cli.main import COMPARE_PACKAGES
from warmup_peft.files import first_line
from warmup_peft.settings.arguments import BenchArguments, DoctorArguments
from warmup_peft.settings.parsing import parse_one

REQUIRED = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "tokenizers", "safetensors",
    "numpy", "pandas", "psutil", "pyarrow", "yaml", "rich", "tqdm", "filelock", "requests", "urllib3",
)  # fmt: skip
FEATURES = {  # what a package is for, the packages, and what pip installs
    "4-bit bases (load_in_4bit), as in most recipes": (("bitsandbytes",), "'warmup_peft[qlora]'"),
    "compare, inspect, and the metrics of text": (COMPARE_PACKAGES, "'warmup_peft[compare]'"),
    "evaluate --harness": (("lm_eval",), "'warmup_peft[eval]'"),
    "transformers serve": (("fastapi", "uvicorn", "openai", "pydantic"), "'warmup_peft[serve]'"),
    "use_vllm": (("vllm",), "'trl[vllm]'"),
    "the metric bertscore": (("bert_score",), "bert-score"),
    "the metric comet": (("comet",), "unbabel-comet"),
}  # fmt: skip
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "math_verify": "math-verify", "comet": "unbabel-comet",
                 "rouge_score": "rouge-score", "bert_score": "bert-score", "lm_eval": "lm-eval"}  # fmt: skip


def run(argv: Sequence[str]) -> None:
    """Print the report.

    Raises:
        ImportError: something that is required is missing or broken.
        ValueError: bad options, or a base whose memory cannot be predicted.
    """
    options = parse_one(DoctorArguments, argv) if argv else DoctorArguments()  # the parser needs trl
    print(f"warmup_peft {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
    broken = print_required()
    print_devices()
    print_features()
    if broken:
        names = " ".join(DISTRIBUTIONS.get(name, name) for name in broken)
        raise ImportError(f"Required and missing or broken: {names}. Run: pip install --force-reinstall {names}")
    if options.model_name_or_path is not None or options.shape is not None:
        predict(options)


def state_of(name: str) -> tuple[bool, str]:
    """Whether a package can be imported; and its version, or why not."""
    if importlib.util.find_spec(name) is None:
        return False, "missing"
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a broken package does
        return False, f"broken ({type(error).__name__}: {first_line(error)})"
    try:
        return True, version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        return True, "of no known version"


def print_required() -> list[str]:
    """Print the versions of what is required, and return the names of what cannot be imported."""
    states = {name: state_of(name) for name in REQUIRED}
    print("Packages:")
    for name, (_, text) in states.items():
        print(f"  {name:<16} {text}")
    return [name for name, (works, _) in states.items() if not works]


def print_devices() -> None:
    print("\nDevices:")
    for line in device_lines(sys.modules.get("torch")):
        print(f"  {line}")


def device_lines(torch: Any) -> list[str]:
    """A line for each device that torch sees; the CPU last."""
    if torch is None:
        return ["unknown, without torch"]
    lines = []
    try:
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            kinds = "takes bfloat16" if torch.cuda.is_bf16_supported() else "takes no bfloat16, so set bf16: false"
            lines.append(f"cuda:{index}  {card.name}, {card.total_memory / 2**30:.1f} GB, {kinds}")
        if torch.backends.mps.is_available():
            lines.append("mps  Apple's GPU, which takes no 4-bit base")
    except Exception as error:  # a driver that does not fit
        lines.append(f"no GPU can be used ({type(error).__name__}: {first_line(error)})")
    return [*lines, f"cpu  {torch.get_num_threads()} threads; training on it is for small models"]


def print_features() -> None:
    """Print for which features something is missing or broken, and how to install it."""
    print("\nFeatures:")
    for feature, (packages, install) in FEATURES.items():
        bad = {name: text for name, (works, text) in zip(packages, map(state_of, packages)) if not works}
        if not bad:
            print(f"  yes  {feature}")
        else:
            why = ", ".join(f"{name} {text}" for name, text in bad.items())
            print(f"  no   {feature}: {why}. Run: pip install {install}")


def predict(options: DoctorArguments) -> None:
    """Print what memory a training step takes, and the largest batch that fits the card, if there is one."""
    from warmup_peft.cli.bench import run_prediction

    memory = options.card_memory if options.card_memory is not None else memory_of_the_first_gpu()
    print("\nWill it fit?" if memory is not None else "\nNo card is known (--card_memory 24), so for a batch of one:")
    run_prediction(
        BenchArguments(
            model_name_or_path=options.model_name_or_path,
            shape=options.shape or "small",
            load_in_4bit=options.load_in_4bit,
            dtype=options.dtype,
            prompt_length=options.prompt_length,
            max_warmup_length=options.max_warmup_length,
            gradient_checkpointing=options.gradient_checkpointing,
            batch_size=1,
            arms=["shared"],
            predict=True,
            card_memory=memory,
        )
    )


def memory_of_the_first_gpu() -> float | None:
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
