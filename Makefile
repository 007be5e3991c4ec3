# make demo: install and run the embedded example. make test: install what the tests need and run them in two processes.
# make fuzz: feed damaged files to the commands. make torture: kill them at a write, fill the disk, run two at once.
# make test-lowest: run some of the tests with the lowest releases of the dependencies that pyproject.toml allows.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := $(VENV)-lowest
PROCESSES ?= 2
INPUTS ?= 1000
KILLS ?= 50
SEED ?= 0

.PHONY: demo test fuzz torture test-lowest lint types wheel clean

demo: $(VENV)/.installed
	$(BIN)/petriscope demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n $(PROCESSES) --dist worksteal tests/core tests/metrics tests/data tests/run \
		tests/models/test_weights.py tests/audit/test_label_errors.py tests/report/test_page.py
	$(LOWEST)/bin/petriscope train --help > $(LOWEST)/help.txt

fuzz: $(VENV)/.installed-dev
	cd tests && OMP_NUM_THREADS=1 PYTHONPATH=.:data ../$(BIN)/python -m trials.fuzz --inputs $(INPUTS) --seed $(SEED)

torture: $(VENV)/.installed-dev
	cd tests && OMP_NUM_THREADS=1 PYTHONPATH=.:data ../$(BIN)/python -m trials.torture --kills $(KILLS) --seed $(SEED)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Petriscope needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

$(LOWEST)/.installed: pyproject.toml .ci/lowest.py | $(VENV)/.installed-dev
	$(PYTHON) -m venv --clear $(LOWEST)
	$(BIN)/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install -q -c $(LOWEST)/constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist
