# Thin aliases; docs/install.md explains the commands behind them. Every target sets itself up.
PYTHON ?= python3
BIN := .venv/bin
# torch is named first, in the same command as everything else: a package that needs torch would bring another build.
# pip takes a CPU build of it where it is offered one (see docs/install.md).

.PHONY: setup demo test test-all lint bench clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt setup.py $(wildcard csrc/*/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastmtl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch numpy setuptools pybind11 -e '.[train,wsi,models,dev,bench]'
	@touch $@

demo: setup
	$(BIN)/fastmtl train demo

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf .venv build dist *.egg-info fastmtl/*.so
