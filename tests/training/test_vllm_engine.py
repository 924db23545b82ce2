"""TRL's generation class under a training of warmups: weights that arrive, options, and a base that stays as it is."""

from __future__ import annotations

import inspect

import pytest
import torch
import vllm_double
from peft import get_peft_model
from trainers import make_trainer, randomise_adapter
from transformers import AutoModelForCausalLM
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from warmup_peft.training.vllm_engine import base_weights_kept

SLEEPING = {"vllm_enable_sleep_mode": True}
SERVER = {"vllm_mode": "server", "vllm_server_base_url": "http://somewhere:8123"}


@pytest.fixture
def vllm(monkeypatch, model_folder):
    vllm_double.install(monkeypatch, model_folder)


def vllm_trainer(model_folder, tokenizer, lora, tmp_path, **settings):
    settings = {"use_vllm": True, "objective": "jensen", "logging_steps": 1, **settings}
    return make_trainer(model_folder, tmp_path, tokenizer, peft_config=lora, **settings)


def engine_of(trainer):
    engine = trainer.source.sampler.engine
    return engine.llm if engine.mode == "colocate" else engine.vllm_client.llm


@pytest.mark.parametrize("name", ["__init__", "init_communicator", "get_server_info", "update_named_params",
                                  "reset_prefix_cache", "generate"])  # fmt: skip
def test_the_double_of_the_client_takes_what_the_client_takes(name):
    double, own = (inspect.signature(getattr(kind, name)) for kind in (vllm_double.VLLMClient, VLLMClient))
    assert [(x.name, x.kind, x.default) for x in double.parameters.values() if x.name != "device"] == [
        (x.name, x.kind, x.default) for x in own.parameters.values() if x.name != "device"
    ]


@pytest.mark.parametrize("settings", [{}, SLEEPING, SERVER], ids=["colocate", "asleep", "server"])
def test_vllm_has_the_weights_of_each_step(vllm, model_folder, tokenizer, lora, tmp_path, settings):
    trainer = vllm_trainer(model_folder, tokenizer, lora, tmp_path, max_steps=2, learning_rate=1e-2,
                           per_device_train_batch_size=2, gradient_accumulation_steps=2, **settings)  # fmt: skip
    randomise_adapter(trainer.model)
    ids, seen = torch.tensor([[5, 6, 7]]), []
    sample = trainer.sample_warmups

    def recording(model, encoded):
        warmups = sample(model, encoded)
        if settings != SLEEPING:
            with torch.no_grad():
                seen.append((engine_of(trainer).model(ids).logits, model(ids).logits))
        assert warmups.log_ratio.abs().max() < 1e-3  # of up to six tokens
        return warmups

    trainer.sample_warmups = recording
    trainer.train()
    for theirs, ours in seen:
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert engine_of(trainer).resets == (4 if settings == SLEEPING else 2)  # one that slept has lost its weights
    logs = trainer.state.log_history[0]
    assert 0 <= logs["warmups/engine_difference"] < 1e-3
    assert logs["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-3)


def test_weights_that_were_loaded_arrive_though_no_step_was_done(vllm, model_folder, tokenizer, lora, tmp_path):
    trainer = vllm_trainer(model_folder, tokenizer, lora, tmp_path)
    trainer.evaluate(trainer.train_dataset)
    before = engine_of(trainer).resets
    trainer.model.load_state_dict({name: x + 0.01 for name, x in trainer.model.state_dict().items() if "lora" in name},
                                  strict=False)  # fmt: skip
    trainer.evaluate(trainer.train_dataset)
    assert (before, engine_of(trainer).resets) == (1, 2)


def test_options_reach_vllm(vllm, model_folder, tokenizer, lora, tmp_path):
    trainer = vllm_trainer(model_folder, tokenizer, lora, tmp_path, vllm_gpu_memory_utilization=0.25,
                           vllm_max_model_length=99, vllm_model_impl="transformers", temperature=0.8, top_k=7,
                           top_p=0.9, min_p=0.01)  # fmt: skip
    llm = engine_of(trainer)
    expected = {"gpu_memory_utilization": 0.25, "max_model_len": 99, "model_impl": "transformers"}
    assert {name: llm.options[name] for name in expected} == expected
    assert llm.options["max_num_seqs"] == 8 * 3  # the evaluation's batch is the larger one
    trainer.train()
    (prompts, params), *_ = llm.asked
    assert len(prompts) == 3 * 4
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 7, 0.9, 0.01)
    assert (params.max_tokens, params.logprobs, params.repetition_penalty) == (5, 0, 1.0)
    assert set(trainer.sampling.end_token_ids) <= set(params.stop_token_ids)


def test_the_servers_address_and_patience_reach_it(vllm, model_folder, tokenizer, lora, tmp_path):
    vllm_trainer(model_folder, tokenizer, lora, tmp_path, vllm_server_timeout=3.0, vllm_group_port=7, **SERVER)
    (client,) = vllm_double.VLLMClient.servers
    assert (client.base_url, client.connection_timeout, client.group_port) == (SERVER["vllm_server_base_url"], 3.0, 7)


def test_a_server_that_is_not_there_is_a_sentence(monkeypatch, model_folder, tokenizer, lora, tmp_path):
    vllm_double.install(monkeypatch)
    with pytest.raises(ValueError, match=r"can't be reached at http://0\.0\.0\.0:8000 .*vllm_server_host"):
        vllm_trainer(model_folder, tokenizer, lora, tmp_path, vllm_mode="server")


def test_a_server_that_reports_another_distribution_is_refused(
    vllm, monkeypatch, model_folder, tokenizer, lora, tmp_path
):
    monkeypatch.setattr(vllm_double.VLLMClient, "logprobs_mode", "raw_logprobs")
    vllm_trainer(model_folder, tokenizer, lora, tmp_path, **SERVER)  # of temperature 1 they are the same
    with pytest.raises(ValueError, match="--logprobs-mode processed_logprobs"):
        vllm_trainer(model_folder, tokenizer, lora, tmp_path, temperature=0.7, **SERVER)


def bfloat16_model(model_folder, lora):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16), lora)
    randomise_adapter(model)
    return model


def base_of(model):
    return {name: x.clone() for name, x in model.named_parameters() if "lora" not in name}


def test_the_base_is_bit_for_bit_what_it_was(vllm, model_folder, tokenizer, lora, tmp_path):
    model = bfloat16_model(model_folder, lora)
    trainer = make_trainer(model, tmp_path, tokenizer, use_vllm=True, warmup_anchor=0.0)
    before, engine = base_of(trainer.model), trainer.source.sampler.engine
    for _ in range(3):
        engine.sync_weights()
    assert all(torch.equal(x, before[name]) for name, x in base_of(trainer.model).items())
    VLLMGeneration.sync_weights(engine)  # TRL's own way
    assert not all(torch.equal(x, before[name]) for name, x in base_of(trainer.model).items())


def test_the_base_comes_back_after_an_error(model_folder, lora):
    model = bfloat16_model(model_folder, lora)
    before = base_of(model)

    def fail_on_the_way():
        with base_weights_kept(model):
            model.merge_adapter()
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail_on_the_way()
    assert all(torch.equal(x, before[name]) for name, x in base_of(model).items())
