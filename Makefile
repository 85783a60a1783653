# Set up and run dcpbench from a checkout. Needs Linux, git and Python >= 3.11; everything else goes into .venv.
#
#   make demo     set up what the program needs, then the main job: dcpbench tune quick
#   make test     set up what its tests need too, then those that this machine can run
#   make lint     ruff: rules and format          make format   apply them
#   make types    mypy --strict on both packages
#   make docs     the pages as a site in build/site; a link or an anchor that leads nowhere fails
#   make clean    remove everything that make made, measured results excepted
#
# Variables:
#   PYTHON=python3.12         the interpreter for .venv
#   VENV=PATH                 another environment than .venv; one that is there keeps what fits
#   CONSTRAINTS=              do not pin torch (or name another constraints file)
#   TORCH_INDEX=URL           where to take torch from besides the default index. Without a GPU, PyTorch's own index
#                             of CPU builds saves gigabytes.
#   PIP_FLAGS=, PYTEST_FLAGS=, SWEEP=quick
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
TORCH_INDEX ?=
PIP_FLAGS ?=
PYTEST_FLAGS ?=
SWEEP ?= quick

BIN := $(VENV)/bin
PROGRAM := $(VENV)/.ready
READY := $(VENV)/.ready-dev
INSTALL = $(BIN)/python -m pip install $(PIP_FLAGS) $(addprefix --extra-index-url ,$(TORCH_INDEX)) \
  $(addprefix --constraint ,$(CONSTRAINTS)) --editable

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types docs clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup: $(READY)

# A stamp comes last, so that an interrupted set-up is taken up again.
$(PROGRAM): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"dcpbench needs Python 3.11 or newer, not {sys.version.split()[0]}: make … PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	@touch $@

$(READY): $(PROGRAM)
	$(INSTALL) '.[dev]'
	@touch $@

demo: $(PROGRAM)
	$(BIN)/dcpbench tune $(SWEEP)

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(READY)
	$(BIN)/mypy

# Pages lie in the site as they lie here, so that a link serves on GitHub too.
docs: $(READY)
	rm -rf build/pages
	mkdir -p build/pages/results
	cp -R README.md CHANGELOG.md CONTRIBUTING.md docs build/pages
	cp -R results/reference build/pages/results
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find dcp_core bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
