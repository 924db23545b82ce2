"""The model card of an adapter or a merged model, written from the files of its folder. Does not import trl."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from warmup_peft.files import read_text, write_text
from warmup_peft.inference.folder import (
    CARD_NAME,
    CURVES_NAME,
    METRICS_NAME,
    TrainingRecord,
    WarmupConfig,
    is_adapter,
    looks_local,
)
from warmup_peft.inference.scores import ARM_NAMES, load_scores

CARD_TEXT = """
# {title}

{kind} that writes a short *warmup* to itself before it answers, trained with `WarmupSFTTrainer` from warmup_peft
(a plugin for TRL; method: [Warmup Generations](https://arxiv.org/abs/2502.12304)).

| | |
|---|---|
| Base model | `{base}` |
| Data | {data} |
| Warmup | {warmup} |
{settings_rows}
{scores}{picture}
## Use

{in_one_call}
With warmup_peft, on the terminal:

```bash
warmup-peft generate --adapter <this folder> --prompt "..."{talk}
```

{otherwise}"""

PICTURE = """
![Loss, and what warmups gain, their length, overlap and KL, over the steps of the training]({file})
"""

PLAIN_CODE = """With {libraries} alone and no code of this repo, {how}:

```python
{code}
```
"""

OWN_CODE = """{how} {libraries}, where you trust the code in `custom_generate/generate.py` (read it, it is short):

```python
{code}
```
"""

LOAD_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "<this folder or repo>"
model = AutoPeftModelForCausalLM.from_pretrained(folder)"""

GENERATE = """{load}
tokenizer = AutoTokenizer.from_pretrained(folder)

{inputs}
ids = model.generate(**inputs, max_new_tokens=64, do_sample=False{how})
print(tokenizer.decode(ids[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))"""

LOAD_MERGED = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "<this folder or repo>"
model = AutoModelForCausalLM.from_pretrained(folder)"""

TEXT_INPUTS = 'inputs = tokenizer("...", return_tensors="pt")'
CHAT_INPUTS = """messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{template}
)"""

ONE_CALL = """{load}
tokenizer = AutoTokenizer.from_pretrained(folder)

{inputs}
ids = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
ids = ids[0, inputs.input_ids.shape[1]:].tolist()
separator = {separator_ids}  # the warmup ends with its first token, and the answer begins behind its last
start = ids.index(separator[0]) + len(separator) if separator[0] in ids else len(ids)
print(tokenizer.decode(ids[start:], skip_special_tokens=True))"""

SERVERS = """
Any server answers in one call too{merged}: `vllm serve`; `llama-server -m` or Ollama, after llama.cpp's
`convert_hf_to_gguf.py`. What stands before `{separator}` in the text is the warmup; some servers return it apart, as
`reasoning_content`.
"""

TWO_CALLS = """import torch
{load}
tokenizer = AutoTokenizer.from_pretrained(folder)

separator, end_tokens = {separator_ids}, {end_token_ids}
{inputs}
ids = inputs.input_ids{opening}
warmup = model.generate(input_ids=ids, max_new_tokens={max_warmup_length}, do_sample=False)[0, ids.shape[1]:].tolist()
for i in range(len(warmup)):
    if warmup[i] in end_tokens or warmup[i : i + len(separator)] == separator:
        warmup = warmup[:i]
        break
context = torch.cat([ids, torch.tensor([warmup + separator])], dim=1)
answer = model.generate(input_ids=context, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, context.shape[1]:], skip_special_tokens=True))"""

OPENING = """
ids = torch.cat([ids, torch.tensor([{opening_ids}])], dim=1)  # the opening"""

SEAL = "<!-- written by warmup_peft {digest}; edit freely, an edited card is never overwritten -->"
SEAL_PATTERN = re.compile(SEAL.format(digest="([0-9a-f]{16})"))
NOTHING = "–"  # in place of a missing score
METRIC_IDS = {"macro_f1": "f1", "chrf++": "chrf", "rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge"}  # the Hub's
NO_SCORES = ("n", "generations_that_are_options")
PEFT_TEMPLATE_TITLE = "# Model Card for Model ID"
SHOWN_SETTINGS = (
    "objective", "warmup_source", "num_warmups", "warmup_sampling", "warmup_anchor", "temperature", "learning_rate",
    "steps", "batch_size", "lora_r",
)  # fmt: skip


