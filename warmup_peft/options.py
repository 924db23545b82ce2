"""The method's own options, apart from TRL's. Plain dataclass: importing it loads neither torch nor trl."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Literal, get_args, get_type_hints


@dataclass
class WarmupOptions:
    """What a warmup is and how warmups are drawn. Lengths are in tokens."""

    num_warmups: int = field(
        default=4, metadata={"help": "K: how many warmups are drawn for each example (1 or more)."}
    )
    max_warmup_length: int = field(default=8, metadata={"help": "W: tokens of a warmup at most (1 or more)."})
    warmup_separator: str = field(
        default=" || ", metadata={"help": "Text between warmup and target. Its token ids are inserted, never drawn."}
    )
    warmup_sampling: Literal["multinomial", "beam"] = field(
        default="multinomial",
        metadata={
            "help": "How warmups are drawn: 'multinomial' draws independent ones, 'beam' is the paper's beam search "
            "with sampling, whose draws are not independent."
        },
    )
    warmup_num_beams: int | None = field(
        default=None,
        metadata={"help": "Beams of warmup_sampling 'beam', num_warmups or more; num_warmups where it is not set."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits when a warmup is drawn."})
    top_k: int = field(default=0, metadata={"help": "Draw from the top_k most likely tokens; 0 draws from all."})
    top_p: float = field(
        default=1.0,
        metadata={"help": "Draw from the most likely tokens that hold this probability; 1 draws from all."},
    )
    min_p: float | None = field(
        default=None, metadata={"help": "Draw from tokens of at least min_p times the probability of the likeliest."}
    )
    objective: Literal["warmup", "jensen", "log_mean_exp", "latro", "verifree", "posterior"] = field(
        default="warmup",
        metadata={
            "help": "What is maximised, see the table in warmup_peft/method/objective.py: 'warmup' is Warmup "
            "Generations; the others also train what is written as a warmup."
        },
    )
    warmup_anchor: float = field(
        default=0.0,
        metadata={
            "help": "beta: weight of the divergence KL(model || model with its adapter off) at the warmup's tokens, "
            "which keeps warmups from collapsing into a draft of the answer. 0 is the paper; 0.3 is a good start."
        },
    )

    prefix_sharing: Literal["auto", "true", "false"] = field(
        default="auto",
        metadata={
            "help": "Encode each prompt once for all its warmups: 'auto' where that is exact, else each prompt once a "
            "warmup; 'true' refuses instead; 'false' never shares."
        },
    )

    prefix_sharing_check: bool = field(
        default=False,
        metadata={"help": "Score the first batch both ways, and stop the run where they differ beyond rounding."},
    )

    def check_warmup_options(self) -> None:
        """Raise ValueError, naming the field and the mend, for values that cannot work."""
        self.prefix_sharing = str(self.prefix_sharing).lower()  # YAML reads true and false as booleans
        _require(
            self.prefix_sharing in ("auto", "true", "false"),
            "prefix_sharing",
            self.prefix_sharing,
            "Choose auto, true or false.",
        )
        for name in ("num_warmups", "max_warmup_length", "top_k", "warmup_num_beams"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) or (value is None and name == "warmup_num_beams"),
                name,
                value,
                "Set it to a whole number.",
            )
        for name in ("temperature", "top_p", "min_p", "warmup_anchor"):
            value = getattr(self, name)
            _require(
                isinstance(value, int | float) or (value is None and name == "min_p"),
                name,
                value,
                "Set it to a number.",
            )
        _require(self.num_warmups >= 1, "num_warmups", self.num_warmups, "Set it to 1 or more; the paper uses 4.")
        _require(
            self.max_warmup_length >= 1,
            "max_warmup_length",
            self.max_warmup_length,
            "Set it to 1 or more tokens; for no warmup at all use SFTTrainer.",
        )
        _require(self.warmup_separator != "", "warmup_separator", "''", "Give it some text, such as ' || '.")
        _require(
            self.warmup_sampling in ("multinomial", "beam"),
            "warmup_sampling",
            self.warmup_sampling,
            "Choose 'multinomial' or 'beam'.",
        )
        _require(0 < self.temperature < math.inf, "temperature", self.temperature, "Set it above 0.")
        _require(self.top_k >= 0, "top_k", self.top_k, "Set it to 0 (off) or more.")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "Set it above 0 and at most 1 (off).")
        _require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "Leave it out or set 0 to 1.")
        _require(0 <= self.warmup_anchor < math.inf, "warmup_anchor", self.warmup_anchor, "Set it to 0 (off) or more.")
        self._check_objective()
        if self.warmup_sampling == "multinomial":
            _require(
                self.warmup_num_beams is None,
                "warmup_num_beams",
                self.warmup_num_beams,
                "It belongs to warmup_sampling 'beam'; leave it out or set warmup_sampling to 'beam'.",
            )
        else:
            _require(
                self.num_beams >= max(2, self.num_warmups),
                "warmup_num_beams",
                self.num_beams,
                f"Beam search returns num_warmups={self.num_warmups} of its beams: set it to "
                f"{max(2, self.num_warmups)} or more.",
            )

    def _check_objective(self) -> None:
        close = difflib.get_close_matches(str(self.objective), OBJECTIVE_NAMES, n=1)
        _require(
            self.objective in OBJECTIVE_NAMES,
            "objective",
            self.objective,
            f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(OBJECTIVE_NAMES)}.",
        )
        if self.objective == "warmup":
            return
        _require(
            self.warmup_sampling == "multinomial",
            "warmup_sampling",
            self.warmup_sampling,
            f"objective {self.objective} needs independent draws, which beams are not. Set it to 'multinomial'.",
        )
        _require(
            self.num_warmups >= 2 or self.objective == "posterior",
            "num_warmups",
            self.num_warmups,
            f"objective {self.objective} compares warmups with each other. Set it to 2 or more.",
        )

    @property
    def num_beams(self) -> int:
        """Beams that are searched: 1 for independent draws."""
        if self.warmup_sampling == "multinomial":
            return 1
        return self.num_warmups if self.warmup_num_beams is None else self.warmup_num_beams


OBJECTIVE_NAMES = get_args(get_type_hints(WarmupOptions)["objective"])


def _require(holds: bool, name: str, value: object, mend: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value} cannot work. {mend}")
