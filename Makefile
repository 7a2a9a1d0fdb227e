# Everything here makes its own virtual environment first: Python and make are all that is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test docs lint wheel venv

help:
	@echo "make demo   train a small network, deploy it, show the report"
	@echo "make test   run the tests"
	@echo "make docs   run what README and docs show, with the blocks that take long"
	@echo "make lint   ruff and mypy"
	@echo "make wheel  build dist/edgeq-*.whl"

demo: $(READY)
	EDGEQ=$(BIN)/edgeq PYTHON=$(BIN)/python examples/demo.sh build/demo

test: $(READY)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

docs: $(READY)
	EDGEQ_SLOW_DOCS=1 $(BIN)/python -m pytest tests/test_docs.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

venv: $(READY)

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "requirements-dev.lock needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
# On all cores, which pip does not. Where PYTHONDONTWRITEBYTECODE is set, every start would compile torch again, for 1.5 s;
# two files among the packages are of another Python and do not compile.
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib edgeq || true
	touch $@