def write_model_card(
    folder: str | Path, title: str | None = None, license: str | None = None, data_license: str | None = None
) -> Path:
    """Write the folder's README.md, unless there is one that a person has edited.

    Args:
        title: by default the name of the folder.
        license: license of the base model; by default the one in the card of a local base model.
        data_license: license of the data; by default the recorded one, or the one in the card of a local data set.
    """
    folder = Path(folder)
    path = folder / CARD_NAME
    if path.is_file() and is_edited(read_text(path)):
        return path
    record = TrainingRecord.load(folder) or TrainingRecord(base_model="")
    license = license or license_of(record.base_model)
    data_license = data_license or record.data.get("license") or license_of(record.data.get("dataset_name") or "")
    title = title or folder.name
    metadata = card_metadata(folder, record, title, license).to_yaml()
    card = ModelCard(f"---\n{metadata}\n---\n{card_text(folder, record, title, license, data_license)}")
    write_text(path, seal(str(card)))
    return path


def license_of(name: str) -> str | None:
    """The license in the card of a local model or data set; of a file, in the card beside it."""
    path = Path(Path(name).parent if Path(name).is_file() else name, CARD_NAME)
    if not name or not path.is_file():
        return None
    return license_in(ModelCard(read_text(path), ignore_metadata_errors=True).data)


def license_in(metadata: Any) -> str | None:
    """The license, or all of them, in the metadata of a card."""
    license = getattr(metadata, "license", None)
    return ", ".join(license) if isinstance(license, list) else license


def card_metadata(folder: Path, record: TrainingRecord, title: str, license: str | None) -> ModelCardData:
    base_is_public = record.base_model and not looks_local(record.base_model)
    dataset = data_on_the_hub(record.data)
    return ModelCardData(
        base_model=record.base_model if base_is_public else None,
        license=license,
        datasets=[dataset] if dataset else None,
        library_name="peft" if is_adapter(folder) else "transformers",
        pipeline_tag="text-generation",
        model_name=title,
        eval_results=eval_results(folder) or None,
        tags=["trl", "sft", "warmup-sft", "custom_generate", *(["lora"] if is_adapter(folder) else [])],
    )


def eval_results(folder: Path) -> list[EvalResult]:
    """The scores after the model's own warmups, as the Hub shows them beside a model."""
    metrics = load_scores(folder, METRICS_NAME)
    scores, settings = metrics.get("warmup"), metrics.get("settings")
    source = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(scores, dict) or "n" not in scores:
        return []
    name, _, split = (source or "held-out rows").partition(", split ")
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=name if is_id(name) else "local",
            dataset_name=public_name(name),
            dataset_split=split or None,
            metric_type=METRIC_IDS.get(metric, metric),
            metric_name=f"{metric.replace('_', ' ')} after its own warmup, {scores['n']} rows",
            metric_value=scores[metric],
        )
        for metric in score_columns([scores])
        if metric not in NO_SCORES and math.isfinite(scores[metric])
    ]


def data_on_the_hub(data: dict[str, Any]) -> str | None:
    """The id of the training's data, if they are on the Hub."""
    name = data.get("dataset_name") or str(data.get("source", "")).partition(", split ")[0]
    return name if is_id(name) else None


def is_id(name: str) -> bool:
    """Whether this looks like `<user or organisation>/<name>` of the Hub, and no such path is here."""
    return name.count("/") == 1 and "," not in name and not looks_local(name)


def data_row(data: dict[str, Any]) -> str:
    """What the rows are, as far as the training knew it."""
    if data.get("dataset_name"):
        return public_name(data["dataset_name"])
    if not data.get("source"):
        return "not recorded"
    return f"{data['source']}; {data.get('train_rows')} rows, fingerprint `{data.get('fingerprint')}`"


def public_name(name: str) -> str:
    """A Hub id unchanged; only the last part of a local path."""
    return f"{Path(name).name} (local)" if looks_local(name) else name


