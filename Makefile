# Needs Python 3.11 or newer and make; everything else goes into .venv.
# Another interpreter: make PYTHON=python3.12 venv

PYTHON ?= python3
ARGS ?=
# Processes that run the tests: as many as suit the machine, or none besides make's own where ARGS picks some, since to
# start them takes longer than most tests. To debug: make test JOBS=0 ARGS='--pdb'
JOBS ?= $(if $(strip $(ARGS)),0,auto)

# The tests start hundreds of Python processes, and none should have to compile tracekit for itself.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPED := src tests $(if $(wildcard benchmarks/*.py),benchmarks)

.DEFAULT_GOAL := help
.NOTPARALLEL:

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

.PHONY: venv
venv: $(STAMP) ## create .venv with everything that tracekit needs (PYTHON=... picks the interpreter)

# Plain Debian ships Python without ensurepip; a system pip can fill the environment instead.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tracekit needs Python 3.11 or newer, and $(PYTHON) is not; try: make PYTHON=python3.12 venv" >&2; exit 1; }
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "==> creating $(VENV)"; \
	  if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	    $(PYTHON) -m venv --clear $(VENV); \
	  elif $(PYTHON) -c 'import venv' 2>/dev/null && $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
	  else \
	    echo "$(PYTHON) cannot create environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	  fi; \
	fi
	@echo "==> installing tracekit and its tools into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: demo
demo: $(STAMP) ## run a whole task through tracekit on a throw-away PostgreSQL
	@$(BIN)/tracekit demo $(ARGS)

.PHONY: test
test: $(STAMP) ## run the tests (ARGS='-k name' picks some, JOBS=4 in so many processes)
	@echo "==> tests"
	@$(BIN)/python -m pytest $(if $(filter-out 0,$(JOBS)),-n $(JOBS)) $(ARGS)

.PHONY: check
check: check-format check-lint check-types check-imports test ## everything CI runs: format, lint, types, imports, tests
	@echo "==> all checks passed"

.PHONY: check-format
check-format: $(STAMP)
	@echo "==> format"
	@$(BIN)/ruff format --check --diff .

.PHONY: check-lint
check-lint: $(STAMP)
	@echo "==> lint"
	@$(BIN)/ruff check .

.PHONY: check-types
check-types: $(STAMP)
	@echo "==> types"
	@$(BIN)/mypy $(TYPED)

.PHONY: check-imports
check-imports: $(STAMP)
	@echo "==> import contract"
	@$(BIN)/lint-imports

.PHONY: format
format: $(STAMP) ## format the code and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(STAMP) ## compare with hand-written SQL and with other queues (ARGS=--quick: short, without the others)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: soak
soak: $(STAMP) ## work through faults for minutes or hours, and a reckoning (ARGS='--minutes 480')
	@$(BIN)/python -m tests.soak $(ARGS)

.PHONY: clean
clean: ## remove .venv, builds and caches
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
