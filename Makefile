# Everything happens in .venv, which is created when it is missing and updated when setup.cfg or the lock changes.
# The lock is constraints.txt: the exact version of every package, whichever of them an installation needs.
PYTHON ?= python3
BIN := .venv/bin
# With the locked setuptools: isolated builds would take the newest one.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation

.PHONY: help quickstart test test-slow test-long test-versions lint format docs lock remote-code clean

help:  ## Show what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/.installed  ## Real environments to a trained, loaded and evaluated policy, in minutes on a CPU
	$(BIN)/ldm quickstart

test: .venv/.installed-test  ## The tests, without those that run for minutes
	$(BIN)/python -m pytest -m "not slow and not long" --numprocesses auto --dist loadfile

test-slow: .venv/.installed-test  ## The tests that run for minutes: the whole quickstart, several training processes
	$(BIN)/python -m pytest -m "slow and not alone and not long" --numprocesses auto --dist loadfile --durations 20
	$(BIN)/python -m pytest -m "slow and alone and not long" --durations 5

test-long: .venv/.installed-test  ## Further tests that run for minutes, which are not part of .ci/run: the whole of `ldm solve`, a node that is killed, repetitions
	$(BIN)/python -m pytest -m long

test-versions: .venv/.installed  ## The oldest and newest releases that setup.cfg allows, on the oldest and newest Python; about 30 minutes
	$(BIN)/python scripts/test_versions.py --folder runs/versions

lint: .venv/.installed-test  ## Style, docstrings, types, words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_words.py

format: .venv/.installed-test  ## Bring the code into the form that lint wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.installed-test  ## The documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

lock: .venv/bin/python  ## Resolve setup.cfg again, for all Pythons; ARGS=--upgrade takes newer releases
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate \
		--custom-compile-command "make lock" --output-file constraints.txt $(ARGS) setup.cfg

remote-code: .venv/.installed-test  ## Copy the model's code to the checkpoints in pretrained/
	$(BIN)/python scripts/update_remote_code.py

clean:  ## Remove .venv and what tools left
	rm -rf .venv build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "ldm_hf needs Python 3.10 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/.installed: setup.cfg pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing ldm_hf into .venv (PyTorch included: this takes a few minutes the first time)" >&2
	$(INSTALL) setuptools
	$(INSTALL) --editable '.[all]'
	@touch $@

.venv/.installed-test: .venv/.installed
	$(INSTALL) --editable '.[test]'
	@touch $@
