"""SFT on the recipe's data with TRL's own `SFTTrainer`, in the ways in which people do it.

    python recipes/thinking/sft.py --output_dir runs/sft
    python recipes/thinking/sft.py --output_dir runs/sft-masked --mask_empty_thought
    python recipes/thinking/sft.py --output_dir runs/sft-own --own_thoughts

Without an option the chat template puts an empty thought into every target, as Qwen3's does. With
`--mask_empty_thought` the empty thought stands in the prompt, so that nothing of it is trained. With `--own_thoughts`
each target has a thought that the base wrote before, greedily: rows that no one is given and that have to be made.
The rest is as in `tiny.yaml`: the base in NF4, LoRA, 160 steps of 16.
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset, disable_progress_bars, load_dataset
from measure import Text, write
from peft import LoraConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer
from world import BASE, HERE, Chat, small_base

from warmup_peft.inference.folder import WarmupConfig

LORA = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def with_own_thoughts(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """A thought of the base's in every completion."""
    chats = [Chat(row["prompt"][0]["content"], (), "") for row in rows]
    texts = write(small_base.load_base(BASE, four_bit=True), tokenizer, chats)
    return Dataset.from_list([{**row, "completion": completion(row, text)} for row, text in zip(rows, texts)])


def completion(row: dict, text: Text) -> list[dict]:
    return [{**row["completion"][0], "reasoning_content": text.thought}]


def training_rows(args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    rows = load_dataset("json", data_files=str(HERE / "data" / "train.jsonl"), split="train")
    rows = rows.shuffle(seed=args.seed).select(range(args.max_steps * args.batch_size))
    if args.own_thoughts:
        return with_own_thoughts(rows, tokenizer)
    if args.mask_empty_thought:
        return rows.add_column("chat_template_kwargs", [{"enable_thinking": False}] * len(rows))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="SFT on the recipe's data.")
    parser.add_argument("--output_dir", required=True)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--mask_empty_thought", action="store_true", help="put the empty thought into the prompt")
    how.add_argument("--own_thoughts", action="store_true", help="train on thoughts that the base wrote")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--max_steps", type=int, default=160)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = SFTConfig(
        output_dir=args.output_dir,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=args.seed,
    )
    rows = training_rows(args, tokenizer)
    trainer = SFTTrainer(
        small_base.load_base(BASE, four_bit=True),
        config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LORA,
    )
    trainer.train()
    trainer.save_model()
    WarmupConfig("", [], 0, uses_chat_template=True).save(args.output_dir)  # for `warmup-peft evaluate --sft`


if __name__ == "__main__":
    main()
