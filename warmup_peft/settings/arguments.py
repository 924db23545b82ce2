"""Options of the commands, as plain dataclasses. They import neither torch nor trl, so `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TASK_HELP = (
    "Name of a built-in task, or path of a task's file. By default the task of the training, if it is a built-in one: "
    "a file is run only if it is named here. Where there is none it is 'prompt_completion', for rows as TRL has them."
)


@dataclass(kw_only=True)
class LoadingOptions:
    """Options of all commands that load a model."""

    revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit, where the adapter is named by its id on the Hub."},
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the Python code that the base model or its tokenizer brings with it. Read it first."},
    )
    device: str | None = field(
        default=None,
        metadata={"help": "Device to compute on: cpu, cuda, cuda:1, mps. By default the first GPU, else the CPU."},
    )


@dataclass(kw_only=True)
class PlacingOptions(LoadingOptions):
    """Options of all commands that load a model to answer."""

    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = field(
        default=None,
        metadata={
            "help": "Spread a base that is larger than a card over all cards, the memory and the disk, as "
            "transformers does; instead of --device."
        },
    )


@dataclass
class RunOptions:
    """Options of `train`, beside TRL's."""

    task: str | None = field(
        default=None,
        metadata={
            "help": "How rows become prompts and completions: 'logiqa' for columns text, question, options, answer, "
            "or the path of a Python file that defines TASK. Without it the data has columns prompt and "
            "completion, or messages."
        },
    )
    task_args: dict | str | None = field(
        default=None, metadata={"help": """Arguments of the task, as in '{"source": "de", "target": "en"}'."""}
    )
    answer_format: Literal["text", "letter"] | None = field(
        default=None,
        metadata={"help": "The completion of a multiple-choice task: the text of the option (default) or its letter."},
    )
    test_split_size: float = field(
        default=0.0,
        metadata={
            "help": "If dataset_name is a single file: the share of its rows that is held out of training, for "
            "`evaluate`. Folders and Hub ids have their own splits."
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of rows to train on, from the first one."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the run in output_dir. Other files in it are kept."}
    )


@dataclass
class LaunchOptions:
    """Options of `train`, `sft` and `sample` for several processes; on the command line only."""

    accelerate_config: str | None = field(
        default=None,
        metadata={
            "help": "Run in the processes of this accelerate configuration: one_gpu, multi_gpu (one for each GPU), or "
            "a file that `accelerate config` wrote."
        },
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "With --accelerate_config: number of processes; by default one for each GPU."}
    )


@dataclass
class InitArguments:
    """Options of `init`. The copy has its own task, data and base, and names them from where you are."""

    folder: str = field(metadata={"help": "Folder to copy into, as in my-recipe. It may not hold anything yet."})
    recipe: str = field(default="logiqa", metadata={"help": "Recipe of the package, as in thinking or logiqa/qlora."})


