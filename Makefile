# Every target does its own set-up: a virtual environment in .venv with pinned packages. Needs Python ≥ 3.10 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help pretrain test lab export notebooks clean

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

test: $(READY)  ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --timeout 900 --durations 12 tests

lab: $(READY)  ## open the course in JupyterLab
	$(BIN)/jupyter lab nbs/index.ipynb

export: $(READY)  ## write be_nb/ and README.md from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/python tests/notebooks.py readme

notebooks: $(READY)  ## run all notebooks and store their outputs
	OMP_NUM_THREADS=1 $(BIN)/python tests/notebooks.py run nbs/*.ipynb nbs/*/*.ipynb

clean:  ## delete the environment, runs and build products (not your notebooks)
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
