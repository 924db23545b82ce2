"""What a GPU may do differently from a CPU: `make test-gpu`.

`make test-slow` runs the same bodies on the CPU, but for flash attention and the allocator's peak.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from architectures import build
from conftest import EXAMPLES
from folders import argv_of, random_adapter, relative_difference, save_adapter
from peft import LoraConfig, get_peft_model
from torch import nn
from trainers import make_trainer, randomise_adapter
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed
from transformers.utils import is_flash_attn_2_available

from warmup_peft import merge_adapter, warmup_generate
from warmup_peft.cli.main import main
from warmup_peft.export.custom_generate import export_decoding
from warmup_peft.inference.loading import Loading, load_folder
from warmup_peft.inference.quantization import keep_4bit_weights_in_place
from warmup_peft.method.branches import Tokens, Warmups, lay_out_branches
from warmup_peft.method.prefix import SharedPrefix, install
from warmup_peft.method.rows import PlainRows

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU answers to torch")],
)
BOTH = [pytest.param("cpu", marks=pytest.mark.slow), CUDA]
on_each_device = pytest.mark.parametrize("device", BOTH)


def gradients(model: nn.Module) -> torch.Tensor:
    found = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    assert found
    return torch.cat(found).cpu()


# ---- NF4 ----


@on_each_device
@pytest.mark.parametrize("generates_first", [False, True])
def test_nf4_has_the_logits_and_gradients_of_its_own_dequantised_weights(
    model_folder, lora, nf4, device, generates_first
):
    """In float32; the reference is the same 4-bit weights as plain matrices. A `generate` before changes nothing."""
    ids = torch.arange(3, 60, device=device).unsqueeze(0)
    found = []
    for dequantize in (False, True):
        base = AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=torch.float32, quantization_config=nf4, device_map={"": device}
        )
        keep_4bit_weights_in_place(base)
        set_seed(0)  # of the adapter's A
        model = get_peft_model(base.dequantize().float() if dequantize else base, lora)
        randomise_on(model, device)
        if generates_first:
            model.eval().generate(input_ids=ids, max_new_tokens=2, do_sample=False)
        model.train()
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        found.append((output.logits.detach().float().cpu(), gradients(model)))
    (logits, gradient), (expected_logits, expected_gradient) = found
    assert relative_difference(logits, expected_logits) < 1e-4
    assert relative_difference(gradient, expected_gradient) < 1e-3


# ---- Shared prompts ----


def batch_on(device: str, num_branches: int) -> tuple[Tokens, Warmups, Tokens]:
    """Prompts of 1, 4 and 9 tokens, warmups of 0 to 5, targets of 1 to 3."""
    generator = torch.Generator().manual_seed(0)

    def sample(*shape: int) -> torch.Tensor:
        return torch.randint(2, 128, shape, generator=generator).to(device)

    prompt_mask = (torch.arange(9) >= 9 - torch.tensor([[1], [4], [9]])).to(device)
    prompt = Tokens(sample(3, 9).masked_fill(~prompt_mask, 0), prompt_mask)
    lengths = torch.randint(0, 6, (3, num_branches), generator=generator).to(device)
    target = Tokens(sample(3, 3), (torch.arange(3) < torch.tensor([[1], [2], [3]])).to(device))
    warmups = Warmups(sample(3, num_branches, 5), lengths, lengths)
    return prompt, warmups, target.repeat_for_branches(num_branches)


def logps_and_gradients(encoding: type, model: nn.Module, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    prompt, warmups, target = batch_on(device, 4)
    branches = lay_out_branches(warmups.tokens(), torch.tensor([5, 6], device=device), target)
    predicted = branches.is_target
    logps = encoding(model, model, prompt).predictions(branches, predicted).logps(branches.ids[predicted])
    model.zero_grad()
    (-logps.sum()).backward()
    return logps.detach().float().cpu(), gradients(model)


def check_shared(model: nn.Module, device: str, limit: float) -> None:
    expected = logps_and_gradients(PlainRows, model, device)
    install(model)
    found = logps_and_gradients(SharedPrefix, model, device)
    for one, other in zip(found, expected):
        assert relative_difference(one, other) < limit


@on_each_device
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prompts_equal_plain_rows(lora, device, attention, checkpointing):
    model = build("llama")
    model.set_attn_implementation(attention)
    model = get_peft_model(model, lora).to(device).train()
    randomise_on(model, device)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check_shared(model, device, 1e-4)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed, or no GPU that it works on")
def test_shared_prompts_equal_plain_rows_with_flash_attention(lora, device):
    """In bfloat16, which flash attention needs: as near as its rounding allows."""
    model = build("llama").bfloat16()
    model.set_attn_implementation("flash_attention_2")
    model = get_peft_model(model, lora).to(device).train()
    randomise_on(model, device)
    check_shared(model, device, 0.03)


def randomise_on(model: nn.Module, device: str) -> None:
    """As `randomise_adapter`, whose numbers are made on the CPU."""
    randomise_adapter(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device)


# ---- A training step ----


def step_of(device: str, model_folder, tmp_path, tokenizer, **settings) -> tuple[float, torch.Tensor]:
    """Loss and gradients of the first batch, after warmups that are the same every time."""
    lora = LoraConfig(r=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, use_cpu=device == "cpu", num_warmups=2,
        model_init_kwargs={"dtype": "float32"}, **settings,
    )  # fmt: skip
    randomise_on(trainer.model, device)
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 200, (len(EXAMPLES), 2, 5), generator=generator).to(trainer.accelerator.device)
    lengths = torch.full((len(EXAMPLES), 2), 5, device=ids.device)
    trainer.sample_warmups = lambda *_: Warmups(ids, lengths, lengths)
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.device.type == device
    return loss.item(), gradients(trainer.model)


@on_each_device
def test_bf16_autocast_is_near_float32(model_folder, tmp_path, tokenizer, device):
    loss, gradient = step_of(device, model_folder, tmp_path / "a", tokenizer, bf16=False)
    rounded_loss, rounded = step_of(device, model_folder, tmp_path / "b", tokenizer, bf16=True)
    assert rounded_loss == pytest.approx(loss, rel=0.03)
    assert rounded_loss != loss
    assert torch.cosine_similarity(gradient, rounded, dim=0).item() > 0.98


@on_each_device
def test_gradient_checkpointing_changes_nothing(model_folder, tmp_path, tokenizer, device):
    loss, gradient = step_of(device, model_folder, tmp_path / "a", tokenizer)
    again, recomputed = step_of(device, model_folder, tmp_path / "b", tokenizer, gradient_checkpointing=True)
    assert again == pytest.approx(loss, rel=1e-5)
    assert relative_difference(recomputed, gradient) < 1e-4


@on_each_device
@pytest.mark.parametrize("source", ["policy", "base"])
def test_a_training_in_nf4_lowers_the_loss(model_folder, tmp_path, tokenizer, nf4, device, source):
    """End to end: sampling, the anchor, checkpointing, bfloat16 adapters as TRL makes them."""
    lora = LoraConfig(r=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(
        model_folder, tmp_path, tokenizer, peft_config=lora, quantization_config=nf4, use_cpu=device == "cpu",
        warmup_source=source, warmup_anchor=0.3, gradient_checkpointing=True, max_steps=12, learning_rate=2e-2,
        logging_steps=4, warmup_pool_size=3,
    )  # fmt: skip
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.8 * losses[0]


# ---- What is made of an adapter ----


@pytest.fixture(scope="module")
def nf4_adapter(tmp_path_factory, model_folder, tokenizer):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("gpu") / "adapter"
    model = random_adapter(model_folder, lora, quantization)
    return save_adapter(folder, model.cpu(), tokenizer, model_folder, quantization)


@on_each_device
def test_a_merged_model_answers_as_the_adapter_does(nf4_adapter, tmp_path, device):
    """Merged on the device; the error is that of logits against the adapter's there."""
    report = merge_adapter(nf4_adapter, tmp_path / "merged", device=device)
    assert report.relative_logit_error < 1e-3
    loading = Loading(device=device)
    answers = [answer_of(load_folder(folder, loading), folder) for folder in (nf4_adapter, tmp_path / "merged")]
    assert answers[0] == answers[1]


