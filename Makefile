# Everything runs in a virtual environment, which is created when it is first needed. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin

HAS_GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
PROFILE ?= $(if $(HAS_GPU),qlora,relay)
OUTPUT ?= runs/logiqa
override OUTPUT := $(OUTPUT:%/=%)
MODEL ?=
DATA ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-gpu test-faults test-memory test-versions test-wheel wheel lint format recipe-logiqa compare-logiqa announce bench clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: $(VENV)/.ready  ## Create the virtual environment with the tested versions

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; a few minutes)..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e ".[qlora,dev]"
	@touch $@

RECIPE = --config recipes/logiqa/$(PROFILE).yaml $(if $(MODEL),--model_name_or_path $(MODEL)) $(if $(DATA),--dataset_name $(DATA))
TRAIN = $(BIN)/warmup-peft train $(RECIPE) --output_dir $(OUTPUT) $(ARGS)

# The small model's tensors are too small for two threads in training, which would only wait for each other. So the adapter
# and SFT are trained beside each other, and SFT has as many steps as fit into the adapter's seconds. Nothing is compiled,
# and importing torch's compiler takes two seconds in each process.
ifeq ($(PROFILE),relay)
recipe-logiqa compare-logiqa: export TORCHDYNAMO_DISABLE := 1
compare-logiqa: export OMP_NUM_THREADS := 1
SFT_STEPS ?= 275
SFT_LOG = $(OUTPUT)-sft.log
TRAIN_SFT = $(BIN)/warmup-peft sft $(RECIPE) --output_dir $(OUTPUT)-sft --max_steps $(SFT_STEPS) $(ARGS)
EVALUATE_ARGS := --sft $(OUTPUT)-sft --warmups own,shuffled,none --batch_size 64 --max_new_tokens 0
compare-logiqa: COMPARE_ARGS := --max_steps 120 --per_device_train_batch_size 16 --learning_rate 2e-3 \
	--hindsight_steps 50 --max_train_samples 3072 --task recipes/logiqa/relay/task.py --sampled_warmups 2 --eval_batch_size 128 --jobs 2

define TRAIN_BOTH
mkdir -p $(dir $(OUTPUT)); OMP_NUM_THREADS=1 $(TRAIN_SFT) > $(SFT_LOG) 2>&1 & sft=$$!; \
trap "kill $$sft 2> /dev/null" EXIT; trap "exit 130" INT TERM HUP; \
OMP_NUM_THREADS=1 $(TRAIN) || exit; \
wait $$sft || { tail -n 3 $(SFT_LOG); echo "SFT failed, see $(SFT_LOG). To start again: ARGS=--overwrite_output_dir"; exit 2; } >&2
endef
endif

recipe-logiqa: announce setup  ## Train, score and show a warmup adapter; takes PROFILE= MODEL= DATA= OUTPUT= ARGS= SFT_STEPS=
ifeq ($(PROFILE),relay)
	@echo "SFT, to compare the adapter with, is trained at the same time, on the second core. Its progress: $(SFT_LOG)"
	@$(TRAIN_BOTH)
else
	@$(TRAIN)
endif
	@$(BIN)/warmup-peft evaluate --adapter $(OUTPUT) $(EVALUATE_ARGS)

# SFT, also for as long as the slowest arm, every objective, and a control arm; three seeds each.
ARMS ?= base_model,sft,more_sft,paper,anchored,jensen,log_mean_exp,latro,verifree,rlpr,base_warmups,posterior,shuffled_warmup
SEEDS ?= 0,1,2
compare-logiqa: announce setup  ## Do warmups help? Every arm with every seed, and a report; takes ARMS= SEEDS= PROFILE= MODEL= DATA= ARGS=
	@$(BIN)/warmup-peft compare $(RECIPE) --output_dir $(OUTPUT)-compare \
		--arms $(ARMS) --seeds $(SEEDS) $(COMPARE_ARGS) $(ARGS)

announce:
	$(if $(findstring --output_dir,$(subst --overwrite_output_dir,,$(ARGS))),$(error Choose the folder with OUTPUT=, so that scoring finds it))
	@echo "LogiQA recipe, profile $(PROFILE): $(if $(filter $(origin PROFILE),command line environment),you chose it,$(if $(HAS_GPU),nvidia-smi answers,no NVIDIA GPU answers to nvidia-smi))."

bench: setup  ## Time a training step with and without warmups; takes ARGS=, such as "--shape llama-3.2-1b"
	@$(BIN)/warmup-peft bench $(ARGS)

# One thread each: two workers of two threads would only wait for each other.
test test-slow: export OMP_NUM_THREADS := 1
test: setup  ## Run the tests (no network, no GPU)
	@$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: setup  ## Run the tests that take minutes: every architecture of transformers, and more
	@$(BIN)/python -m pytest -m slow --ignore tests/faults

test-gpu: export WITH_GPU := 1
test-gpu: setup  ## Run the tests that need a CUDA GPU (NF4, attention, bf16, merging, memory)
	@$(BIN)/python -m pytest -m gpu -rs tests/gpu

KILLS ?= 20
test-faults: export OMP_NUM_THREADS := 1
test-faults: setup  ## Kill training, saving, sampling, merging and comparing KILLS= times each, and compare the results
	@KILLS=$(KILLS) $(BIN)/python -m pytest -m slow tests/faults

test-memory: setup  ## Does the memory of a training of 3,000 steps grow? Takes ARGS=, such as "--objective warmup"
	@$(BIN)/python tests/faults/memory.py $(ARGS)

test-versions: setup  ## Run a part of the suite with the oldest and the newest packages; takes ARGS=, such as "--python 3.12"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) uv
	@$(BIN)/python tests/versions.py $(ARGS)

test-wheel: setup  ## Build sdist and wheel, install each into an empty environment, and run a recipe from there
	@$(BIN)/python -m pytest -m slow tests/test_wheel.py

wheel: setup  ## Build sdist and wheel into dist/
	@mkdir -p dist
	@$(BIN)/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')" > /dev/null
	@ls dist

lint: setup  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup  ## Fix style
	@$(BIN)/ruff check --fix -q .
	@$(BIN)/ruff format -q .

clean:  ## Remove the virtual environment and the files that runs wrote
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
