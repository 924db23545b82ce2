"""Fewer warmups where the first ones agree: what would be saved? Measures it, and is no part of the package.

    python recipes/logiqa/relay/two_rounds.py --rule never --num_warmups 4 --seed 0

Half of the K warmups of a prompt are sampled first, and the others only where those do not agree. (All K are sampled
here, and those that would not have been are neither counted nor used.) Prints the tokens that were sampled, when 128
validation puzzles were first at 0.99, the accuracy on 256 test puzzles, and the right chains among the first halves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from warmup_peft.comparison.run_arm import AtSteps
from warmup_peft.evaluation.prediction import score_predictions
from warmup_peft.evaluation.predictor import Predictor
from warmup_peft.evaluation.rows import rows_to_compare_on
from warmup_peft.inference.loading import end_with_the_tokenizer
from warmup_peft.method.branches import Warmups, split_examples
from warmup_peft.method.model import random_numbers_from
from warmup_peft.method.scoring import target_logps
from warmup_peft.settings.recipe import Recipe
from warmup_peft.training.build import trainer_arguments
from warmup_peft.training.config import TRAINING_KINDS, TrainingSettings
from warmup_peft.training.trainer import WarmupSFTTrainer

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from task import asked_chain  # noqa: E402

TRAINING = {"max_steps": 96, "hindsight_steps": 50, "per_device_train_batch_size": 16, "learning_rate": 2e-3,
            "max_train_samples": 3072}  # fmt: skip
WITHIN = 0.1  # nats, of rule R
REACHED = 0.99
POINTS = 12  # of the curve
CURVE_ROWS, TEST_ROWS = 128, 256


class TwoRounds(WarmupSFTTrainer):
    """Where the first half of the warmups agree, they stand in for the others: the mean is over them alone."""

    rule = "never"
    num_tokens, num_right, num_seen = 0, 0, 0

    def compute_loss(self, model, inputs, **keywords):
        _, self._target = split_examples(inputs["input_ids"], inputs["labels"], inputs["attention_mask"])
        return super().compute_loss(model, inputs, **keywords)

    def sample_warmups(self, model, encoded) -> Warmups:
        warmups = super().sample_warmups(model, encoded)
        if not self.model.training:
            return warmups
        half = warmups.ids.size(1) // 2
        first = Warmups(*(x[:, :half] for x in warmups[:3]))
        stops_B = self._agree(encoded, first)
        is_first = torch.arange(warmups.ids.size(1)) < half
        self.num_tokens += int((warmups.num_decisions * (is_first | ~stops_B[:, None])).sum())
        self._count_right(encoded, first)
        twice = Warmups(*(torch.cat([x, x], dim=1) for x in first[:3]))
        stops = (stops_B.view(-1, 1, 1), stops_B[:, None], stops_B[:, None])
        return Warmups(*(torch.where(*each) for each in zip(stops, twice[:3], warmups[:3])))

    def _agree(self, encoded, first: Warmups) -> Tensor:
        """(B,) whether a second round is left out."""
        if self.rule == "equal":
            return first.same_samples().flatten(1).all(1)
        if self.rule == "R":
            logp_BK = target_logps(encoded, first, self._target, self.sampling.separator_ids)
            return logp_BK.amax(1) - logp_BK.amin(1) < WITHIN
        return torch.zeros(len(first.ids), dtype=torch.bool)

    def _count_right(self, encoded, first: Warmups) -> None:
        decode = self.processing_class.decode
        for prompt, mask, warmups in zip(*encoded.prompt, zip(first.ids, first.lengths)):
            chain = asked_chain(decode(prompt[mask]))
            texts = [decode(ids[:length]) for ids, length in zip(*warmups)]
            self.num_right += sum(text.replace(".", " ").split() == chain for text in texts)
            self.num_seen += len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rule", choices=["never", "equal", "R"], default="never", help="when a second round is left out"
    )
    parser.add_argument("--num_warmups", default="4")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--output_dir", default="runs/two_rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    argv = ["--config", str(HERE.parent / "relay.yaml"), "--output_dir", options.output_dir, "--num_warmups",
            options.num_warmups, "--warmup_pool_size", options.num_warmups, "--seed", options.seed,
            "--warmup_gain_steps", "0"]  # fmt: skip
    argv += [part for name, value in TRAINING.items() for part in (f"--{name}", str(value))]
    settings = TrainingSettings.of(Recipe.read(argv, *TRAINING_KINDS))
    trainer = TwoRounds(**trainer_arguments(settings))
    trainer.rule = options.rule
    end_with_the_tokenizer(trainer.model, trainer.processing_class)
    metrics = settings.training.eval_metrics
    curve_rows, test_rows = rows_to_compare_on(settings.script, settings.run, None, TEST_ROWS, metrics)
    predictor = Predictor(trainer.model, trainer.processing_class, trainer.warmup_config, CURVE_ROWS, None)

    def accuracy(rows) -> float:
        with random_numbers_from(0, trainer.args.device):
            predictions = predictor.answer(rows, max_new_tokens=0)
        return score_predictions(["accuracy"], rows, predictions).totals["accuracy"]

    reached = []

    def point(step: int) -> None:
        if step > trainer.args.hindsight_steps and not reached and accuracy(curve_rows[:CURVE_ROWS]) >= REACHED:
            reached.append(f"{trainer.num_tokens:,} (step {step})")
        print(f"step {step}: right {trainer.num_right / max(trainer.num_seen, 1):.2f}", flush=True)
        trainer.num_right = trainer.num_seen = 0

    trainer.add_callback(AtSteps(POINTS, point))
    trainer.train()
    print(f"tokens {trainer.num_tokens:,}; until {REACHED}: {reached[0] if reached else 'never'}; "
          f"accuracy {accuracy(test_rows):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
