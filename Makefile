# Thin aliases; docs/install.md explains the commands behind them. Every target sets itself up.
PYTHON ?= python3
BIN := .venv/bin
# torch is named first, in the same command as everything else: a package that needs torch would bring another build.
# pip takes a CPU build of it where it is offered one (see docs/install.md).

.PHONY: setup demo test test-fast test-all fuzz chaos lint site bench clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt setup.py $(wildcard csrc/*/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastmtl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch numpy setuptools pybind11 -e '.[train,wsi,dicom,zarr,models,dev,bench]'
	@touch $@

demo: setup
	$(BIN)/fastmtl train demo

# One worker a core; a worker keeps to its files as long as it can, for the fixtures that a file shares.
WORKERS := -n auto --maxprocesses 16 --dist worksteal

test: setup
	$(BIN)/python -m pytest -m "not slow" $(WORKERS)

# While you work: one case of each test that takes less than a second or two.
test-fast: setup
	$(BIN)/python -m pytest -m "not slow and not long" --one-case $(WORKERS)

test-all: setup
	$(BIN)/python -m pytest --check-launches $(WORKERS)

# Every reader of files on changed files: so many seconds for each.
FUZZ_SECONDS ?= 600
fuzz: setup
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz -m slow $(WORKERS)

# Kills, signals, full disks and damage on real trainings; writes the table of docs/reliability.md.
KILLS ?= 20
chaos: setup
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m helpers.chaos --kills $(KILLS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*/*)

# The documentation as web pages, in build/site; a broken link is an error.
site: setup
	$(BIN)/mkdocs build --strict

bench: setup
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf .venv build dist *.egg-info fastmtl/*.so
