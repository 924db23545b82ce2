"""What the commands take, as plain dataclasses: importing them loads neither torch nor trl, so `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TASK_HELP = (
    "The task, or the path of its file. Without it the training's own, where that is a built-in one: a file runs only "
    "where it is named here."
)


@dataclass
class RunOptions:
    """Options of `train` beside TRL's."""

    task: str | None = field(
        default=None,
        metadata={
            "help": "How rows become prompts and completions: 'logiqa' for columns text, question, options, answer, "
            "or the path of a Python file that defines TASK. Without it the data has columns prompt and completion."
        },
    )
    task_args: dict | str | None = field(
        default=None, metadata={"help": """Arguments of the task, as in '{"source": "de", "target": "en"}'."""}
    )
    answer_format: Literal["text", "letter"] | None = field(
        default=None,
        metadata={
            "help": "The completion of a multiple-choice task: the option's text (as without it) or its letter."
        },
    )
    test_split_size: float = field(
        default=0.0,
        metadata={
            "help": "Where dataset_name is a single file: the share of its rows that is kept out of training, for "
            "`evaluate`. Folders and Hub ids have splits of their own."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the run that output_dir holds. Other files in it are left alone."}
    )


@dataclass
class SampleOptions:
    """Options of `sample` beside those of `train`. A key for the server comes from OPENAI_API_KEY."""

    base_url: str | None = field(
        default=None,
        metadata={
            "help": "Draw from an OpenAI-compatible server of the base model that returns token ids (vLLM), such as "
            "http://localhost:8000/v1, instead of from the model loaded here."
        },
    )
    served_model: str | None = field(
        default=None, metadata={"help": "Its name on that server; model_name_or_path where it is not set."}
    )
    server_timeout: float = field(default=120.0, metadata={"help": "Seconds for one answer of the server."})


@dataclass
class EvaluateArguments:
    """Options of `evaluate`. Data options that are left out are those of the training."""

    adapter: str = field(metadata={"help": "Folder of the adapter, or of a merged model."})
    dataset_name: str | None = field(default=None, metadata={"help": "File, folder or Hub id; the training's."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub id."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split to score on; the training's."})
    task: str | None = field(default=None, metadata={"help": TASK_HELP})
    task_args: dict | str | None = field(default=None, metadata={"help": "Arguments of the task; the training's."})
    answer_format: Literal["text", "letter"] | None = field(
        default=None, metadata={"help": "Option's text or letter; the training's."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Score the first so many rows."})
    batch_size: int = field(default=32, metadata={"help": "Questions at a time."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Limit of a free generation, in tokens; the task's."}
    )
    num_examples: int = field(default=5, metadata={"help": "Examples to show with their warmups."})
    harness: str | None = field(
        default=None,
        metadata={
            "help": "Score on tasks of lm-evaluation-harness instead: names or YAML files, with commas between them. "
            "Needs warmup_peft[eval]."
        },
    )
    num_warmups: int = field(
        default=1,
        metadata={
            "help": "With --harness: average likelihoods over so many sampled warmups, and take the written answer "
            "that most of them lead to; 1 is the greedy one."
        },
    )
    compare_base: bool = field(
        default=True, metadata={"help": "Score the base too: answering directly, and after warmups of its own."}
    )


@dataclass
class InspectArguments:
    """Options of `inspect`."""

    run: str = field(metadata={"help": "Folder of the adapter, or of a merged model; the word after `inspect`."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the report; the run's own."})
    dataset_name: str | None = field(default=None, metadata={"help": "File, folder or Hub id; the training's."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub id."})
    dataset_test_split: str | None = field(default=None, metadata={"help": "Split to look at; the training's."})
    task: str | None = field(default=None, metadata={"help": TASK_HELP})
    task_args: dict | str | None = field(default=None, metadata={"help": "Arguments of the task; the training's."})
    max_samples: int | None = field(default=None, metadata={"help": "Look at the first so many rows."})
    batch_size: int = field(default=32, metadata={"help": "Rows at a time."})


@dataclass
class GenerateArguments:
    """Options of `generate`. Prompts come from --prompt, from --prompts_file or from standard input."""

    adapter: str = field(metadata={"help": "Folder of the adapter, or of a merged model."})
    prompt: str | None = field(default=None, metadata={"help": "One prompt."})
    prompts_file: str | None = field(
        default=None, metadata={"help": "A file with one prompt a line, or JSON lines with the field 'prompt'."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Limit of the answer, in tokens."})
    do_sample: bool = field(default=False, metadata={"help": "Sample warmup and answer instead of decoding greedily."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits when sampling."})
    top_p: float = field(default=1.0, metadata={"help": "Sample from the most likely tokens that hold this much."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "Let an OpenAI-compatible server answer, such as http://localhost:8000/v1; --adapter gives the "
            "tokenizer and the warmup's settings then. A key comes from OPENAI_API_KEY."
        },
    )
    model: str | None = field(default=None, metadata={"help": "With --base_url: the name the model is served under."})
    server_timeout: float = field(default=120.0, metadata={"help": "With --base_url: seconds for one answer."})
    batch_size: int = field(default=8, metadata={"help": "Prompts at a time."})
    json: bool = field(default=False, metadata={"help": "Print JSON lines with prompt, warmup and answer."})


@dataclass
class MergeArguments:
    """Options of `merge`."""

    adapter: str = field(metadata={"help": "Folder of the adapter."})
    output_dir: str = field(metadata={"help": "Folder of the merged model; it appears when it is whole."})
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Of the merged weights; the base's where it is left out."}
    )
    merge_base: Literal["dequantized", "original"] = field(
        default="dequantized",
        metadata={
            "help": "What a quantised base is merged into: its dequantised weights, which the adapter was trained on, "
            "or the original ones."
        },
    )
    max_samples: int = field(
        default=128, metadata={"help": "Held-out questions to compare adapter and merged model on; 0 compares none."}
    )
    task: str | None = field(default=None, metadata={"help": f"Of these questions. {TASK_HELP}"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what output_dir holds."})


@dataclass
class PushArguments:
    """Options of `push`. Log in first with `hf auth login`, or set HF_TOKEN."""

    folder: str = field(metadata={"help": "Folder of the adapter, or of a merged model."})
    repo_id: str = field(metadata={"help": "<user or organisation>/<name> on the Hub."})
    private: bool = field(default=True, metadata={"help": "Whether a repo that is made is private."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of changing the repo."})
    dry_run: bool = field(default=False, metadata={"help": "Only list what would go up."})


@dataclass
class BenchArguments:
    """Options of `bench`: one training step on your model, or on a random one of a given shape."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Your model; without it a random one."})
    shape: str = field(default="small", metadata={"help": "Random model: small, llama-3.2-1b or llama-3.1-8b."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the base in NF4."})
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "Of the base and arithmetic."})
    prompt_length: int = field(default=300, metadata={"help": "Tokens of each prompt."})
    target_length: int = field(default=2, metadata={"help": "Tokens of each target."})
    max_warmup_length: int = field(default=8, metadata={"help": "W; all of it is used."})
    num_warmups: int = field(default=4, metadata={"help": "K."})
    batch_size: int = field(default=2, metadata={"help": "Examples a step."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations in the backward."})
    steps: int = field(default=7, metadata={"help": "Timed steps of each arm; the median counts."})
    arms: list[str] = field(
        default_factory=lambda: ["sft", "naive", "plain", "shared"],
        metadata={"help": "Ways to take a step, sft among them; see the top of warmup_peft/cli/bench.py."},
    )
    output_file: str | None = field(default=None, metadata={"help": "Write the figures as JSON."})


@dataclass
class CompareOptions:
    """Options of `compare` beside those of `train`: the recipe is what the arms change."""

    arms: str = field(
        default="sft,more_sft,warmup,anchored,shuffled_warmup,empty_warmup",
        metadata={"help": "Ways to train, with commas between them: see README.md, or name a wrong one to list them."},
    )
    seeds: str = field(default="0,1,2", metadata={"help": "Seeds, with commas between them; each arm runs with each."})
    sweep: list[str] = field(
        default_factory=list,
        metadata={
            "action": "extend",
            "help": "An option and its values, as in num_warmups=2,4,8; may be given several times.",
        },
    )
    goal: float | None = field(
        default=None,
        metadata={
            "help": "Count the examples an arm sees until it first scores so much, between 0 and 1; 0.8 of accuracy, "
            "nothing for other scores."
        },
    )
    curve_points: int = field(default=10, metadata={"help": "Points of a learning curve; 0 draws none."})
    curve_samples: int = field(default=128, metadata={"help": "Rows that each of its points is scored on."})
    max_samples: int | None = field(default=None, metadata={"help": "Compare on the first so many test rows."})
    eval_batch_size: int = field(default=32, metadata={"help": "Rows that are scored at a time."})
    jobs: int = field(
        default=1, metadata={"help": "Runs at a time; more than 1 makes seconds comparable only roughly."}
    )


def check_counts(options: Any, **least: int) -> None:
    """Raise ValueError for a count, where one is given, below its least sensible value."""
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name}={value} cannot work. Set it to {minimum} or more.")
