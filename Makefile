# The targets that a person types; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,parity
BROWSER_EXTRAS = dev,browser
RUN = $(VENV)/bin/python -m robustbench_lab
TABLES ?=
PROFILE ?= paper
LAUNCHER ?=
CELLS ?= all
PLAN ?=

.DEFAULT_GOAL := help

help:  ## list these targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# Installed anew only when pyproject.toml changed. The check gives a readable error on an old Python.
$(VENV)/.installed-run $(VENV)/.installed-dev $(VENV)/.installed-browser: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make virtual environments (on Debian: apt install python3-venv)"; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.$(if $(findstring dev,$@),[$(EXTRAS)])$(if $(findstring browser,$@),[$(BROWSER_EXTRAS)])'
	@touch $@ $(VENV)/.installed-run

install: $(VENV)/.installed-run  ## make .venv and install the project into it

smoke: $(VENV)/.installed-run  ## train the undefended model and FM on embedded digits, attack both, print a table, write the report (3 minutes on a CPU)
	$(RUN) reproduce 'tables=[smoke/digits]'

test: $(VENV)/.installed-dev  ## lint, types and the quick tests (7 minutes on 2 cores)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n auto

test-all: test test-launchers  ## make test, then test-launchers (13 minutes on 2 cores)

reproduce-tables: $(VENV)/.installed-run  ## train and evaluate what tables miss: TABLES="fm/table1 smoke/*" PROFILE=smoke LAUNCHER=joblib CELLS=covering PLAN=1
	$(RUN) reproduce 'tables=[$(shell echo "$(TABLES)" | tr -s ' ' ',')]' profile=$(PROFILE) cells=$(CELLS) $(if $(LAUNCHER),hydra/launcher=$(LAUNCHER)) $(if $(PLAN),--dry-run)

tables: $(VENV)/.installed-run  ## write the tables from the records there are
	$(RUN) tables profile=$(PROFILE)

report: $(VENV)/.installed-run  ## write outputs/report/index.html: your records, and beside them what the project has measured
	$(RUN) report

test-launchers: $(VENV)/.installed-dev  ## joblib, submitit and Ray for real, with workers that are killed (6 minutes)
	$(VENV)/bin/python -m pytest -m slow tests/cli/test_launchers.py

test-browser: $(VENV)/.installed-browser  ## the report in headless Chromium; needs chromium and chromedriver (Debian: apt install chromium chromium-driver)
	$(VENV)/bin/python -m pytest -m browser tests/browser

benchmark: $(VENV)/.installed-run  ## time one adversarial-training step against the plain loop and the bare floor
	$(VENV)/bin/python scripts/benchmark.py train

benchmark-attacks: $(VENV)/.installed-dev  ## time attacks beside Foolbox, ART and AutoAttack; trains three models first (an hour and a half on 2 cores)
	$(VENV)/bin/python scripts/benchmark.py attacks

measure-gpu: $(VENV)/.installed-run  ## PGD-7 adversarial training, FM, PNI and L2P, ResNet-18, full CIFAR-10, short recipe, and the benchmark; needs a CUDA GPU
	$(RUN) reproduce 'tables=[quick/cifar10_resnet18]' device=cuda
	$(VENV)/bin/python scripts/publish_reference.py quick/cifar10_resnet18 --suffix "$$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr 'A-Z ' 'a-z-')"
	$(VENV)/bin/python scripts/benchmark.py train --backbone resnet18 --batch 256 --device cuda --compile > outputs/.benchmark
	mv outputs/.benchmark "outputs/reference/benchmark/train-$$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr 'A-Z ' 'a-z-').md"

clean:  ## remove caches and the virtual environment; results in outputs/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

.PHONY: help install smoke test test-all test-launchers test-browser reproduce-tables tables report benchmark benchmark-attacks measure-gpu clean
