# `make demo` and `make test` need nothing but Python 3.11+, pip, make and git:
# each makes the virtual environment if there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test fuzz test-lowest check coverage platforms benchmark prune-experiments calibrate-gpu wheel clean

demo: $(VENV)/.demo  ## guard five real networks on the shipped titanx platform
	$(BIN)/python -m pytest budgets --np-platform=titanx

test: $(VENV)/.test check coverage  ## lint, types, tests and coverage

check: $(VENV)/.test  ## lint, types, the direction of imports, dead code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/vulture

coverage: $(VENV)/.test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n auto --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

FUZZ ?= 100000

fuzz: $(VENV)/.test  ## 100,000 changed files and markers (15 minutes on one idle core), and kill -9
	NEURALPOWER_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/fuzz

# The lower bounds of pyproject.toml hold with the lowest Python. Not part of `make test`: 4 GB of
# downloads (torch brings CUDA), 8 GB of disk, and 5 minutes of tests on two idle cores.
LOWEST ?= .venv-lowest

test-lowest: $(LOWEST)/.test  ## unit tests with every dependency at its lower bound, in Python 3.11
	$(LOWEST)/bin/python -m pytest tests/unit -n auto --dist loadfile

DATA ?= ../shared/data
RECIPES := $(patsubst calibration/%/recipe.yaml,%,$(wildcard calibration/*/recipe.yaml))
SHIPPED := $(patsubst pytest_neuralpower/platforms/%.json,%,$(wildcard pytest_neuralpower/platforms/*.json))
PLATFORMS := $(filter $(SHIPPED),$(RECIPES))

platforms: $(VENV)/.platforms  ## refit the prior and every shipped platform; DATA has the public tables
	$(BIN)/python -m pytest_neuralpower.calibrate.fit.prior calibration $(DATA)
	for name in $(PLATFORMS); do \
	  $(BIN)/neuralpower fit calibration/$$name --data $(DATA) \
	    --out pytest_neuralpower/platforms/$$name.json || exit; \
	done

benchmark: $(VENV)/.benchmark  ## tracing and prediction next to their peers, in one run
	$(BIN)/python benchmarks/trace_speed.py
	$(BIN)/python benchmarks/guard_speed.py

# Everything on one GPU in about 25 minutes: fp32 and bf16 calibrated, verified, and judged on real
# networks. Rehearse it without one: make calibrate-gpu DEVICE=cpu DTYPES=float32 MINUTES=1
DEVICE ?= cuda:0
DTYPES ?= float32 bfloat16
MINUTES ?= 6
JUDGED_MINUTES ?= 2
NAME ?= my-device

calibrate-gpu: $(VENV)/.test  ## calibrate, verify and judge this machine's GPU, fp32 and bf16
	for dtype in $(DTYPES); do \
	  folder=calibration/$(NAME)-$$dtype; \
	  resume=; if [ -e $$folder/profile.csv ]; then resume=--resume; fi; \
	  $(BIN)/neuralpower calibrate $(NAME)-$$dtype --out $$folder --device $(DEVICE) \
	    --dtype $$dtype --minutes $(MINUTES) $$resume || [ $$? = 1 ] || exit; \
	  $(BIN)/neuralpower verify $$folder/$(NAME)-$$dtype.json --minutes 1 || [ $$? = 1 ] || exit; \
	  $(BIN)/python experiments/judge_device.py $$folder/$(NAME)-$$dtype.json \
	    --minutes $(JUDGED_MINUTES) | tee $$folder/judged.md || exit; \
	done

prune-experiments: $(VENV)/.experiments  ## the table of docs/prune.md; an hour on two idle cores
	$(BIN)/python experiments/pruning_experiments.py

wheel: $(VENV)/.test
	$(INSTALL) build
	$(BIN)/python -m build --wheel

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable . --group test --group lint
	touch $@

$(LOWEST)/.test: pyproject.toml | $(BIN)/python
	$(INSTALL) uv
	$(BIN)/uv venv --quiet --clear --python 3.11 $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	  --requirements pyproject.toml --all-extras --editable . --group test
	touch $@

$(VENV)/.benchmark: $(VENV)/.test
	$(INSTALL) --group benchmark
	touch $@

# Recipes of whole calls trace timm's models, which import nothing of torchvision that they need.
$(VENV)/.platforms: $(VENV)/.test
	$(INSTALL) --no-deps timm==1.0.31
	$(INSTALL) pillow safetensors huggingface-hub
	touch $@

$(VENV)/.experiments: $(VENV)/.demo
	$(INSTALL) --group experiments
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) build dist htmlcov .coverage* .mypy_cache .pytest_cache .ruff_cache
