# Everything a clone needs. `make` alone lists the targets.
#
# Variables:
#   DATA=path      the log that `make demo` trains on (a file, or a folder of a known data set); default: a generated one
#   ARGS="..."     extra arguments: key=value overrides for demo, pytest arguments for test
#   PYTHON=...     the interpreter the environment is made from (3.11 or newer); default: the first one found
#   PIP_ARGS="..." extra arguments for every `pip install`, for instance where to find another build of torch:
#                    make clean setup PIP_ARGS="--extra-index-url URL"
#                  with the URL that pytorch.org's installation page names for your machine. The default build of torch on
#                  Linux brings gigabytes of CUDA libraries along; the one for CPU is much smaller and all that a laptop needs.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(or $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done),python3)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

# Spinning OpenMP threads make small steps many times slower as soon as another job shares the machine.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test soak lint types check clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1	\2/p' Makefile | expand -t 16
	@echo 'Variables (DATA, ARGS, PYTHON, PIP_ARGS) are described at the top of the Makefile.'

demo: $(VENV)/.core ## train, evaluate and recommend on a small generated log; DATA=path takes your own
	$(BIN)/largerec run recipes/quickstart.toml run.dir=runs/demo run.overwrite=true $(if $(DATA),"data.path=$(DATA)") $(ARGS)

# A file's tests stay in one process, so that what they share is made once.
test: $(VENV)/.dev ## run all tests on two processes; ARGS="-k name" runs some
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.dev ## check formatting and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev ## check types, strictly
	MYPYPATH=benchmarks $(BIN)/mypy --strict src benchmarks

soak: $(VENV)/.dev ## throw many thousands of malformed files at the readers; ARGS, LARGEREC_EXAMPLES
	LARGEREC_EXAMPLES=$${LARGEREC_EXAMPLES:-10000} OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_malformed.py $(ARGS)

# Three makes in a row, so that `make -j check` still reports them one by one, the cheap ones first.
check: ## lint, types and test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory test

setup: $(VENV)/.dev ## make .venv with everything that development needs

clean: ## remove .venv, caches and build outputs; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The files .made, .core and .dev are stamps: an install that was broken off is done again, one that is current is not.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: LargeRec needs Python 3.11 or newer, and '$(PYTHON) --version' says: $$($(PYTHON) --version 2>&1)" >&2; \
		echo "       Install one (Debian, Ubuntu: apt-get install python3.11) or name one: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "error: '$(PYTHON)' cannot make virtual environments: its venv module is not installed." >&2; \
		echo "       Debian, Ubuntu: apt-get install python3-venv (or python$$version-venv)" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone: the resolver then never considers another build of it.
$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@
