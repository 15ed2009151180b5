# `make demo` and `make test` install everything themselves. They need only Python 3.11, make and a network.
PYTHON ?= python3.11
BIN := .venv/bin
# With several processes on few cores, threads that spin while they wait slow the machine down.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup demo test test-all lint site format lock clean

setup: $(BIN)/.installed

$(BIN)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --requirement requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/ortho em --config examples/demo.yaml
	@echo "open runs/demo/report.html"

# Test files run in parallel, each with its own Ray. The ten slowest tests are listed.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --durations 10

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

# The site of docs/, built without a network. Warnings about links, anchors and docstrings are errors in `make lint`.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

site: setup
	$(SITE) --site-dir site
	@echo "open site/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/deptry ortho_core rayjobs
	$(BIN)/deptry tests benchmarks models recipes --ignore DEP002,DEP004
	$(BIN)/python .ci/check_files.py
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(SITE) --strict --site-dir "$$folder"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After a change of dependencies in pyproject.toml: writes exact versions and hashes for Linux and macOS, no download addresses.
# Versions in the lock stay; `make lock UPGRADE=--upgrade` chooses the newest ones.
lock:
	$(BIN)/uv pip compile --quiet $(UPGRADE) --universal --extra s3 --extra mlflow --extra wandb --extra optuna --extra lpips --extra nf4 --extra rewards --extra dev --group published \
	  --generate-hashes --no-annotate --no-emit-index-url --no-header pyproject.toml --output-file requirements.lock

# Keeps runs/, which has results.
clean:
	rm -rf .venv build dist site *.egg-info