def answer_of(loaded, folder, **how) -> list[int]:
    inputs = loaded.tokenizer("Q: one?", return_tensors="pt").to(loaded.model.device)
    how = how or {"custom_generate": warmup_generate, "warmup_config": str(folder)}
    return loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False, **how)[0].tolist()


@on_each_device
def test_the_exported_decoder_answers_as_the_package_does(nf4_adapter, device):
    export_decoding(nf4_adapter)
    loaded = load_folder(nf4_adapter, Loading(device=device))
    own = answer_of(loaded, nf4_adapter)
    alone = answer_of(loaded, nf4_adapter, custom_generate=str(nf4_adapter), trust_remote_code=True)
    assert alone == own
    assert len(own) > len("Q: one?")


# ---- Memory ----


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("load_in_4bit", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_peak_memory_is_what_was_predicted(tmp_path, device, load_in_4bit, checkpointing):
    """`bench` measures the allocator's peak with AdamW's states, and predicts it without a device."""
    result = tmp_path / "bench.json"
    argv = argv_of(
        "bench", shape="small-llama-3-vocabulary", load_in_4bit=load_in_4bit, dtype="bfloat16", steps=2, batch_size=2,
        gradient_checkpointing=checkpointing, output_file=result,
    )  # fmt: skip
    assert main([*argv, "--arms", "sft", "plain", "shared"]) == 0
    predicted = {arm["arm"]: arm for arm in json.loads(result.read_text())["arms"] if arm.get("predicted_bytes")}
    assert set(predicted) == {"plain", "shared"}
    for arm in predicted.values():
        assert arm["peak_bytes"] == pytest.approx(arm["predicted_bytes"]["total"], rel=0.15)
