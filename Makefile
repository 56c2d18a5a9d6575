# make demo | run | test | lab | student | notebooks | results | clean. Each sets up what it needs, once; see README.md.
PYTHON ?= python3
DATA ?= small
MINUTES ?= 4
RUNS ?= runs/$(notdir $(abspath $(DATA)))
BIN := .venv/bin
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
export CVAE_LAB_CACHE ?= $(CURDIR)/data/cache
export PYTHONHASHSEED = 0

.PHONY: help demo run test lab student notebooks results clean
help:
	@echo "make demo       predict the synthetic test clips with the pretrained weights, without training"
	@echo "make run        train four KL strategies, compare them, predict the test clips (DATA=folder for your own data)"
	@echo "make test       run all checks and tests"
	@echo "make lab        copy the notebooks to work/ and open them in JupyterLab"
	@echo "make student    build the student edition of the notebooks for nbgrader, in student/, and try its autograder"
	@echo "make notebooks  execute the committed notebooks again, in place, in order"
	@echo "make results    write the tables and pictures of README.md and figures/README.md from the committed records"
	@echo "make clean      remove .venv and caches; your data, runs and work stay"

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "cvae_lab needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d; use make PYTHON=python3.12" % v)'
	@echo "Setting up .venv (only the first time; one to two minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

.venv/.ready-dev: .venv/.ready
	@$(BIN)/python -m pip install -qq $(PIP_FLAGS) -c constraints.txt -e '.[dev,teach]'
	@if [ -n "$$CI" ] && ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "Installing Chromium for the browser tests ..."; \
		(apt-get update -qq && apt-get install -y -qq chromium) >/dev/null 2>&1 || echo "Chromium could not be installed: the browser tests will be skipped."; fi
	@touch $@

demo: .venv/.ready
	@$(BIN)/python -m cvae_lab demo --out runs/demo

run: .venv/.ready
	@$(BIN)/python -m cvae_lab sweep --data "$(DATA)" --out "$(RUNS)" -p minutes $(MINUTES)
	@$(BIN)/python -m cvae_lab compare "$(RUNS)"
	@$(BIN)/python -m cvae_lab predict "$(RUNS)" --data "$(DATA)"
	@echo "Next: make lab, then open 04_kl_strategies and set runs = \"../$(RUNS)\"."

test: .venv/.ready-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python -m pytest -q -n 2 --dist loadgroup tests
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m pytest -q -o addopts= -p strict_nbval --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout=300 -n 2 --dist loadfile notebooks

lab: .venv/.ready
	@$(BIN)/python -m cvae_lab notebooks work
	@echo "JupyterLab opens in your browser. Press Ctrl-C here to stop it."
	@$(BIN)/python -m jupyterlab work

student: .venv/.ready
	@$(BIN)/python -m pip install -qq $(PIP_FLAGS) -c constraints.txt -e '.[teach]'
	@echo "Building the student edition; its autograder then grades three submissions (about 2 minutes) ..."
	@$(BIN)/python -m cvae_lab student student --check 00_start_here 01_derivation
	@echo "Give your students student/release. README, section 'Teach with it', says how to grade."

notebooks: .venv/.ready-dev
	@for notebook in $(NOTEBOOKS) $(sort $(wildcard notebooks/solutions/*.ipynb)); do \
		begun=$$(date +%s); $(BIN)/python tests/execute_notebook.py "$$notebook" || exit 1; \
		echo "$$notebook: $$(($$(date +%s) - begun)) s"; done
	@echo "All notebooks are executed. Next: check git diff notebooks and every picture."

results: .venv/.ready
	@$(BIN)/python -m cvae_lab reproduce --only tables

clean:
	@rm -rf .venv data/cache build *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@rmdir data 2>/dev/null || true
	@echo "Clean. Your runs and notebooks stay in runs/, work/ and student/."
