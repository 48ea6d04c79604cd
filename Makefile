# gliofed: `make run` and `make test` need Python 3.11, git, make and a C++20 compiler; all else they install.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
KERNEL_SOURCES := $(wildcard CMakeLists.txt kernels/csrc/*.* kernels/csrc/*/*.*)
# The DALI plugin is built against DALI and CUDA's headers in the environment itself, which pip's isolated builds hide.
BUILD_NEEDS := scikit-build-core nanobind cmake ninja nvidia-dali-cuda130 'cuda-toolkit[cudart,crt,cccl]'
SUITE ?= kernels
SANITIZED := build/sanitize/.installed
SECONDS := 60

.DEFAULT_GOAL := help
.PHONY: help setup run test sanitize fuzz lint format bench lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv: pinned dependencies, compiled kernels, the command gliofed

$(STAMP): pyproject.toml requirements.lock $(KERNEL_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint requirements.lock $(BUILD_NEEDS)
	PATH=$(CURDIR)/$(BIN):$$PATH $(INSTALL) --constraint requirements.lock --no-build-isolation --editable '.[train,dali,grpc,ray-serve,dev]'
	touch $(STAMP)

run: setup ## Train the demo on embedded data: at most 5 minutes on 2 cores
	$(BIN)/gliofed train configs/demo.yaml $(ARGS)

# Two processes: one for the tests that share training jobs, which mostly wait, and one for all else.
test: setup ## Run all tests
	mkdir -p build
	$(BIN)/python -m pytest -m jobs > build/test-jobs.log 2>&1 & jobs=$$!; \
	$(BIN)/python -m pytest -m 'not jobs'; others=$$?; \
	wait $$jobs; ended=$$?; cat build/test-jobs.log; exit $$((others | ended))

# A second build of the package kernels, beside which nothing of ours is installed: -S leaves out the editable one.
# NumPy's and Python's own memory must come from the sanitizer's malloc, hence the preloaded libraries.
$(SANITIZED): $(STAMP) $(wildcard kernels/*.py tests/kernels/native/*.*)
	PATH=$(CURDIR)/$(BIN):$$PATH $(INSTALL) --no-build-isolation --no-deps --upgrade --target build/sanitize/tree \
	  --config-settings=build-dir=build/sanitize/cmake --config-settings=cmake.build-type=RelWithDebInfo \
	  --config-settings=cmake.define.GLIOFED_SANITIZE=ON --config-settings=wheel.packages=kernels .
	touch $(SANITIZED)

sanitize: $(SANITIZED) ## The kernels' tests and 15 s of fuzzing under AddressSanitizer and UBSan
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	export PYTHONPATH=$(CURDIR)/build/sanitize/tree:$(CURDIR):$$site PYTHONMALLOC=malloc; \
	export ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=268435456 UBSAN_OPTIONS=print_stacktrace=1; \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  $(BIN)/python -P -S -m pytest -p no:cacheprovider tests/kernels $(ARGS)
	cd build/sanitize && cmake/gliofed_fuzz 15

fuzz: $(SANITIZED) ## Random images through all twins of the kernels: make fuzz SECONDS=600
	cd build/sanitize && cmake/gliofed_fuzz $(SECONDS)

lint: setup ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure a suite against its peers: make bench SUITE=kernels [ARGS=--check]
	$(BIN)/python -m benchmarks $(SUITE) $(ARGS)

lock: ## Resolve the newest allowed versions in a new environment and write requirements.lock
	rm -rf build/lock-venv && $(PYTHON) -m venv build/lock-venv
	build/lock-venv/bin/pip install --quiet $(BUILD_NEEDS)
	PATH=$(CURDIR)/build/lock-venv/bin:$$PATH build/lock-venv/bin/pip install --quiet --no-build-isolation --editable '.[train,dali,grpc,ray-serve,dev]'
	{ echo '# Exact versions of everything that make setup installs (pip constraints). Refresh: make lock'; \
	  build/lock-venv/bin/pip freeze --exclude-editable; } > requirements.lock

clean: ## Remove the environment and build outputs; runs and caches stay
	rm -rf $(VENV) build
