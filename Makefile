# make demo    install into .venv and run the demonstration (a few minutes on a CPU)
# make test    run the tests that need no GPU
# make lint    ruff and pyright
# make wheel   build dist/nlft-*.whl
#
# Variables:
#   PYTHON=python3.12     the interpreter behind .venv (3.10 or newer)
#   TORCH=torch==2.12.1   another torch than the pinned one: anything `pip install` takes, a wheel's path too
#   PYTEST_FLAGS="-n 8"   flags for pytest; a process for every core by default, four at most
#
# A machine that has the right torch already (a GPU image, a cluster module) lends it to .venv, and nothing
# of torch is fetched:
#   make demo VENV_FLAGS=--system-site-packages TORCH=torch

PYTHON ?= python3
VENV ?= .venv
VENV_FLAGS ?=
TORCH ?=
PYTEST_FLAGS ?= -n auto --maxprocesses 4

BIN := $(VENV)/bin
PINS := $(VENV)/constraints.txt

.PHONY: demo install test lint wheel clean

demo: $(VENV)/installed
	$(BIN)/nlft demo

install: $(VENV)/installed

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" $(PYTEST_FLAGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist

$(PINS): constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
ifeq ($(TORCH),)
	cp constraints.txt $@
else
	$(BIN)/python -m pip install "$(TORCH)"
	grep -v '^torch==' constraints.txt > $@
endif

$(VENV)/installed: $(PINS) pyproject.toml
	$(BIN)/python -m pip install -c $(PINS) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -c $(PINS) -e ".[dev]"
	touch $@
