"""What a training logs: TRL's metrics, those of the warmups, a table, and a warning when warmups bring nothing."""

from __future__ import annotations

import itertools
import logging
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from warmup_peft.method import diagnostics
from warmup_peft.method.branches import Tokens, Warmups, no_warmups, shuffled_warmups
from warmup_peft.method.objective import Credit, Scores
from warmup_peft.training.config import WarmupSFTConfig

logger = logging.getLogger(__name__)

Ratios = dict[str, tuple[Tensor, Tensor]]
SendTable = Callable[[str, list[dict[str, Any]], int], None]
PROMPT_TOKENS_SHOWN = 32
LOG_FILE_WIDTH = 120  # characters, where there is no terminal to ask
LOGS_TO_JUDGE = 5  # one log's gain, or share of truncated warmups, is too noisy to warn by
SAMPLES = "warmups/samples"  # of a log: rows of `last_rows`
MOST_SAMPLED_LOGS = 40


class Shown(NamedTuple):
    """Of a batch's first B prompts: their ends, and for each warmup (B * K) what it says and its numbers.

    Tensors, until somebody asks: a device need not wait for them at every step.
    """

    prompt: Tokens
    written: list[str]
    wanted: list[str]
    R: Tensor
    w: Tensor
    A: Tensor


class WarmupMonitor:
    """Metrics as ratios of sums, so that ranks and batches add up.

    Args:
        args: the training's settings.
        tokenizer: to read warmups and targets as words.
        send: sends a table to the trackers: its name, its rows and the step.
    """

    def __init__(self, args: WarmupSFTConfig, tokenizer: PreTrainedTokenizerBase, send: SendTable):
        self.args, self.tokenizer, self._send = args, tokenizer, send
        self._previous: tuple[list[int], Warmups] | None = None  # the batch before: its last prompt, its first warmups
        self._gains: deque[float] = deque(maxlen=LOGS_TO_JUDGE)
        self._truncated: deque[float] = deque(maxlen=LOGS_TO_JUDGE)
        self._last: Shown | None = None
        self._first_length: float | None = None
        self._warned: set[str] = set()  # about what

    def texts(self, tokens: Tokens) -> list[str]:
        """Of (..., W) tokens, in row-major order."""
        ids, mask = tokens.ids.flatten(0, -2).tolist(), tokens.mask.flatten(0, -2).tolist()
        rows = [[token for token, is_real in zip(*row) if is_real] for row in zip(ids, mask)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def shares_found(self, warmups: Warmups, target: Tokens) -> Tensor:
        """(B, K) share of the target's words that stand in each warmup."""
        written, wanted = self.texts(warmups.tokens()), self.texts(target)
        num_warmups = warmups.lengths.size(1)
        counts = [diagnostics.num_shared_words(wanted[i // num_warmups], text) for i, text in enumerate(written)]
        shares = [found / max(total, 1) for found, total in counts]
        return torch.tensor(shares, device=warmups.ids.device).view(-1, num_warmups)

    @torch.no_grad()
    def ratios(self, prompt: Tokens, warmups: Warmups, target: Tokens, scores: Scores, credit: Credit) -> Ratios:
        """Metrics of a batch; warmups that were left out (`warmup_dropout`) count in none of them."""
        is_kept = warmups.num_decisions > 0
        num_kept, num_tokens = is_kept.sum(), warmups.lengths.sum()
        written, wanted = self.texts(warmups.tokens()), self.texts(target)
        num_warmups = is_kept.size(1)
        pairs = [(text, wanted[i // num_warmups]) for i, text in enumerate(written) if is_kept.flatten()[i]]
        shared = [diagnostics.num_shared_words(*pair) for pair in pairs]
        size = torch.ones_like(num_kept)
        batch_size = size * len(is_kept)
        ratios = {
            "mean_length": (num_tokens, num_kept),
            "truncated": (warmups.truncated.sum(), num_kept),
            "distinct": (diagnostics.num_distinct(warmups).sum(), num_kept),
            "repeated": (diagnostics.num_repeated(warmups).sum(), num_tokens),
            "overlap": (size * sum(count for count, _ in shared), size * sum(count for _, count in shared)),
            "leak": (size * sum(diagnostics.contains(*pair) for pair in pairs), num_kept),
            "effective_sample_size": (
                diagnostics.effective_sample_size(scores.target_logp_BK).sum(),
                batch_size,
            ),
        }
        if scores.kl_BK is not None:
            ratios["kl"] = (scores.kl_BK.sum(), num_kept)
        self._remember(prompt, written, wanted, scores, credit)
        return trl_ratios(target, scores) | {f"warmups/{name}": ratio for name, ratio in ratios.items()}

    @torch.no_grad()
    def gains(self, prompt: Tokens, warmups: Warmups, scores: Scores, score: Callable[[Warmups], Tensor]) -> Ratios:
        """What the target's log-probability gains, in nats, over no warmup and over a shuffled one.

        Args:
            score: warmups (B, 1) -> R (B, 1).
        """
        prompts = [row[mask].tolist() for row, mask in zip(prompt.ids, prompt.mask)]
        lender, before = self._previous or (prompts[-1], None)
        lenders = [prompts[-1] if len(prompts) > 1 else lender, *prompts[:-1]]
        is_another = torch.tensor([own != other for own, other in zip(prompts, lenders)], device=prompt.ids.device)
        instead = {
            "none": (no_warmups(prompt), torch.ones_like(is_another)),
            "others": (shuffled_warmups(warmups.first_of_each(), before), is_another),
        }
        self._previous = (prompts[-1], warmups.first_of_each())
        ratios = {}
        for name, (others, counts_B) in instead.items():
            gain_BK = scores.target_logp_BK - (scores.target_logp_BK if others is None else score(others))
            counts = (warmups.num_decisions > 0) & counts_B.unsqueeze(1) & gain_BK.isfinite()
            ratios[f"warmups/gain_over_{name}"] = (gain_BK.masked_fill(~counts, 0.0).sum(), counts.sum())
        return ratios

    def warn(self, metrics: Mapping[str, float], share_of_training: float) -> None:
        """Say once when warmups bring nothing any more, and once when most of them are truncated.

        Gains and the share of truncated warmups are judged by the mean of several logs.
        """
        metrics = dict(metrics)
        gain = mean_of_several(self._gains, metrics.pop("warmups/gain_over_none", None))
        if gain is not None:
            metrics["warmups/gain_over_none"] = gain
        length = metrics.get("warmups/mean_length")
        self._first_length = length if self._first_length is None else self._first_length
        wrong = diagnostics.what_is_wrong(metrics, share_of_training, first_length=self._first_length)
        self._say_once("collapse", wrong)
        truncated = mean_of_several(self._truncated, metrics.get("warmups/truncated"))
        if truncated is not None:
            are_thoughts = self.args.warmup_format == "thinking"
            many = diagnostics.many_truncated(truncated, self.args.max_warmup_length, are_thoughts=are_thoughts)
            self._say_once("truncated", many)

    def _say_once(self, about: str, sentence: str | None) -> None:
        if sentence is not None and about not in self._warned:
            self._warned.add(about)
            logger.warning(sentence)

    # ---- The table ----

    def _remember(self, prompt: Tokens, written: list[str], wanted: list[str], scores: Scores, credit: Credit) -> None:
        count = min(self.args.num_warmups_to_print, len(wanted))
        num_warmups = scores.target_logp_BK.size(1)
        tail = slice(-PROMPT_TOKENS_SHOWN, None)
        numbers = [x[:count].detach().flatten() for x in (scores.target_logp_BK, *credit)]
        self._last = Shown(
            Tokens(prompt.ids[:count, tail], prompt.mask[:count, tail]),
            written[: count * num_warmups],
            wanted[:count],
            *numbers,
        )

    def last_rows(self) -> list[dict[str, Any]]:
        """The last batch's first prompts (of each its end), a row for each warmup; none where no batch came since."""
        if self._last is None:
            return []
        shown, self._last = self._last, None
        prompts, num_warmups = self.texts(shown.prompt), len(shown.written) // len(shown.wanted)
        numbers = zip(*(x.tolist() for x in (shown.R, shown.w, shown.A)))
        return [
            {
                "prompt": prompts[i // num_warmups],
                "warmup": shown.written[i],
                **dict(zip("RwA", values)),
                "target": shown.wanted[i // num_warmups],
            }
            for i, values in enumerate(numbers)
        ]

    def show(self, rows: list[dict[str, Any]], step: int) -> None:
        """Print rows of `last_rows`, and send them to the trackers."""
        print_table(warmup_table(rows, step))
        self._send("warmups", rows, step)

    def show_answers(self, rows: list[dict[str, Any]], step: int) -> None:
        """Print the first rows of `eval_generate`, and send all of them to the trackers that take tables."""
        print_table(answer_table(rows[: self.args.num_warmups_to_print], step))
        self._send("answers", rows, step)


def mean_of_several(last: deque[float], value: float | None) -> float | None:
    """Add a log's value, if it has one; the mean of the last ones, None while they are too few."""
    if value is not None:
        last.append(value)
    return sum(last) / len(last) if len(last) == last.maxlen else None


def trl_ratios(target: Tokens, scores: Scores) -> Ratios:
    """TRL's `entropy` and `mean_token_accuracy` over target tokens, averaged over the warmups."""
    if scores.entropy_BK is None or scores.correct_BK is None:
        return {}
    count = target.mask.sum() * scores.target_logp_BK.size(1)
    return {"entropy": (scores.entropy_BK.sum(), count), "mean_token_accuracy": (scores.correct_BK.sum(), count)}


def keep_samples(history: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Put rows of `last_rows` into the last log, of which `TrainingPage` takes them.

    Of a long training some logs lose theirs, so that `trainer_state.json` stays small: every second one where there
    are more than `MOST_SAMPLED_LOGS`.
    """
    if not rows:
        return
    history[-1][SAMPLES] = rows
    sampled = [log for log in history if SAMPLES in log]
    if len(sampled) > MOST_SAMPLED_LOGS:
        for log in sampled[1:-1:2]:
            del log[SAMPLES]


def log_console() -> Console:
    """As wide as the terminal, or wide enough for a table in a log file."""
    return Console(force_jupyter=False, width=None if sys.stdout.isatty() else LOG_FILE_WIDTH)


def print_table(table: Table) -> None:
    console = log_console()
    with console.capture() as captured:
        console.print(table)
    tqdm.write(captured.get().rstrip())  # above the progress bar, if there is one


def answer_table(rows: list[dict[str, Any]], step: int) -> Table:
    """What was written to the first rows of the eval dataset; the row's score is that of the first metric."""
    table = Table(title=f"Answers at step {step}", show_lines=True)
    names = {"prompt": "end of the prompt", "warmup": "warmup", "answer": "answer", "reference": "right answer"}
    for title in (*names.values(), "score"):
        table.add_column(title, justify="right" if title == "score" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(on_one_line(row[name]) for name in names), f"{row['score']:.2f}")
    return table


def warmup_table(rows: list[dict[str, Any]], step: int) -> Table:
    """R in nats, weight and advantage of each warmup; those of a prompt that coincide take one line."""
    table = Table(title=f"Warmups at step {step}")
    for name in ("end of the prompt", "warmup", "times", "R", "w", "A", "target"):
        table.add_column(name, justify="right" if name in ("times", "R", "w", "A") else "left", overflow="fold")
    for (prompt, target), group in itertools.groupby(rows, key=lambda row: (row["prompt"], row["target"])):
        table.add_section()
        lines = Counter(
            (on_one_line(row["warmup"]), f"{row['R']:.2f}", f"{row['w']:.2f}", f"{row['A']:+.2f}") for row in group
        )
        for number, ((warmup, *numbers), times) in enumerate(lines.items()):
            first = (on_one_line(prompt), on_one_line(target)) if number == 0 else ("", "")
            table.add_row(first[0], warmup, str(times), *numbers, first[1])
    return table


def on_one_line(text: str) -> str:
    return escape(" ".join(text.split()))
