# Set-up lives in .venv and is repeated only when what it depends on changes. `make help` lists the rest.

PYTHON ?= python3
# Which build of torch: `cpu` or `gpu`. On Linux without a working NVIDIA driver the small CPU build is enough.
TORCH ?= $(shell if [ "$$(uname -s)" != Linux ] || nvidia-smi >/dev/null 2>&1; then echo gpu; else echo cpu; fi)
TORCH_INDEX_cpu = --extra-index-url https://download.pytorch.org/whl/cpu
BIN = .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup lab test test-quick test-all test-package test-lessons test-browser notebooks site badges bench lock clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/installed  ## build .venv, install the course, prepare the model
	@$(BIN)/python -m dora_lesson prepare

lab: setup  ## open the first lesson in JupyterLab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

# Two files at a time, a core each: most of a lesson's cells leave a second core idle. The longest lessons come first, so
# that both cores end together.
LONG = $(wildcard notebooks/0[2456]_*.ipynb)
LESSONS = $(LONG) $(filter-out $(LONG),$(wildcard notebooks/*.ipynb))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup  ## run the test suite and every lesson
	$(PYTEST) -m "not nightly" --nbval $(LESSONS) tests

test-quick: setup  ## run the fast tests, while you work
	$(PYTEST) -m "not nightly and not slow and not browser" tests

test-all: setup  ## run everything, what the nightly job adds too
	$(PYTEST) --nbval $(LESSONS) tests

test-package: setup  ## run the part of `make test` that is neither lesson nor browser
	$(PYTEST) -m "not nightly and not browser" tests

test-lessons: setup  ## run every lesson and compare its outputs
	$(PYTEST) --nbval $(LESSONS)

test-browser: setup  ## run the part of `make test` that a real browser shows
	$(PYTEST) -m "browser and not nightly" tests/test_browser.py

notebooks: setup  ## run every lesson in place and store its outputs
	$(BIN)/python -m tools.notebooks run

# The website has an environment of its own, for it needs none of the course's libraries. It is built from copies, so that
# the notebooks stay as they are.
PAGES = CONTRIBUTING.md CHANGELOG.md LICENSE CITATION.cff notebooks docs
site: .venv-site/installed  ## build the website from the notebooks as they are: build/site/index.html
	@rm -rf build/site build/pages && mkdir -p build/pages/data
	@cp -r $(PAGES) build/pages && cp data/README.md build/pages/data && cp README.md build/pages/index.md
	@rm -r build/pages/docs/site
	@.venv-site/bin/python -m sphinx -q -W --keep-going -E -c docs/site -d build/doctrees build/pages build/site
	@find build/site -name '*.map' -delete && touch build/site/.nojekyll
	@echo "The website is built: open build/site/index.html"

.venv-site/installed: docs/site/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "The website's theme needs Python 3.11: run make site with PYTHON=/path/to/such/a/python3." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-site
	.venv-site/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/site/requirements.txt
	@touch $@

badges: setup  ## restamp badges, set-up cells and links after a fork
	$(BIN)/python -m tools.notebooks stamp

bench: setup  ## time the DoRA layer against PEFT's layers
	$(BIN)/python -m dora_lesson.experiments.bench

lock:  ## renew constraints.txt from pyproject.toml
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install -q uv
	.venv-lock/bin/uv pip compile --universal --python-version 3.10 --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --extra lab --extra test pyproject.toml constraints.in -o constraints.txt
	rm -rf .venv-lock

clean:  ## remove .venv and caches; the model stays in the user's cache
	rm -rf .venv .venv-lock .venv-site build/site build/pages build/doctrees .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# The stamp file is written last, so that a set-up killed half-way starts again. Without its extension for announcements
# JupyterLab does not ask on first start whether to show news.
.venv/installed: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "The course needs Python 3.10 to 3.13: run make again with PYTHON=/path/to/such/a/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "This Python has no venv: install it (on Debian and Ubuntu, apt install python3-venv), then run make again." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --quiet --constraint constraints.txt pip setuptools
	$(PIP) install --constraint constraints.txt $(TORCH_INDEX_$(TORCH)) --retries 2 --no-deps torch
	$(PIP) install --constraint constraints.txt --editable '.[lab,test]'
	@$(BIN)/python -m jupyter labextension disable "@jupyterlab/apputils-extension:announcements"
	@touch $@
