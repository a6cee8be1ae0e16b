# Everything here does its own set-up first; with that done it starts at once.
#
#   make setup BACKEND=cpu|gpu    default: gpu where nvidia-smi works
#   make setup PYTHON=python3.12  default: the first python3 found from 3.11 to 3.14

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

BIN := .venv/bin
export BACKEND PYTHON
# The demo's port for `make serve`; `make demo` takes a free one.
PORT ?= 8000
# Where `make gpu-kit` writes; further flags of scripts/gpu_kit.py in GPU_KIT.
OUT ?= dist/gpu-kit
# One thread a process: with two threads each they would wait for one another. `-n auto` is a
# process a core and one more, since tests wait for what they start (tests/conftest.py).
# tests/support/groups.py says what one process runs together, and what comes first.
PARALLEL := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
    -n auto --dist loadscope --no-loadscope-reorder --maxprocesses 5

.PHONY: help setup ready demo fit-demo serve test test-unit test-engine test-processes test-v2 test-resilience test-traffic test-architectures lint audit demo-policies gpu-kit setup-train test-train eval-training lock clean

help: ## list these commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

setup: ## make .venv with everything in it (the others do this by themselves)
	@scripts/setup.sh

ready:
	@scripts/setup.sh --quiet

demo: ready ## mix the demo policies, and prompts of one model, and show what the weights do (two minutes)
	@$(BIN)/python -m prefmix.policies.demo.tour

fit-demo: ready ## fit the sharp demo policies' weights in every way and show what they buy (minutes)
	@$(BIN)/python -m examples.fit_story

serve: ready ## serve the demo policies until Ctrl-C (PORT=8000)
	@printf '%s\n' 'Starting. When the table appears, try in a second terminal:' '' \
	    '  curl -s http://127.0.0.1:$(PORT)/v1/chat/completions -H "content-type: application/json" \' \
	    "    -d '{\"model\": \"demo\", \"messages\": [{\"role\": \"user\", \"content\": \"Review the Park Hotel.\"}]," \
	    "         \"max_tokens\": 80, \"preference_weights\": {\"positive\": 1, \"concise\": 2}}'" ''
	@exec $(BIN)/prefmix serve policies/demo/serve.yaml --port $(PORT)

test: test-unit test-engine ## unit tests, then engines and servers on a CPU (six and a half minutes on two quiet cores)
	@$(BIN)/python tests/support/tools.py

test-unit: ready ## the fast tests: no engine, two and a half minutes on two quiet cores
	@$(PARALLEL) tests/unit

test-engine: ready ## the tests on a real vLLM engine (what vLLM warns of is only counted)
	@$(PARALLEL) -m engine --disable-warnings tests/engine tests/server

test-processes: ready ## ranks, nodes, API processes, kills, an attacker, the console in a browser, the V2 runner, scripts, documents (ten minutes)
	@$(PARALLEL) -m engine --disable-warnings tests/processes

test-v2: ready ## every layout on vLLM's V2 model runner, interpreted (a quarter of an hour)
	@PREFMIX_TEST_RUNNER=v2 $(BIN)/python -m pytest -m engine tests/engine/test_exactness.py tests/engine/test_async_scheduling.py \
	    tests/engine/test_layouts.py tests/engine/trunk tests/engine/test_lm_heads.py \
	    tests/engine/test_broken_rows.py tests/engine/checkpoints/test_vocabularies.py \
	    tests/engine/prompts

test-resilience: ready ## load, faults, hostile input, kills and an hour of soak (PREFMIX_RESILIENCE=short: minutes)
	@PREFMIX_RESILIENCE=$${PREFMIX_RESILIENCE:-full} $(BIN)/python -m pytest -m resilience \
	    --timeout 0 --disable-warnings tests/resilience

test-traffic: ready ## random requests to models with attention windows and to policies with own prompts, 1,900 of them (about two minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m engine --disable-warnings tests/architectures

test-architectures: ready ## try every architecture in both layouts, write docs/architectures.md (half an hour)
	@PYTHONPATH=tests $(BIN)/python -m architectures $(ARCHITECTURES)

gpu-kit: ready ## pack vLLM and prefmix for an offline GPU machine (OUT=dist/gpu-kit)
	@$(BIN)/python scripts/gpu_kit.py $(OUT) $(GPU_KIT)

setup-train: ready ## add what `prefmix train` needs (TRL, PEFT) to .venv
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements/train.txt

test-train: setup-train ## tests that train tiny models for a few steps, and of adapters that PEFT writes
	@$(BIN)/python -m pytest -m train tests/unit/policies tests/unit/mixing/checkpoints

eval-training: setup-train ## compare the ways to train, on the demo's reference (about half an hour)
	@$(BIN)/python -m examples.training_comparison

lint: ready ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

audit: ready ## licences of all packages, and their known vulnerabilities
	@$(BIN)/python scripts/licences.py
	@$(BIN)/python scripts/audit.py

demo-policies: setup-train ## train the demo policies again from their seed (ten minutes)
	@$(BIN)/python -m prefmix.policies.demo.build --output policies/demo/checkpoints --seed 0
	@$(BIN)/python -m prefmix.policies.demo.build_sharp --output policies/demo/sharp --seed 0
	@$(BIN)/python -m prefmix.policies.demo.build_instructed --output policies/demo/instructed --seed 0

lock: ready ## write requirements/cpu.lock from what .venv holds
	@scripts/lock.sh

clean: ## remove .venv, caches and logs
	@rm -rf .venv .prefmix .mypy_cache .ruff_cache .pytest_cache build src/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
