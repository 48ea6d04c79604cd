# gliofed: `make run` and `make test` need Python 3.11, git, make and a C++ compiler; all else they install.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNEL_SOURCES := $(wildcard CMakeLists.txt kernels/csrc/*.* kernels/csrc/*/*.*)

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv: pinned dependencies, compiled kernels, the command gliofed

$(STAMP): pyproject.toml requirements.lock $(KERNEL_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $(STAMP)

run: setup ## Train the demo on embedded data: at most 5 minutes on 2 cores
	$(BIN)/gliofed train configs/demo.yaml $(ARGS)

test: setup ## Run all tests
	$(BIN)/python -m pytest

lint: setup ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Resolve the newest allowed versions in a new environment and write requirements.lock
	rm -rf build/lock-venv && $(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/pip install --quiet --editable '.[dev]'
	{ echo '# Exact versions of everything that make setup installs (pip constraints). Refresh: make lock'; \
	  build/lock-venv/bin/pip freeze --exclude-editable; } > requirements.lock

clean: ## Remove the environment and build outputs; runs and caches stay
	rm -rf $(VENV) build
