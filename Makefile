# make demo: all set-up, then bake, boot, and ask the example pod.   make test: all set-up, then every test.
.PHONY: setup setup-tests demo test lint bench docs clean
PYTHON ?= python3
BIN := .venv/bin

setup:
	@PYTHON=$(PYTHON) sh scripts/setup.sh

setup-tests:
	@PYTHON=$(PYTHON) sh scripts/setup.sh tests

demo: setup
	@$(BIN)/python scripts/demo.py

lint: setup-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@sh scripts/test.sh

bench: setup
	$(BIN)/python -m bench.bench

docs: setup
	$(BIN)/imagebuilder docs certificates > docs/certificates.md
	$(BIN)/imagebuilder docs checks > docs/checks.md
	$(BIN)/imagebuilder docs errors > docs/errors.md
	$(BIN)/imagebuilder docs steps > docs/steps.md
	$(BIN)/imagebuilder docs transports > docs/transports.md

clean:
	rm -rf .venv out build dist