@dataclass
class DoctorArguments:
    """Options of `doctor`. With a base it also predicts the memory of a training step, as `bench --predict` does."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A base model, of which nothing but the configuration is read."}
    )
    shape: str | None = field(default=None, metadata={"help": "Instead of a model: a shape that `bench` knows."})
    load_in_4bit: bool = field(default=True, metadata={"help": "Whether the base is loaded in NF4."})
    dtype: Literal["float32", "bfloat16"] = field(
        default="bfloat16", metadata={"help": "Dtype of the base model and of the arithmetic."}
    )
    prompt_length: int = field(default=300, metadata={"help": "Tokens of each prompt."})
    max_warmup_length: int = field(default=8, metadata={"help": "W, in tokens."})
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Recompute activations in the backward pass."}
    )
    card_memory: float | None = field(
        default=None,
        metadata={"help": "Memory of your card in GB of 2^30 bytes, as in 24; by default that of the first GPU."},
    )


@dataclass
class CompletionArguments:
    """Options of `completion`. It prints a script; save it again after an update."""

    shell: Literal["bash", "zsh", "fish"] = field(metadata={"help": "Shell that the script is for."})


@dataclass
class SampleOptions:
    """Options of `sample` beside those of `train`. A key for the server comes from OPENAI_API_KEY."""

    base_url: str | None = field(
        default=None,
        metadata={
            "help": "Sample from an OpenAI-compatible server of the base model that returns token ids (vLLM), such as "
            "http://localhost:8000/v1, instead of from the model loaded here."
        },
    )
    served_model: str | None = field(
        default=None, metadata={"help": "Name of the model on that server; by default model_name_or_path."}
    )
    server_timeout: float = field(default=120.0, metadata={"help": "Seconds to wait for one answer of the server."})


@dataclass
class SFTOptions:
    """Options of `sft` beside those of `train`."""

    as_long_as: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a finished training: train for as many seconds as that one took, whatever max_steps "
            "says. By default for the recipe's steps."
        },
    )


@dataclass
class EvaluateArguments(PlacingOptions):
    """Options of `evaluate`. The defaults of the data options are those of the training."""

    adapter: str = field(metadata={"help": "Folder or Hub id of the adapter, or of a merged model."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "File, folder or Hub id; by default that of the training."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub id."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to score on; by default that of the training."}
    )
    task: str | None = field(default=None, metadata={"help": TASK_HELP})
    task_args: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the task; by default those of the training."}
    )
    answer_format: Literal["text", "letter"] | None = field(
        default=None, metadata={"help": "Text of the option or its letter; by default as in training."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Number of rows to score, from the first one."})
    batch_size: int = field(default=32, metadata={"help": "Number of questions in a batch."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Limit of a generated answer, in tokens; by default that of the task."}
    )
    num_examples: int = field(default=5, metadata={"help": "Number of examples to print with their warmups."})
    harness: str | None = field(
        default=None,
        metadata={
            "help": "Score on tasks of lm-evaluation-harness instead: names or YAML files, separated by commas. "
            "Needs warmup_peft[eval]."
        },
    )
    apply_chat_template: bool | None = field(
        default=None,
        metadata={
            "help": "With --harness: render every context by the chat template; by default if the training did."
        },
    )
    num_warmups: int = field(
        default=1,
        metadata={
            "help": "With --harness: average likelihoods over this number of sampled warmups, and return the most "
            "frequent generated answer; 1 means the greedy warmup."
        },
    )
    sft: str | None = field(
        default=None, metadata={"help": "Folder of an adapter that `warmup-peft sft` trained, to score it too."}
    )
    warmups: str = field(
        default="own",
        metadata={
            "help": "What precedes the answer, separated by commas: 'own', the warmup that the adapter writes; "
            "'shuffled', another row's; 'dots', as many full stops; 'none', the separator alone. 'plain' is one plain "
            "`generate`, in which an adapter of learn_separator writes warmup and separator itself."
        },
    )
    compare_base: bool = field(
        default=True, metadata={"help": "Also score the base model: answering directly, and after warmups of its own."}
    )
    metrics: str | None = field(
        default=None,
        metadata={
            "help": "Metrics to score by, separated by commas, as in exact_match,bleu. By default those of the task, "
            "or the training's eval_metrics where it had no task."
        },
    )


@dataclass
class InspectArguments(PlacingOptions):
    """Options of `inspect`."""

    run: str = field(
        metadata={
            "help": "Folder or Hub id of the adapter, or of a merged model; may be given as the first word after "
            "`inspect`."
        }
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the report; by default that of the run."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "File, folder or Hub id; by default that of the training."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub id."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split to inspect; by default that of the training."}
    )
    task: str | None = field(default=None, metadata={"help": TASK_HELP})
    task_args: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the task; by default those of the training."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Number of rows to inspect, from the first one."})
    num_examples: int = field(
        default=5, metadata={"help": "Number of examples of each class of warmups, to print and for the report."}
    )
    batch_size: int = field(default=32, metadata={"help": "Number of rows in a batch."})


@dataclass
class GenerateArguments(PlacingOptions):
    """Options of `generate`. Prompts come from --prompt, --messages, --prompts_file or standard input.

    With an adapter that was trained on conversations, a prompt that is text becomes one message of the user.
    """

    adapter: str = field(metadata={"help": "Folder or Hub id of the adapter, or of a merged model."})
    prompt: str | None = field(default=None, metadata={"help": "One prompt."})
    messages: str | None = field(
        default=None,
        metadata={
            "help": "One conversation, for the chat template: a JSON list of messages, or the path of a file with one."
        },
    )
    prompts_file: str | None = field(
        default=None,
        metadata={
            "help": "A file with one prompt per line; or JSON lines with the field 'prompt', a text or a list of "
            "messages, or the field 'messages'."
        },
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Limit of the answer, in tokens."})
    do_sample: bool = field(default=False, metadata={"help": "Sample warmup and answer instead of greedy decoding."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits when sampling."})
    top_p: float = field(
        default=1.0, metadata={"help": "Sample from the most likely tokens that together have this probability."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    base_url: str | None = field(
        default=None,
        metadata={
            "help": "Use an OpenAI-compatible server, such as http://localhost:8000/v1. Only the tokenizer and the "
            "settings of the warmup are then read from --adapter. A key comes from OPENAI_API_KEY."
        },
    )
    model: str | None = field(default=None, metadata={"help": "With --base_url: name of the model on the server."})
    server_timeout: float = field(default=120.0, metadata={"help": "With --base_url: seconds to wait for one answer."})
    batch_size: int = field(default=8, metadata={"help": "Number of prompts in a batch."})
    json: bool = field(default=False, metadata={"help": "Print JSON lines with prompt, warmup and answer."})


@dataclass
class ChatArguments(PlacingOptions):
    """Options of `chat`. Type /reset to begin a new conversation, and /exit or Ctrl-D to end."""

    adapter: str = field(metadata={"help": "Folder or Hub id of the adapter, or of a merged model."})
    system: str | None = field(default=None, metadata={"help": "A system prompt."})
    max_new_tokens: int = field(default=512, metadata={"help": "Limit of an answer, in tokens."})
    do_sample: bool = field(default=False, metadata={"help": "Sample warmup and answer instead of greedy decoding."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the logits when sampling."})
    top_p: float = field(
        default=1.0, metadata={"help": "Sample from the most likely tokens that together have this probability."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})


@dataclass
class MergeArguments(LoadingOptions):
    """Options of `merge`."""

    adapter: str = field(metadata={"help": "Folder or Hub id of the adapter."})
    output_dir: str = field(metadata={"help": "Folder of the merged model; it appears when it is complete."})
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Dtype of the merged weights; by default that of the base model."}
    )
    merge_base: Literal["dequantized", "original"] = field(
        default="dequantized",
        metadata={
            "help": "Weights that a quantised base model is merged into: the dequantised ones, which the adapter was "
            "trained on, or the original ones."
        },
    )
    max_samples: int = field(
        default=128,
        metadata={
            "help": "Number of held-out questions to compare adapter and merged model on; 0 means no comparison."
        },
    )
    task: str | None = field(default=None, metadata={"help": f"Task of these questions. {TASK_HELP}"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the model in output_dir."})
    device: str | None = field(
        default=None,
        kw_only=True,
        metadata={
            "help": "Device to merge on; by default the CPU, so that a model can be merged beside a card that is too "
            "small for its dequantised weights, unless the CPU cannot compute with the quantised ones."
        },
    )
    max_shard_size: str = field(default="5GB", metadata={"help": "The largest file of merged weights, as in 5GB."})


@dataclass
class PushArguments:
    """Options of `push`. Log in first with `hf auth login`, or set HF_TOKEN."""

    folder: str = field(metadata={"help": "Folder of the adapter, or of a merged model."})
    repo_id: str = field(metadata={"help": "<user or organisation>/<name> on the Hub."})
    private: bool = field(default=True, metadata={"help": "Whether a new repo is private."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of changing the repo."})
    dry_run: bool = field(default=False, metadata={"help": "Only list the files that would be uploaded."})


@dataclass
class BenchArguments:
    """Options of `bench`: one training step on your model, or on a random one of a given shape.

    With --predict true nothing is run and no weights are read: only what memory the step will take is told.
    """

    model_name_or_path: str | None = field(default=None, metadata={"help": "Your model; by default a random one."})
    shape: str = field(
        default="small",
        metadata={"help": "Shape of the random model: small, small-llama-3-vocabulary, llama-3.2-1b or llama-3.1-8b."},
    )
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the base model in NF4."})
    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Dtype of the base model and of the arithmetic."}
    )
    prompt_length: int = field(default=300, metadata={"help": "Tokens of each prompt."})
    target_length: int = field(default=2, metadata={"help": "Tokens of each target."})
    max_warmup_length: int = field(default=8, metadata={"help": "W; every warmup has this length."})
    num_warmups: int = field(default=4, metadata={"help": "K: number of warmups for each example."})
    batch_size: int = field(default=2, metadata={"help": "Number of examples in a step."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations in the backward pass."}
    )
    steps: int = field(
        default=7, metadata={"help": "Number of timed steps of each arm; the median is reported. 0: memory alone."}
    )
    arms: list[str] = field(
        default_factory=lambda: ["sft", "naive", "plain", "shared"],
        metadata={"help": "Ways to take a step, sft among them; see the top of warmup_peft/training/benchmark.py."},
    )
    predict: bool = field(
        default=False,
        metadata={
            "help": "Only predict the memory of a step. Of --model_name_or_path nothing but its configuration is read."
        },
    )
    card_memory: float | None = field(
        default=None,
        metadata={
            "help": "With --predict: memory of your card in GB of 2^30 bytes, as in 24, to find the largest batch "
            "that fits with a tenth of it left free."
        },
    )
    output_file: str | None = field(default=None, metadata={"help": "Write the results as JSON."})


@dataclass
class CompareOptions:
    """Options of `compare`, beside those of `train`. Every arm changes the recipe."""

    arms: str = field(
        default="sft,more_sft,warmup",
        metadata={
            "help": "Ways to train, separated by commas; the list is above. The default answers whether your recipe "
            "is better than SFT with as much training time, and whether its warmups are read."
        },
    )
    seeds: str = field(default="0,1,2", metadata={"help": "Seeds, separated by commas; each arm runs with each seed."})
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
            "help": "Count the examples that an arm needs to reach this score, between 0 and 1; by default 0.8 for "
            "accuracy, and none for other metrics."
        },
    )
    curve_points: int = field(default=10, metadata={"help": "Number of points of a learning curve; 0 means no curve."})
    curve_samples: int = field(default=128, metadata={"help": "Number of rows that each point is scored on."})
    max_samples: int | None = field(
        default=None, metadata={"help": "Number of test rows to compare on, from the first one."}
    )
    eval_batch_size: int = field(default=32, metadata={"help": "Number of rows in a batch when scoring."})
    sampled_warmups: int = field(
        default=0,
        metadata={
            "help": "Number of warmups to sample for each test row: also score the answers after them, beside the "
            "greedy warmup's, and count those that the task's warmup_is_right finds right, before and after training."
        },
    )
    jobs: int = field(
        default=1,
        metadata={"help": "Number of runs at the same time; with more than 1, times can be compared only roughly."},
    )


def check_sampling(options: GenerateArguments | ChatArguments) -> None:
    """Raise ValueError for numbers with which nothing can be generated."""
    check_counts(options, max_new_tokens=1, seed=0)
    if options.temperature <= 0 or not 0 < options.top_p <= 1:
        raise ValueError(
            f"temperature={options.temperature} with top_p={options.top_p} cannot work. Set temperature above 0, and "
            "top_p above 0 and at most 1."
        )


def check_server(options: GenerateArguments) -> None:
    """Raise ValueError where only one of `base_url` and `model` is given, or no address."""
    if (options.base_url is None) != (options.model is None):
        missing = "--model" if options.model is None else "--base_url"
        raise ValueError(f"{missing} is not given. A server needs both --base_url and --model.")
    if options.base_url is not None:
        check_address(options.base_url, options.server_timeout)


def check_address(base_url: str, timeout: float) -> None:
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base_url={base_url} is not an address. Give one such as http://localhost:8000/v1.")
    if timeout <= 0:
        raise ValueError(f"A server_timeout of {timeout:g} seconds cannot work. Set it above 0.")


def check_placing(options: Any) -> None:
    """Raise ValueError where a device and a map of devices are both given."""
    if options.device is not None and options.device_map is not None:
        raise ValueError(f"device={options.device} and device_map={options.device_map} are both given. Choose one.")


def check_counts(options: Any, **least: int) -> None:
    """Raise ValueError if one of the options is set to less than its minimum."""
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name}={value} cannot work. Set it to {minimum} or more.")
