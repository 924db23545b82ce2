"""Plain SFT with a recipe's own settings: TRL's `SFTTrainer`, scored answering directly. For comparison.

python recipes/logiqa/sft_baseline.py --config recipes/logiqa/tiny.yaml --output_dir runs/sft
"""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

from datasets import disable_progress_bars
from tqdm import tqdm
from transformers import ProgressCallback
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

from warmup_peft.arguments import RunOptions
from warmup_peft.callbacks import ShortProgress
from warmup_peft.cli import parse_training, quieten
from warmup_peft.config import WarmupSFTConfig
from warmup_peft.data import load_split
from warmup_peft.evaluation.harness import answer_questions
from warmup_peft.evaluation.tasks import TASKS
from warmup_peft.inference.loading import end_with_the_tokenizer, load_tokenizer
from warmup_peft.quantization import keep_4bit_weights_in_place
from warmup_peft.run import score, training_rows


def build_sft_trainer(script, options: RunOptions, warmup_args: WarmupSFTConfig, model: ModelConfig) -> SFTTrainer:
    """TRL's trainer with what a recipe says, but for the warmups."""
    fields = {field.name for field in dataclasses.fields(SFTConfig) if field.init}
    args = SFTConfig(**{name: getattr(warmup_args, name) for name in fields})
    args.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
    trainer = SFTTrainer(
        model.model_name_or_path,
        args,
        train_dataset=training_rows(script, options, script.dataset_train_split, options.max_train_samples),
        processing_class=load_tokenizer(model.model_name_or_path),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    keep_4bit_weights_in_place(trainer.model)
    return trainer


def main() -> None:
    quieten()
    disable_progress_bars()
    script, options, warmup_args, model = parse_training(sys.argv[1:])
    trainer = build_sft_trainer(script, options, warmup_args, model)
    tokenizer, args = trainer.processing_class, trainer.args
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ShortProgress())
    trainer.train()

    end_with_the_tokenizer(trainer.model, tokenizer)
    rows = load_split(script.dataset_name, script.dataset_test_split, script.dataset_config, options.test_split_size)
    questions = TASKS[options.task](rows, options.answer_format)
    progress = partial(tqdm, desc="scoring", unit="batch")
    predictions = answer_questions(trainer.model, tokenizer, questions, None, progress=progress)
    metrics = {"sft": score(questions, predictions), "steps": trainer.state.global_step, "seed": args.seed}
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
