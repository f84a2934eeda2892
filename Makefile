# Two commands: `make run` shows the pipeline at work on real models, `make test` proves it.
.PHONY: help setup run test lint types contracts package schemas bench bench-speed zoo image attacks clean
TOOLCHAINS ?=
# How many processes run tests, each a file at a time: they wait as often as they compute.
JOBS ?= 2
export TOOLCHAINS
export MODELIUM_HOME ?= $(CURDIR)/.modelium
PY := .venv/bin/python -P

help:
	@echo "make run      set up, start the pipeline, drop the example models in, show them deployed"
	@echo "make test     set up what tests need and pass them"
	@echo "make setup    only the environment (.venv); TOOLCHAINS=\"openvino boosting\" adds toolchains"
	@echo "make lint     ruff, mypy --strict, import contracts"
	@echo "make bench    the pipeline against a bare script, and what it costs at rest"
	@echo "make bench-speed  our best candidates against eager torch, Optimum and Olive"
	@echo "make zoo      a whole zoo of models through the pipeline; writes docs/coverage.md"
	@echo "make image    the image of the Docker sandbox; BASE=python:3.11-slim or TOOLCHAINS=\"openvino\" change it"
	@echo "make attacks  every attack in every sandbox; writes the table in docs/security.md"
	@echo "make package  build the wheel and test it in an environment of its own"

setup:
	@./setup.sh

run: setup
	@$(PY) examples/demo.py

test:
	@TOOLCHAINS="$(or $(TOOLCHAINS),$(notdir $(basename $(wildcard executor/toolchains/*.txt))))" ./setup.sh dev
	@tests/services.sh
	.venv/bin/pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: types contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	@./setup.sh dev
	.venv/bin/mypy

contracts:
	@./setup.sh dev
	.venv/bin/lint-imports

schemas: setup
	$(PY) -m schemas.published

package:
	@./setup.sh dev
	tests/package.sh

bench: setup
	$(PY) bench/run.py

bench-speed: setup
	$(PY) bench/speed.py $(ARGS)

attacks:
	@./setup.sh dev
	.venv/bin/python -P tests/attacks.py $(ARGS)

zoo: setup
	$(PY) bench/zoo/run.py $(ARGS)

image: setup
	$(PY) images/sandbox/build.py $(if $(BASE),--base $(BASE)) $(TOOLCHAINS)

clean:
	rm -rf .venv .toolchains .modelium .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist build
