# Two commands matter: `make book` and `make test`. Each makes .venv and installs what it needs, once; nothing outside this
# folder is touched, except that `make test` installs Chromium with apt-get where a Debian machine has no browser, and
# `make test-slow` bubblewrap.

PYTHON ?= python3
CHROMIUM ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUILT := _build/.built
NBGRADER := .venv-instructors/.installed
PEERS := .venv-peers/.installed

BOOK_SOURCES := _config.yml _toc.yml CHANGELOG.md requirements.in $(shell find book -type f -not -path '*/.*' -not -path '*/__pycache__/*') $(wildcard benchmarks/results/*.json)
PACKAGE_SOURCES := $(shell find llama3_edu -type f -not -path '*/__pycache__/*')
IN_BROWSER := tests/book/test_browser.py $(filter-out tests/widgets/test_classes.py tests/widgets/test_colab.py, \
    $(wildcard tests/widgets/test_*.py))

# What stands around the package's own tests: the exercises' checks, the course, the tools.
AROUND := tests/checks tests/course tests/widgets tests/tools tests/benchmarks

# bubblewrap is Linux's. Elsewhere the grader refuses to run submissions, and that is what is tested.
COURSE_TESTS := $(if $(filter Linux,$(shell uname -s)),slow,"slow and not sandbox")

# The Triton that is installed for the tests is for Linux on x86-64. Elsewhere its tests are left out, by name.
WITH_TRITON := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),,and not triton)

# Kernels come from .venv, and whatever IPython, Jupyter and matplotlib write for themselves stays in it.
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_CONFIG_DIR := $(CURDIR)/$(VENV)/var/jupyter
export JUPYTER_RUNTIME_DIR := $(CURDIR)/$(VENV)/var/jupyter/runtime
export IPYTHONDIR := $(CURDIR)/$(VENV)/var/ipython
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/var/matplotlib
# Without this, every kernel says that its debugger cannot see into frozen modules.
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Nothing here fetches a model; a test that tried to would be a mistake.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help install instructors book test test-unit test-package test-course test-notebooks test-browser test-pages test-site test-widgets browser test-slow test-slow-browser test-colab test-instructors notebooks peers benchmarks lock audit clean clean-all

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## Make .venv and install everything into it

$(INSTALLED): requirements.txt pyproject.toml tools/environment.sh
	PYTHON="$(PYTHON)" tools/environment.sh
	@touch $@

instructors: $(NBGRADER) ## Make .venv-instructors: nbgrader beside the book's own environment

$(NBGRADER): $(INSTALLED) requirements-instructors.txt tools/instructors.sh
	PYTHON="$(PYTHON)" tools/instructors.sh
	@touch $@

book: $(BUILT) ## Execute every chapter and build the site: _build/html/index.html
	@echo "The book is in _build/html/index.html"

$(BUILT): $(INSTALLED) $(BOOK_SOURCES) $(PACKAGE_SOURCES)
	rm -rf _build
	$(BIN)/jupyter-book build . --all -W --keep-going
	@touch $@

# Several suites at a time, with one thread each; a browser waits more than it works, so three for two cores. The book is built first: two
# suites need it. Where make can, what each prints stays together.
TOGETHER = OMP_NUM_THREADS=1 $(MAKE) -j3 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

test: $(INSTALLED) browser ## Run every test but the slow ones
	$(TOGETHER) $(BUILT) test-package test-pages test-widgets test-course test-notebooks test-site

test-unit: test-package test-course ## Test the package: units, properties, parity with transformers; the checks, the tools

test-package: $(INSTALLED)
	$(BIN)/python -m pytest tests -m "not slow $(WITH_TRITON)" $(addprefix --ignore=,tests/book $(IN_BROWSER) $(AROUND))

test-course: $(INSTALLED)
	$(BIN)/python -m pytest $(AROUND) -m "not slow $(WITH_TRITON)" $(addprefix --ignore=,$(IN_BROWSER))

test-notebooks: $(INSTALLED) ## Re-run every notebook; every output must come out as committed
	$(BIN)/python -m pytest tests/book/test_notebooks.py tests/book/test_gallery.py
	$(BIN)/python -m pytest --nbval --nbval-current-env book

test-browser: test-pages test-site test-widgets ## Test the built site and every widget, in a browser

test-pages: $(BUILT) browser
	CHROMIUM="$$(CHROMIUM="$(CHROMIUM)" tools/chromium.sh)" && export CHROMIUM && \
	$(BIN)/python -m pytest tests/book/test_browser.py

test-site: $(BUILT) browser
	CHROMIUM="$$(CHROMIUM="$(CHROMIUM)" tools/chromium.sh)" && export CHROMIUM && \
	$(BIN)/python -m pytest $(wildcard tests/book/test_site*.py)

test-widgets: $(INSTALLED) browser
	CHROMIUM="$$(CHROMIUM="$(CHROMIUM)" tools/chromium.sh)" && export CHROMIUM && \
	$(BIN)/python -m pytest $(filter tests/widgets/%,$(IN_BROWSER))

browser: $(INSTALLED)
	@CHROMIUM="$(CHROMIUM)" tools/chromium.sh >/dev/null

test-slow: $(INSTALLED) test-instructors test-slow-browser ## Run the slow tests: the wheel alone, other versions, long runs; the course
	$(BIN)/python -m pytest tests -m "slow $(WITH_TRITON)" $(addprefix --ignore=,tests/book tests/course $(IN_BROWSER))

test-slow-browser: $(BUILT) browser
	CHROMIUM="$$(CHROMIUM="$(CHROMIUM)" tools/chromium.sh)" && export CHROMIUM && \
	$(BIN)/python -m pytest -m slow $(IN_BROWSER)

test-colab: $(INSTALLED) ## Test the first cell, every widget and every notebook beside the versions that Colab has
	$(BIN)/python -m pytest -m "slow or not slow" tests/widgets/test_colab.py

test-instructors: $(NBGRADER) ## Test the course: nbgrader's own grades; on Linux every submission in the sandbox, too
	$(BIN)/python -m pytest tests/course -m $(COURSE_TESTS)

notebooks: $(INSTALLED) ## Execute every notebook in place and make it ready to commit
	$(BIN)/python tools/notebooks.py run

peers: $(PEERS) ## Make .venv-peers: what speed is compared with, and the models that are measured

$(PEERS): $(INSTALLED) benchmarks/peers-requirements.txt benchmarks/peers.sh benchmarks/models.py benchmarks/peers/convert.py
	benchmarks/peers.sh
	@touch $@

benchmarks: $(PEERS) ## Measure speed beside peers, on a quiet machine: 20 minutes; what is measured already stays
	$(BIN)/python -m benchmarks.all; status=$$?; $(BIN)/python tools/notebooks.py run book/how_fast.ipynb && exit $$status

lock: $(INSTALLED) ## Resolve requirements.in anew into requirements.txt
	$(BIN)/python -m pip install --quiet uv
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
	    --fork-strategy fewest --no-annotate requirements.in --output-file requirements.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	    --fork-strategy fewest --no-annotate requirements-instructors.in --output-file requirements-instructors.txt
	$(BIN)/python tools/licences.py

audit: $(INSTALLED) ## Ask the package index whether a pinned version has known vulnerabilities
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --disable-pip --no-deps -r requirements.txt -r requirements-instructors.txt

clean: ## Remove what was built; keep .venv
	rm -rf _build build dist .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-all: clean ## Remove .venv, .venv-instructors and .venv-peers as well
	rm -rf $(VENV) .venv-instructors .venv-peers
