# Each target sets up what it needs in .venv by itself:   make demo | test | test-cluster | bench | lint | docs
# More arguments for the tool behind a target:            make test ARGS="-m 'not slow' tests/test_gram.py"
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-cluster bench lint docs

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
ARGS ?=
# What `make bench` runs: make bench BENCH=ctr ARGS="--quick". Options alone are those of the first two.
BENCH ?= $(if $(ARGS),compare flow,compare flow matrices graph robust video adapters adapters_split ctr channel scale)
# Several test processes with a BLAS pool each would fight for the cores, and benchmarks compare one thread with one.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

help:
	@sed -n '1,2s/^# //p' Makefile

demo: .venv/has-demo
	$(BIN)/streamsvd demo $(ARGS)

test: .venv/has-test
	$(ONE_THREAD) $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

test-cluster: .venv/has-cluster
	$(ONE_THREAD) $(BIN)/pytest -m cluster tests/engines $(ARGS)

docs: .venv/has-test
	$(ONE_THREAD) $(BIN)/pytest tests/test_docs.py $(ARGS)

bench: .venv/has-bench
	@for part in $(BENCH); do echo "== bench/$$part.py"; $(ONE_THREAD) $(BIN)/python bench/$$part.py $(ARGS) || exit 1; done

# A type checker does not read setuptools' mapping, so it is shown streamsvd.pipelines through links.
lint: .venv/has-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .venv/types/streamsvd
	@ln -sfn "$(CURDIR)/streamsvd/__init__.py" "$(CURDIR)/pipelines" .venv/types/streamsvd/
	$(BIN)/basedpyright

# One stamp for each extra, so that `make demo` installs no more than the demo needs.
.venv/has-%: pyproject.toml | $(BIN)/python
	@echo "installing streamsvd[$*] into .venv"
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "streamsvd needs Python 3.11 or newer, and none was found: install one, or name it (make PYTHON=/path/to/python3)"; exit 1; }
	$(PYTHON) -m venv .venv
