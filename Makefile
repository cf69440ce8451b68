# make demo     see it work on the files in sample_data/
# make lab      open the notebooks in JupyterLab; a double-click shows what is in a .atlas or .gguf file
# make test     everything that must pass: style, types, layers, documents, tests
# make lint     the same without the tests
# make docs     write the generated parts of README.md and formats/*.md again
# make samples  build sample_data/ and formats/vectors/ again
# make bench    measure (each figure is a ratio to a well-known tool, in one run)
# make pictures take the screenshots in README.md again (needs Chromium)
# make experiments  reproduce the paper's claims: tables and figures in tools/experiments/ (minutes)
# make fuzz     mutate the sample files for longer than the tests do (FUZZ_SECONDS=600)
# make clean    remove what the other targets made, the virtual environment included
#
# LAB=--no-browser make lab     give jupyter lab more options
# PYTHON=python3.12 make test   choose the interpreter (3.10 or newer) that .venv is made from

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
FUZZ_SECONDS ?= 600
BIN    := $(VENV)/bin
PAGES  := README.md ARCHITECTURE.md $(wildcard formats/*.md)
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo lab test lint docs samples bench pictures experiments fuzz clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: $(VENV)/.llama
	@$(BIN)/python tools/demo.py

lab: $(VENV)/.lab
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

test: lint
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/cog --check --check-fail-msg='Run: make docs' --verbosity=1 -I . $(PAGES)

docs: $(VENV)/.dev
	$(BIN)/python tools/picture.py
	$(BIN)/cog -r --verbosity=1 -I . $(PAGES)

samples: $(VENV)/.dev
	$(BIN)/python tools/make_sample_data.py
	$(BIN)/python tools/make_vectors.py

bench: $(VENV)/.dev
	@status=0; $(BIN)/python tools/bench/formats.py || status=1; \
	$(BIN)/python tools/bench/repair_score.py || status=1; \
	$(BIN)/python tools/bench/memory.py || status=1; \
	$(BIN)/python tools/bench/runtime.py || status=1; \
	$(BIN)/python tools/bench/quality.py || status=1; \
	$(BIN)/python tools/bench/widgets.py || status=1; exit $$status

pictures: $(VENV)/.dev
	$(BIN)/python tools/screenshots.py

experiments: $(VENV)/.dev
	$(BIN)/python -m tools.experiments

fuzz: $(VENV)/.dev
	$(BIN)/python tools/fuzz.py --seconds $(FUZZ_SECONDS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps depend on pyproject.toml, so that nothing is installed twice and new dependencies are.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "atlas_kit needs Python 3.10 or newer. Try: PYTHON=python3.12 make $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "No virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing atlas_kit into $(VENV) (about a minute, once)"
	@$(PIP) install -e '.[encryption]'
	@touch $@

# llama.cpp is compiled here, once, in a way that plain pip would not; pyproject.toml may change without that.
$(VENV)/.llama: pyproject.toml tools/build_llama.py | $(VENV)/.demo
	@$(BIN)/python tools/build_llama.py
	@touch $@

# Jupyter finds extensions below sys.prefix, where pip puts copies of these files.
EXTENSION := $(shell find atlas_kit/jupyter/labextension atlas_kit/jupyter/server-config.json -type f)

$(VENV)/.lab: pyproject.toml $(EXTENSION) | $(VENV)/.llama
	@echo "Installing atlas_kit and JupyterLab into $(VENV) (about a minute, once)"
	@$(PIP) install -e '.[encryption,notebook]'
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml $(EXTENSION) | $(VENV)/.llama
	@echo "Installing atlas_kit and the tools that check it into $(VENV) (about a minute, once)"
	@$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.lab
