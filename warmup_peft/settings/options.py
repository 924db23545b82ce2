"""Options of the method, beside TRL's. A plain dataclass: importing it imports neither torch nor trl."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

from warmup_peft.settings.engine import EngineOptions
from warmup_peft.settings.traits import OBJECTIVE_TRAITS, SOURCE_TRAITS, objectives_with
from warmup_peft.settings.words import nearest

if TYPE_CHECKING:  # which reads no tables
    Objective = str
    WarmupSource = str
else:
    Objective = Literal[tuple(OBJECTIVE_TRAITS)]
    WarmupSource = Literal[tuple(SOURCE_TRAITS)]


@dataclass
class WarmupOptions(EngineOptions):
    """What a warmup is and how warmups are sampled. Lengths are in tokens."""

    num_warmups: int = field(
        default=4, metadata={"help": "K: number of warmups sampled for each example (1 or more)."}
    )
    max_warmup_length: int = field(default=8, metadata={"help": "W: maximum length of a warmup (1 or more)."})
    warmup_format: Literal["auto", "thinking", "plain"] = field(
        default="auto",
        metadata={
            "help": "What stands around a warmup. 'thinking': what the model writes around its own thoughts, read "
            "from its chat template, such as <think> and </think>. 'plain': warmup_separator alone. 'auto': thinking "
            "where rows are conversations and the chat template knows thoughts."
        },
    )
    warmup_separator: str | None = field(
        default=None,
        metadata={
            "help": "Text between warmup and target; its token ids are inserted, not sampled. By default that of the "
            "format, in the plain one ' || '."
        },
    )
    warmup_opening: str | None = field(
        default=None,
        metadata={"help": "Text between prompt and warmup. By default that of the format, in the plain one none."},
    )
    learn_separator: bool | None = field(
        default=None,
        metadata={
            "help": "Also train the model to write opening and separator by itself, so that plain `generate` answers "
            "in one call, on any server. A warmup then ends where the model writes the separator's first token. The "
            "default is true in the thinking format."
        },
    )
    warmup_from_data: bool = field(
        default=False,
        metadata={
            "help": "Thinking format: use the thought that a row of the data has as one of its K warmups. By default "
            "such thoughts are left out. Objectives with an advantage take it for a sample of the model's own, which "
            "biases their estimates; 'warmup' has none."
        },
    )
    warmup_sampling: Literal["multinomial", "beam"] = field(
        default="multinomial",
        metadata={
            "help": "How warmups are sampled: 'multinomial' gives independent samples, 'beam' is the paper's beam "
            "search with sampling, whose samples are not independent."
        },
    )
    warmup_num_beams: int | None = field(
        default=None,
        metadata={"help": "Number of beams of warmup_sampling 'beam'; num_warmups or more, by default num_warmups."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits when a warmup is sampled."})
    top_k: int = field(default=0, metadata={"help": "Sample from the top_k most likely tokens; 0 means all."})
    top_p: float = field(
        default=1.0,
        metadata={"help": "Sample from the most likely tokens that together have this probability; 1 means all."},
    )
    min_p: float | None = field(
        default=None,
        metadata={"help": "Sample from tokens with at least min_p times the probability of the most likely one."},
    )
    objective: Objective | None = field(
        default=None,
        metadata={
            "help": "What is maximised, see the table in warmup_peft/method/objective.py: 'warmup' is Warmup "
            "Generations; those with an advantage also train what is written as a warmup. The default is 'jensen', "
            "'posterior' with warmup_source 'base', and 'warmup' for beams, a single warmup, and controls."
        },
    )
    normalize_advantages: bool = field(
        default=False,
        metadata={
            "help": "Centre each example's advantages and divide them by their standard deviation over its K warmups."
        },
    )
    advantage_clip: float | None = field(
        default=None, metadata={"help": "Clip every advantage to plus or minus this value."}
    )
    warmup_loss_type: Literal["sum", "bnpo", "dr_grpo"] = field(
        default="sum",
        metadata={
            "help": "How an advantage counts along a warmup, with the names of GRPO's loss_type. 'sum', the exact "
            "gradient: for every token, so that long warmups weigh more. 'dr_grpo': that, divided by "
            "max_warmup_length, which is exact but for the constant. 'bnpo': divided by the mean length of the "
            "warmups of the device's batch, which is biased."
        },
    )
    mask_truncated_warmups: bool = field(
        default=False,
        metadata={
            "help": "Leave warmups that do not end within max_warmup_length out of the loss. What is maximised is "
            "then the mean over warmups that end. An example none of whose warmups ends teaches nothing."
        },
    )
    hindsight_steps: int = field(
        default=0,
        metadata={
            "help": "Number of steps at the start that only teach to read warmups: the target is trained after those "
            "of the K warmups that hold words of it, and what is written is not trained. For short targets, where "
            "useful warmups are rare; 0 means none."
        },
    )
    warmup_source: WarmupSource = field(
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
            "help": "beta: weight of the divergence KL(base || model) at the warmup's tokens, where the base is the "
            "model with its adapter disabled. It keeps warmups from collapsing, and what the base may write from "
            "being forgotten. The paper uses 0. The default is 0.3, or 0 if a whole model is trained on its own "
            "samples, because there is no adapter to disable. With warmup_source 'base' it is the weight of the "
            "cross-entropy on the warmups; objective latro has KL(model || base)."
        },
    )
    warmup_pool_size: int = field(
        default=16,
        metadata={"help": "M: samples for each prompt with warmup_source 'base'; every epoch uses K of them."},
    )
    warmup_pool: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the sampled warmups, to share them between runs; by default output_dir/warmup_pool. "
            "Warmups that it holds are used, missing ones are sampled."
        },
    )
    warmup_pool_batch_size: int = field(
        default=256,
        metadata={"help": "Number of warmups sampled at a time for the pool; lower it if memory runs out."},
    )
    warmup_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Share of the warmups that are left out (the row is then prompt, separator, target), so that the "
            "adapter also learns to answer without one."
        },
    )
    warmup_gain_steps: int = field(
        default=10,
        metadata={
            "help": "Number of steps between measurements of how much a warmup raises the likelihood of the target, "
            "compared with no warmup and with another example's; 0 means never."
        },
    )
    log_warmups: bool = field(
        default=False, metadata={"help": "Print a table of prompts, warmups and their scores at every log."}
    )
    num_warmups_to_print: int = field(default=2, metadata={"help": "Number of prompts in that table."})

    prefix_sharing: Literal["auto", "always", "never", "true", "false"] = field(
        default="auto",
        metadata={
            "help": "Encode each prompt once for all its warmups. 'auto' does so if the first batch shows that it is "
            "exact, and otherwise encodes each prompt once per warmup; 'always' stops with an error instead; 'never' "
            "always encodes it once per warmup. 'true' and 'false' are older names of 'always' and 'never'."
        },
    )
    eval_generate: int = field(
        default=0,
        metadata={
            "help": "At every evaluation, write answers to this many rows of the eval dataset, from the first one, "
            "after the model's own greedy warmup, and log their scores as eval_exact_match and so on; 0 means never."
        },
    )
    eval_metrics: str = field(
        default="exact_match",
        metadata={
            "help": "The metrics of eval_generate, separated by commas: exact_match, contains, math_verify, rougeL, "
            "bleu and others. `evaluate` and `compare` use them too where no task is named."
        },
    )

    def check_warmup_options(self) -> None:
        """Raise ValueError for a value that cannot work. The message names the field and says how to fix it."""
        sharing = str(self.prefix_sharing).lower()  # YAML reads true and false as booleans
        self.prefix_sharing = {"true": "always", "false": "never"}.get(sharing, sharing)  # type: ignore[assignment]
        self._require(
            self.prefix_sharing in ("auto", "always", "never"), "prefix_sharing", "Choose auto, always or never."
        )
        if self.objective is None:
            self.objective = self._default_objective()
        self._check_numbers()
        self._check_ranges()
        self._check_objective()
        self._check_source()
        self._check_beams()
        self._check_engine()

    def _default_objective(self) -> str:
        if self.warmup_source == "base":
            return "posterior"
        are_independent = self.warmup_source == "policy" and self.warmup_sampling == "multinomial"
        return "jensen" if are_independent and self.num_warmups != 1 else "warmup"

    def _check_numbers(self) -> None:
        """Check the type of options that are annotated as numbers."""
        for name, hint in get_type_hints(WarmupOptions).items():
            kinds = get_args(hint) or (hint,)
            if not {int, float}.isdisjoint(kinds):
                word = "whole number" if int in kinds else "number"
                self._require(isinstance(getattr(self, name), (*kinds, int)), name, f"Set it to a {word}.")

    def _check_ranges(self) -> None:
        require = self._require
        require(self.num_warmups >= 1, "num_warmups", "Set it to 1 or more; the paper uses 4.")
        require(
            self.max_warmup_length >= 1,
            "max_warmup_length",
            "Set it to 1 or more tokens; for no warmup at all use SFTTrainer.",
        )
        require(self.warmup_separator != "", "warmup_separator", "Give it some text, such as ' || '.")
        require(
            self.warmup_format in ("auto", "thinking", "plain"),
            "warmup_format",
            "Choose auto, thinking or plain.",
        )
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
        require(
            self.warmup_loss_type in ("sum", "bnpo", "dr_grpo"), "warmup_loss_type", "Choose sum, bnpo or dr_grpo."
        )
        require(self.hindsight_steps >= 0, "hindsight_steps", "Set it to 0 (off) or more.")
        require(0 <= self.warmup_dropout < 1, "warmup_dropout", "Set it to 0 (off) up to 1.")
        require(self.warmup_gain_steps >= 0, "warmup_gain_steps", "Set it to 0 (never) or more.")
        require(self.num_warmups_to_print >= 1, "num_warmups_to_print", "Set it to 1 or more.")
        require(self.eval_generate >= 0, "eval_generate", "Set it to 0 (never) or more.")

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
        require, objective = self._require, str(self.objective)
        require(
            objective in OBJECTIVE_TRAITS,
            "objective",
            nearest(objective, OBJECTIVE_TRAITS, f"Choose one of {', '.join(OBJECTIVE_TRAITS)}."),
        )
        equal_weights = objectives_with("has_equal_weights")
        require(
            self.warmup_dropout == 0 or objective in equal_weights,
            "warmup_dropout",
            f"objective {objective} would weigh left-out warmups against the others. Set it to 0, or objective to one "
            f"of {', '.join(equal_weights)}.",
        )
        may_leave_out = objectives_with("may_leave_out")
        require(
            objective in may_leave_out or not self.mask_truncated_warmups,
            "mask_truncated_warmups",
            f"objective {objective} would then train warmups to end, whatever they say. Set it to false, or objective "
            f"to one of {', '.join(may_leave_out)}.",
        )
        traits = OBJECTIVE_TRAITS[objective]
        if not traits.has_advantage:
            fix = f"objective {objective} has no advantages. Leave it out, or choose another objective."
            require(not self.normalize_advantages, "normalize_advantages", fix)
            require(self.advantage_clip is None, "advantage_clip", fix)
            require(self.warmup_loss_type == "sum", "warmup_loss_type", fix)
            return
        require(
            traits.is_centred or not self.normalize_advantages,
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
            self.num_warmups >= 2 or not traits.compares_warmups,
            "num_warmups",
            f"objective {objective} compares warmups with each other. Set it to 2 or more.",
        )

    def _check_source(self) -> None:
        require, source = self._require, self.warmup_source
        every = f"Choose one of {', '.join(SOURCE_TRAITS)}."
        require(source in SOURCE_TRAITS, "warmup_source", nearest(source, SOURCE_TRAITS, every))
        traits = SOURCE_TRAITS[source]
        if source != "base":
            require(
                self.warmup_pool is None,
                "warmup_pool",
                "It belongs to warmup_source 'base'; leave it out or set warmup_source to 'base'.",
            )
        require(
            not (traits.is_control and OBJECTIVE_TRAITS[str(self.objective)].has_advantage),
            "objective",
            f"It credits the row's own warmups, and warmup_source {source} takes them away. Set it to 'warmup'.",
        )
        require(
            not (traits.is_control and self.hindsight_steps),
            "hindsight_steps",
            f"It looks at the row's own warmups, and warmup_source {source} takes them away. Set it to 0.",
        )
        require(
            traits.may_be_anchored or not self.warmup_anchor,
            "warmup_anchor",
            f"Warmups of warmup_source {source} have nothing to anchor. Set it to 0.",
        )
        require(
            not (self.warmup_from_data and source != "policy"),
            "warmup_from_data",
            f"warmup_source {source} has warmups of its own. Set warmup_source to 'policy', or leave it out.",
        )
        if source == "base":
            self._check_base_source()

    def _check_base_source(self) -> None:
        require, takes_base = self._require, objectives_with("takes_base_warmups")
        require(
            self.warmup_sampling == "multinomial",
            "warmup_sampling",
            "warmup_source base needs independent samples, which beams are not. Set it to 'multinomial'.",
        )
        require(
            self.objective in takes_base,
            "objective",
            "It compares the model's own samples, and warmup_source base has the base model's. Choose "
            f"{' or '.join(takes_base)}, or set warmup_source to 'policy'.",
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

    def _check_engine(self) -> None:
        self.check_engine_options()
        if not self.use_vllm:
            return
        require = self._require
        require(
            self.warmup_sampling == "multinomial",
            "warmup_sampling",
            "vLLM samples independently. Set it to 'multinomial', or use_vllm to false.",
        )
        require(self.warmup_source != "empty", "use_vllm", "warmup_source 'empty' samples nothing. Leave it out.")
        require(
            not (self.warmup_source == "base" and self.vllm_enable_sleep_mode),
            "vllm_enable_sleep_mode",
            "A vLLM that wakes up gets the adapter's weights, and the pool needs the base's. Set it to false.",
        )

    @property
    def num_beams(self) -> int:
        """Number of beams; 1 for independent samples."""
        if self.warmup_sampling == "multinomial":
            return 1
        return self.num_warmups if self.warmup_num_beams is None else self.warmup_num_beams


DEFAULT_ANCHOR = 0.3
