# make demo: install, then the whole pipeline to the tables on generated data.   make test: install, then all checks.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-all lint bench install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mmseg needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time takes a few minutes)"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: install
	mmseg ablate --blocks residual,mbconv,mmbconv

lint: install
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# A worker for each core, and a file of tests to one of them: many tests wait for processes that they start.
PYTEST := python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m 'slow or not slow'

# Everything in reports/bench/ of this machine, which must have nothing else to do: most of a day, of which the two
# last commands are the most; they go on where they were, and train on camvid-small's data, see the README.
bench: install
	mmseg bench start-up
	mmseg bench execution
	mmseg bench data
	mmseg bench feed
	mmseg bench predict
	mmseg bench gains
	mmseg bench train
	mmseg bench growth
	mmseg bench calibration
	mmseg bench alike
	mmseg bench accuracy --hold-out 0006R0
	mmseg bench accuracy --hold-out 0006R0 --seconds 600

clean:
	rm -rf data runs .work mlflow.db mlflow.db-* mlruns mlartifacts
