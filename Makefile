# Two commands set everything up: `make bench` measures, `make test` checks. Both work in a fresh clone with Python 3.11+.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: bench test lint gate baseline catalogue families clean

bench: $(READY)            ## fetch model and text, run the quick suite, print the table, write the report
	$(BIN)/kvbench run --suite quick --out runs/quick
	$(BIN)/kvbench report runs/quick

test: lint                 ## ruff, types, the whole test suite, a process a core
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gate: $(READY)             ## measure the ci suite anew and compare it with the committed baseline
	rm -rf runs/ci
	$(BIN)/kvbench run --suite ci --out runs/ci
	$(BIN)/kvbench gate runs/ci --baseline results/baselines/ci.json

baseline: $(READY)         ## accept what the ci suite measures now
	rm -rf runs/ci
	$(BIN)/kvbench run --suite ci --out runs/ci
	$(BIN)/kvbench gate runs/ci --baseline results/baselines/ci.json --update

catalogue: $(READY)         ## write down what the compressors say of themselves, for `kvbench show` and `kvbench ls`
	$(BIN)/python tests/cli/catalogued.py

families: $(READY)         ## try a tiny model of every decoder family anew, for `kvbench ls families`
	$(BIN)/python tests/families/survey.py

clean:
	rm -rf $(VENV) runs build dist *.egg-info

# torch goes first: on its own it resolves to the CPU build where the index offers one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