def card_text(folder: Path, record: TrainingRecord, title: str, license: str | None, data_license: str | None) -> str:
    config = WarmupConfig.load(folder)
    is_one = is_adapter(folder)
    load = LOAD_ADAPTER if is_one else LOAD_MERGED
    trusting = (
        load if is_one else load.replace("from_pretrained(folder)", "from_pretrained(folder, trust_remote_code=True)")
    )
    libraries = "transformers and peft" if is_one else "transformers"
    rows = [f"| {key} | {record.settings[key]} |" for key in SHOWN_SETTINGS if record.settings.get(key) is not None]
    if license:
        rows.insert(0, f"| License | {license}, inherited from the base |")
    if data_license:
        rows.insert(0, f"| License of the data | {data_license} |")
    if record.base_revision:
        rows.insert(0, f"| Base revision | `{record.base_revision}` |")
    if record.versions:
        rows.append(f"| Versions | {', '.join(' '.join(each) for each in record.versions.items())} |")
    own_code = OWN_CODE.format(
        how="With" if config.writes_separator else "In one call, with",
        libraries=libraries,
        code=GENERATE.format(
            load=trusting, inputs=inputs_code(config), how=", custom_generate=folder, trust_remote_code=True" * is_one
        ),
    )
    uses = [plain_part(config, load, libraries, is_one), own_code]
    in_one_call, otherwise = uses if config.writes_separator else reversed(uses)
    return CARD_TEXT.format(
        title=title,
        kind="A PEFT adapter" if is_adapter(folder) else "A merged model",
        base=public_name(record.base_model),
        data=data_row(record.data),
        warmup=warmup_row(config),
        settings_rows="\n".join(rows),
        scores=scores_table(folder),
        picture=PICTURE.format(file=CURVES_NAME) if (folder / CURVES_NAME).is_file() else "",
        talk="\nwarmup-peft chat --adapter <this folder>" * config.uses_chat_template,
        in_one_call=in_one_call,
        otherwise=otherwise,
    )


def warmup_row(config: WarmupConfig) -> str:
    opening = f"after the opening {as_code(config.warmup_opening)}, " if config.warmup_opening else ""
    by_itself = ", which the model writes by itself" if config.writes_separator else ""
    ids = ", ".join(map(str, config.warmup_separator_ids))
    return (
        f"{opening}at most {config.max_warmup_length} tokens, then the separator "
        f"{as_code(config.warmup_separator)} (ids {ids}){by_itself}"
    )


def as_code(text: str) -> str:
    """Text in one line of Markdown code."""
    return "`" + text.replace("\n", "\\n") + "`"


def inputs_code(config: WarmupConfig) -> str:
    """Code that encodes a prompt as in training."""
    if not config.uses_chat_template:
        return TEXT_INPUTS
    template = f", **{config.chat_template_kwargs!r}" if config.chat_template_kwargs else ""
    return CHAT_INPUTS.format(template=template)


def plain_part(config: WarmupConfig, load: str, libraries: str, is_one: bool) -> str:
    """How to decode with plain `generate`: in one call if the model writes its separator, else in two."""
    inputs, ids = inputs_code(config), config.warmup_separator_ids
    if config.writes_separator:
        code = ONE_CALL.format(load=load, inputs=inputs, separator_ids=ids, max_new_tokens=config.room + 64)
        servers = SERVERS.format(
            separator=config.warmup_separator.strip(), merged=" (after `warmup-peft merge`)" if is_one else ""
        )
        return PLAIN_CODE.format(libraries=libraries, how="in one call", code=code) + servers
    code = TWO_CALLS.format(
        load=load,
        inputs=inputs,
        separator_ids=ids,
        opening=OPENING.format(opening_ids=config.warmup_opening_ids) if config.warmup_opening_ids else "",
        max_warmup_length=config.max_warmup_length,
        end_token_ids=config.end_token_ids,
    )
    how = "in two calls (the separator's ids go between them, never its text)"
    return PLAIN_CODE.format(libraries=libraries, how=how, code=code)


def scores_table(folder: Path) -> str:
    metrics = load_scores(folder, METRICS_NAME)
    arms = {name: scores for name, scores in metrics.items() if isinstance(scores, dict) and "n" in scores}
    if not arms:
        return ""
    columns = score_columns(arms.values())
    rows = [
        f"| {ARM_NAMES.get(name, name)} | "
        + " | ".join(f"{scores[key]:,.3f}" if key in scores else NOTHING for key in columns)
        + f" | {scores['n']} |"
        for name, scores in arms.items()
    ]
    titles = " | ".join(key.replace("_", " ") for key in columns)
    return "\n".join([f"\n| held-out data | {titles} | rows |", "|---" * (len(columns) + 2) + "|", *rows, ""])


def score_columns(arms: Iterable[dict[str, float]]) -> list[str]:
    """Names of all scores except n that any of the arms has, in order."""
    return list(dict.fromkeys(key for scores in arms for key in scores if key != "n"))


def seal(card: str) -> str:
    """Sign the card, so that a later edit is detected."""
    return f"{card.rstrip()}\n\n{SEAL.format(digest=_digest(card))}\n"


def is_edited(card: str) -> bool:
    """Whether a person has edited or written this card. peft's empty template does not count."""
    found = SEAL_PATTERN.search(card)
    if found is None:
        return PEFT_TEMPLATE_TITLE not in card
    return found.group(1) != _digest(card[: found.start()]) or card[found.end() :].strip() != ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()[:16]
