"""What a trainer writes: an adapter's folder that holds all that decoding and merging need, and whole checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer
from trl.trainer.utils import get_config_model_id

from warmup_peft.export.custom_generate import export_decoding
from warmup_peft.export.model_card import write_model_card
from warmup_peft.files import replacing_files
from warmup_peft.inference.folder import CARD_NAME, TRAINER_STATE_NAME, TrainingRecord, WarmupConfig
from warmup_peft.inference.loading import put_adapter_first
from warmup_peft.method.model import is_sharded, without_peft_wrapper
from warmup_peft.settings.options import WarmupOptions

RECORDED_PACKAGES = (
    "warmup_peft", "trl", "transformers", "peft", "torch", "accelerate", "datasets", "tokenizers", "bitsandbytes"
)  # fmt: skip


def training_record(trainer: SFTTrainer) -> TrainingRecord:
    """How an adapter was trained, for merging, the model card and people."""
    args, base = trainer.args, without_peft_wrapper(trainer.accelerator.unwrap_model(trainer.model))
    quantization = getattr(base.config, "quantization_config", None)
    lora = next(iter(getattr(trainer.model, "peft_config", {}).values()), None)
    names = [option.name for option in dataclasses.fields(WarmupOptions) if hasattr(args, option.name)]
    return TrainingRecord(
        base_model=get_config_model_id(base.config),
        base_revision=getattr(trainer, "base_revision", None),
        dtype=str(base.dtype).removeprefix("torch."),
        num_embeddings=base.get_input_embeddings().weight.size(0),
        quantization_config=quantization.to_dict() if hasattr(quantization, "to_dict") else quantization,
        settings={
            **{name: getattr(args, name) for name in names},
            "learning_rate": args.learning_rate,
            "steps": trainer.state.global_step,
            "batch_size": trainer._train_batch_size  # what auto_find_batch_size has come to
            * args.gradient_accumulation_steps
            * trainer.accelerator.num_processes,
            "lora_r": getattr(lora, "r", None),
            "seed": args.seed,
        },
        data=getattr(trainer, "data_record", {}),
        versions=recorded_versions(),
    )


@functools.cache  # reading what is installed takes longer than saving a small adapter
def recorded_versions() -> dict[str, str]:
    """The exact versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def source_state(checkpoint: str | Path, rank: int) -> Path:
    return Path(checkpoint, f"warmup_source_{rank}.pt")


@contextmanager
def adapters_load_as_saved(model: nn.Module) -> Iterator[None]:
    """Let `load_adapter`, as transformers calls it, keep a 16-bit adapter; peft's default makes it float32."""
    if not isinstance(model, PeftModel):
        yield
        return
    model.load_adapter = functools.partial(model.load_adapter, autocast_adapter_dtype=False)
    try:
        yield
    finally:
        del model.load_adapter


class SavesWholeFolders:
    """Saving and loading of `WarmupSFTTrainer`. Stands before `SFTTrainer` among its bases.

    A checkpoint's state, which says how far the run is, is written last: whoever finds it finds a whole checkpoint.
    """

    @property
    def warmup_config(self) -> WarmupConfig:
        """What decoding needs beside the adapter."""
        around = self.warmup_format
        return WarmupConfig(
            around.separator,
            list(around.separator_ids),
            self.args.max_warmup_length,
            list(self.sampling.end_token_ids),
            around.opening,
            list(around.opening_ids),
            writes_separator=self.args.learn_separator,
            uses_chat_template=around.is_chat,
            chat_template_kwargs=dict(around.chat_template_kwargs),
        )

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """TRL's card would not say how to decode; `_save` writes ours."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `SFTTrainer`; of sharded weights an adapter alone is gathered."""
        if not is_sharded(self.model) or not isinstance(self.model, PeftModel):
            super().save_model(output_dir, _internal_call)
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        self._save(output_dir, get_model_state_dict(self.model, options=options))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Where something cannot be written, the folder's files stay as they were."""
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:  # a rank that writes nothing, and must not be in the way of the one that does
            super()._save(str(folder), state_dict)
            return
        with replacing_files(folder) as staging:
            super()._save(str(staging), state_dict)
            put_adapter_first(staging, self.model)
            self.warmup_config.save(staging)
            export_decoding(staging)
            training_record(self).save(staging)
            (staging / CARD_NAME).unlink(missing_ok=True)  # peft's template
        write_model_card(folder)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)  # of one that is written again
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """The last that other ranks write. Each has its own random numbers, and its own state of the source."""
        super()._save_rng_state(output_dir)
        if (state := self.source.state) is not None:
            torch.save(state, source_state(output_dir, self.args.process_index))
        self.accelerator.wait_for_everyone()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        path = checkpoint and source_state(checkpoint, self.args.process_index)
        if path and path.is_file():
            self.source.state = tuple(x.to(self.args.device) for x in torch.load(path, map_location="cpu"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with adapters_load_as_saved(self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with adapters_load_as_saved(self.model):
            super()._load_best_model()
