# Everything a user or contributor runs. Each target makes its own environment first; a second run skips that.
#   make demo   install, and how to start        make test   lint, types and all quick tests
#   make soak   the long tests                   make bench  timings of this machine
#   make docs   regenerate docs/reference and completions/

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# One thread per test worker: more only makes them fight for the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test soak lint types fix bench docs clean

demo: $(INSTALLED)
	@$(BIN)/moectl --version
	@echo 'A demo model is not part of this version yet. On a checkpoint and a text of your own:'
	@echo '    $(BIN)/moectl route-stats path/to/checkpoint --data some-text.txt --tokens 10k'

test: lint types
	$(TEST_ENV) $(BIN)/python -m pytest -m 'not soak' -n $(WORKERS) --dist loadfile

soak: $(INSTALLED)
	$(TEST_ENV) MOECTL_SOAK=1 $(BIN)/python -m pytest -m 'soak or fuzz' -n $(WORKERS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy

fix: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED)
	@for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(INSTALLED)
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moectl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
