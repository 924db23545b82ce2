"""The method's own options, apart from TRL's. Plain dataclass: importing it loads neither torch nor trl."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Literal

from warmup_peft.settings.objectives import OBJECTIVE_NEEDS, objectives_with

Objective = Literal[tuple(OBJECTIVE_NEEDS)]


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
    objective: Objective = field(
        default="warmup",
        metadata={
            "help": "What is maximised, see the table in warmup_peft/method/objective.py: 'warmup' is Warmup "
            "Generations; the others also train what is written as a warmup."
        },
    )
    normalize_advantages: bool = field(
        default=False,
        metadata={"help": "Centre each example's advantages and divide them by their spread over its K warmups."},
    )
    advantage_clip: float | None = field(
        default=None, metadata={"help": "Keep every advantage within plus and minus this."}
    )
    warmup_source: Literal["policy", "base", "shuffled", "empty"] = field(
        default="policy",
        metadata={
            "help": "Where the warmups of the training come from: 'policy', the model as it is now (the paper), or "
            "'base', the model with its adapter off, which samples them once, before training. Two controls show what "
            "warmups are worth: 'shuffled' gives each row the warmups of another row, 'empty' gives it none."
        },
    )
    warmup_anchor: float | None = field(
        default=None,
        metadata={
            "help": "beta: weight of the divergence between the model and the model with its adapter off at the "
            "warmup's tokens, which keeps warmups from collapsing. 0 is the paper. Not set it is 0.3, or 0 where a "
            "whole model is trained on its own draws and there is nothing to switch off. With warmup_source 'base' it "
            "is cross-entropy on the warmups."
        },
    )
    warmup_pool_size: int = field(
        default=16,
        metadata={"help": "M: draws for each prompt with warmup_source 'base'; every epoch takes K of them."},
    )
    warmup_pool: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the drawn warmups, to share them between runs; output_dir/warmup_pool where it is not "
            "set. What is there is used, what is missing is drawn."
        },
    )
    warmup_pool_batch_size: int = field(
        default=256, metadata={"help": "Warmups drawn at a time for the pool; lower it where memory runs out."}
    )
    warmup_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Share of the warmups that are left out (prompt, separator, target), so that the adapter also "
            "answers without one."
        },
    )
    warmup_gain_steps: int = field(
        default=10,
        metadata={
            "help": "Every so many steps, measure what the target gains over no warmup and over another example's; "
            "0 never."
        },
    )
    log_warmups: bool = field(
        default=False, metadata={"help": "Show a table of prompts, warmups and their scores at every log."}
    )
    num_warmups_to_print: int = field(default=2, metadata={"help": "Prompts in that table."})

    prefix_sharing: Literal["auto", "true", "false"] = field(
        default="auto",
        metadata={
            "help": "Encode each prompt once for all its warmups: 'auto' where the first batch shows it to be exact, "
            "else each prompt once a warmup; 'true' refuses instead; 'false' never shares."
        },
    )

    def check_warmup_options(self) -> None:
        """Raise ValueError, naming the field and the mend, for values that cannot work."""
        self.prefix_sharing = str(self.prefix_sharing).lower()  # YAML reads true and false as booleans
        self._require(
            self.prefix_sharing in ("auto", "true", "false"), "prefix_sharing", "Choose auto, true or false."
        )
        for name, (kind, word) in _KINDS.items():
            value = getattr(self, name)
            may_be_none = name in _OPTIONAL and value is None
            self._require(isinstance(value, kind) or may_be_none, name, f"Set it to a {word}.")
        self._check_ranges()
        self._check_objective()
        self._check_source()
        self._check_beams()

    def _require(self, holds: bool, name: str, mend: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ValueError(f"{name}={repr(value) if value == '' else value} cannot work. {mend}")

    def _check_ranges(self) -> None:
        require = self._require
        require(self.num_warmups >= 1, "num_warmups", "Set it to 1 or more; the paper uses 4.")
        require(
            self.max_warmup_length >= 1,
            "max_warmup_length",
            "Set it to 1 or more tokens; for no warmup at all use SFTTrainer.",
        )
        require(self.warmup_separator != "", "warmup_separator", "Give it some text, such as ' || '.")
        require(self.warmup_sampling in ("multinomial", "beam"), "warmup_sampling", "Choose 'multinomial' or 'beam'.")
        require(0 < self.temperature < math.inf, "temperature", "Set it above 0.")
        require(self.top_k >= 0, "top_k", "Set it to 0 (off) or more.")
        require(0 < self.top_p <= 1, "top_p", "Set it above 0 and at most 1 (off).")
        require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "Leave it out or set 0 to 1.")
        require(
            self.warmup_anchor is None or 0 <= self.warmup_anchor < math.inf,
            "warmup_anchor",
            "Set it to 0 (off) or more.",
        )
        require(
            self.advantage_clip is None or self.advantage_clip > 0,
            "advantage_clip",
            "Set it above 0, or leave it out.",
        )
        require(0 <= self.warmup_dropout < 1, "warmup_dropout", "Set it to 0 (off) up to 1.")
        require(self.warmup_gain_steps >= 0, "warmup_gain_steps", "Set it to 0 (never) or more.")
        require(self.num_warmups_to_print >= 1, "num_warmups_to_print", "Set it to 1 or more.")

    def _check_beams(self) -> None:
        if self.warmup_sampling == "multinomial":
            self._require(
                self.warmup_num_beams is None,
                "warmup_num_beams",
                "It belongs to warmup_sampling 'beam'; leave it out or set warmup_sampling to 'beam'.",
            )
            return
        least = max(2, self.num_warmups)
        if self.num_beams < least:
            raise ValueError(
                f"warmup_num_beams={self.num_beams} cannot work. Beam search returns num_warmups={self.num_warmups} "
                f"of its beams: set it to {least} or more."
            )

    def _check_objective(self) -> None:
        require, objective = self._require, self.objective
        close = difflib.get_close_matches(str(objective), OBJECTIVE_NAMES, n=1)
        require(
            objective in OBJECTIVE_NAMES,
            "objective",
            f"Did you mean {close[0]}?" if close else f"Choose one of {', '.join(OBJECTIVE_NAMES)}.",
        )
        equal_weights = objectives_with("equal_weights")
        require(
            self.warmup_dropout == 0 or objective in equal_weights,
            "warmup_dropout",
            f"objective {objective} would weigh left-out warmups against the others. Set it to 0, or objective to one "
            f"of {', '.join(equal_weights)}.",
        )
        needs = OBJECTIVE_NEEDS[objective]
        if not needs.warmup_logp:
            fix = f"objective {objective} has no advantages. Leave it out, or choose another objective."
            require(not self.normalize_advantages, "normalize_advantages", fix)
            require(self.advantage_clip is None, "advantage_clip", fix)
            return
        require(
            needs.has_centre or not self.normalize_advantages,
            "normalize_advantages",
            f"The advantages of {objective} are weights, which have no centre. Leave it out.",
        )
        require(
            self.num_warmups >= 2 or not self.normalize_advantages,
            "normalize_advantages",
            "One warmup has no spread. Set num_warmups to 2 or more.",
        )
        require(
            self.warmup_sampling == "multinomial",
            "warmup_sampling",
            f"objective {objective} needs independent samples, which beams are not. Set it to 'multinomial'.",
        )
        require(
            self.num_warmups >= 2 or not needs.other_warmups,
            "num_warmups",
            f"objective {objective} compares warmups with each other. Set it to 2 or more.",
        )

    def _check_source(self) -> None:
        require, source = self._require, self.warmup_source
        sources = ("policy", "base", "shuffled", "empty")
        require(source in sources, "warmup_source", f"Choose one of {', '.join(sources)}.")
        if source != "base":
            require(
                self.warmup_pool is None,
                "warmup_pool",
                "It belongs to warmup_source 'base'; leave it out or set warmup_source to 'base'.",
            )
        if source in ("shuffled", "empty"):
            require(
                self.objective == "warmup",
                "objective",
                f"It credits the row's own warmups, and warmup_source {source} takes them away. Set it to 'warmup'.",
            )
        if source == "empty":
            require(not self.warmup_anchor, "warmup_anchor", "An empty warmup has nothing to anchor. Set it to 0.")
        if source == "base":
            self._check_base_source()

    def _check_base_source(self) -> None:
        require, any_source = self._require, objectives_with("any_source")
        require(
            self.warmup_sampling == "multinomial",
            "warmup_sampling",
            "warmup_source base needs independent samples, which beams are not. Set it to 'multinomial'.",
        )
        require(
            self.objective in any_source,
            "objective",
            "It compares the model's own samples, and warmup_source base has the base model's. Choose "
            f"{' or '.join(any_source)}, or set warmup_source to 'policy'.",
        )
        truncates = {"top_k": self.top_k > 0, "top_p": self.top_p < 1, "min_p": bool(self.min_p)}
        needs_all_tokens = self.warmup_anchor != 0 or self.objective == "posterior"
        for name, is_on in truncates.items():
            require(
                not (is_on and needs_all_tokens),
                name,
                "The base's samples may fall outside of what the model truncates its own to, so they would have no "
                "likelihood. Leave it out with warmup_source 'base' and an anchor or objective posterior; temperature "
                "works.",
            )
        require(
            self.warmup_pool_size >= self.num_warmups,
            "warmup_pool_size",
            f"Each epoch takes num_warmups={self.num_warmups} of these samples: set it to that or more.",
        )
        require(self.warmup_pool_batch_size >= 1, "warmup_pool_batch_size", "Set it to 1 or more.")

    @property
    def num_beams(self) -> int:
        """Beams that are searched: 1 for independent draws."""
        if self.warmup_sampling == "multinomial":
            return 1
        return self.num_warmups if self.warmup_num_beams is None else self.warmup_num_beams


DEFAULT_ANCHOR = 0.3
_OPTIONAL = ("warmup_num_beams", "min_p", "advantage_clip", "warmup_anchor")
_WHOLE, _NUMBER = (int, "whole number"), (int | float, "number")
_KINDS = {
    "num_warmups": _WHOLE,
    "max_warmup_length": _WHOLE,
    "top_k": _WHOLE,
    "warmup_num_beams": _WHOLE,
    "warmup_pool_size": _WHOLE,
    "warmup_pool_batch_size": _WHOLE,
    "warmup_gain_steps": _WHOLE,
    "num_warmups_to_print": _WHOLE,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "warmup_anchor": _NUMBER,
    "warmup_dropout": _NUMBER,
    "advantage_clip": _NUMBER,
}
OBJECTIVE_NAMES = tuple(OBJECTIVE_NEEDS)
