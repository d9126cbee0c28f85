# Everything a user or contributor runs. Each target makes its own environment first; a second run skips that.
#   make demo   install, and report on the built-in model     make test   lint, types and all quick tests
#   make soak   the long tests                                make bench  timings of this machine
#   make docs   regenerate docs/reference and completions/    make demo-model   train the built-in model again (an hour)

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# What a user needs, and what a contributor needs on top.
INSTALLED := $(VENV)/.installed
DEVELOPING := $(VENV)/.developing
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_REPORT := demo-report

# One thread per test worker: more only makes them fight for the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo demo-model demo-dense test soak lint types fix bench docs clean

demo: $(INSTALLED)
	@$(BIN)/moectl route-stats demo --tokens 16k --output $(DEMO_REPORT) --overwrite
	@echo 'The report: $(CURDIR)/$(DEMO_REPORT)/report.html'

# Continues where it was interrupted; `make demo-dense` trains the dense model of the same recipe.
demo-model: $(DEVELOPING)
	$(BIN)/python demo/train.py
	$(BIN)/python demo/account.py

demo-dense: $(DEVELOPING)
	$(BIN)/python demo/train.py --dense

test: lint types
	$(TEST_ENV) $(BIN)/python -m pytest -m 'not soak' -n $(WORKERS) --dist loadfile

soak: $(DEVELOPING)
	$(TEST_ENV) MOECTL_SOAK=1 $(BIN)/python -m pytest -m 'soak or fuzz' -n $(WORKERS)

lint: $(DEVELOPING)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEVELOPING)
	$(BIN)/mypy

fix: $(DEVELOPING)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(DEVELOPING)
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(DEVELOPING)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) $(DEMO_REPORT) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moectl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(DEVELOPING): $(INSTALLED)
	$(PIP) -e '.[dev]'
	touch $@
