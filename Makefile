# `make` lists the targets. The first target that needs Python makes $(VENV), which takes about a
# minute. It is brought up to date only when pyproject.toml has changed.
#
#   make test PYTHON=python3.13     another Python, in an environment of its own: .venv-python3.13
#   make test JOBS=0                one test after the other, in one process; default: one per CPU
#   make test TESTS=tests/crash     only the tests of these files or folders

PYTHON ?= python3
JOBS ?= auto
TESTS ?=
VENV ?= .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Absolute, since some targets run in another directory.
override VENV := $(abspath $(VENV))
python := $(VENV)/bin/python
installed := $(VENV)/.installed
# Each job begins with neighbouring tests, so that they share the fixtures of a module, and takes
# tests from the other jobs when it is done. pytest-randomly shuffles them, and prints the seed.
pytest = $(python) -m pytest --numprocesses=$(JOBS) --dist=worksteal
protos := registry/cri/sandbox_config.proto registry/shim/runtime.proto

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: demo
demo: $(installed) ## show a crash, a recovery, and what an operator sees
	@$(python) examples/demo.py

.PHONY: demo-shim
demo-shim: $(installed) ## show the same over the CRI: serve, kill, serve again
	@$(python) -m examples.demo_shim

.PHONY: demo-fleet
demo-fleet: $(installed) ## show two nodes in one PostgreSQL: a kill, a restore, one query
	@$(python) -m examples.demo_fleet

.PHONY: test
test: $(installed) ## run all tests, one job for each CPU, in random order
	@$(pytest) $(TESTS)

.PHONY: unit
unit: $(installed) ## run the unit tests, which take half a minute at most
	@$(pytest) tests/unit

.PHONY: property
property: $(installed) ## run only the tests against a model
	@$(pytest) -m property

.PHONY: fuzz
fuzz: $(installed) ## read broken metadata for FUZZ_SECONDS, default 60
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(python) -m pytest tests/property/test_fuzz.py

.PHONY: crash
crash: $(installed) ## run only the tests that kill processes or make system calls fail
	@$(pytest) -m "crash or faults"

.PHONY: test-faults
test-faults: $(installed) ## make every system call fail, interrupt calls, cut the power, fill the disk: 45 minutes
	@FAULTS=long CHURN_SECONDS=$${CHURN_SECONDS:-600} $(python) -m pytest tests/faults tests/crash

.PHONY: test-damage
test-damage: $(installed) ## open DAMAGE_SEEDS damaged registries from seed DAMAGE_FIRST on: default 2,000 from 0
	@$(python) -m tests.damage

.PHONY: test-fleet
test-fleet: $(installed) ## kill 200 pushers and stop PostgreSQL 50 times: five minutes
	@FLEET=long $(python) -m pytest tests/fleet

.PHONY: bench
bench: $(installed) ## measure against plain sqlite3: ten minutes (BENCH=--quick: less than three)
	@$(python) -c 'import matplotlib' 2>/dev/null || \
		$(python) -m pip install --quiet --editable '.[bench]'
	@$(python) -m benchmarks $(BENCH)

# In namespaces of their own, so that the host neither sees nor keeps what the tests mount or make.
.PHONY: netns
netns: $(installed) ## run only the tests that make network namespaces
	@unshare --mount --net $$([ "$$(id -u)" = 0 ] || echo --user --map-root-user) \
		$(pytest) -m netns

.PHONY: lint
lint: $(installed) ## check style and formatting
	@$(python) -m ruff check
	@$(python) -m ruff format --check

.PHONY: type
type: $(installed) ## check types
	@$(python) -m mypy

.PHONY: fmt
fmt: $(installed) ## format, and fix what can be fixed
	@$(python) -m ruff check --fix-only
	@$(python) -m ruff format

.PHONY: docs
docs: $(installed) ## build the documentation site in site/, without the network
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --quiet
	@echo "site/index.html; to read and search it: $(python) -m http.server --directory site"

# The wheel is built from the sdist, which proves that the sdist is complete. The check runs with -I,
# so that it cannot import the checkout.
.PHONY: wheel
wheel: $(installed) ## build sdist and wheel, and check the wheel in an environment of its own
	@rm -rf dist
	@$(python) -m build --no-isolation >/dev/null
	@ls dist/*
	@away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
		echo "installing the wheel in $$away (about half a minute)"; \
		$(python) -m venv "$$away/venv"; \
		"$$away/venv/bin/python" -m pip install --quiet "$$(ls $(CURDIR)/dist/*.whl)[cli]"; \
		cd "$$away"; \
		"$$away/venv/bin/python" -I $(CURDIR)/tests/wheel_check.py $(CURDIR)/dist/*.tar.gz

.PHONY: proto
proto: $(installed) ## generate the Python code of the .proto files, beside them
	@$(python) -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. $(protos)

.PHONY: sql
sql: $(installed) ## generate the SQL that the package runs, and docs/schema.md, from the definition of the schema
	@generated=$$($(python) -m registry.tables.generate); echo "$$generated" >registry/tables/sql.py
	@page=$$($(python) -m registry.tables.document docs/schema.md); echo "$$page" >docs/schema.md

.PHONY: questions
questions: $(installed) ## generate docs/questions.md: thirty questions with their SQL and its answers
	@page=$$($(python) -m docs.tools.questions); echo "$$page" >docs/questions.md

.PHONY: metrics
metrics: $(installed) ## generate the table in docs/metrics.md
	@page=$$($(python) -m docs.tools.metrics); echo "$$page" >docs/metrics.md

.PHONY: screenshots
screenshots: $(installed) ## take the screenshots of docs/browse.md again, by Chromium
	@$(python) -m docs.tools.screenshots

.PHONY: man
man: $(installed) ## generate the man page from the help texts of the commands
	@page=$$($(python) -m docs.tools.man); echo "$$page" >docs/sandbox-registry.1

.PHONY: ci
ci: lint type test wheel demo ## run all that must pass before a change is merged

.PHONY: clean
clean: ## remove builds, caches and environments
	@rm -rf $(VENV) .venv .venv-* build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Says in one line what is missing instead of failing in the middle of an installation. Makes the
# environment again if it is broken (its Python or pip is missing) or has another Python than PYTHON.
$(installed): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not installed; on Debian: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version 2>&1) is too old, 3.11 or later is needed; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make environments; on Debian: apt-get install python3-venv"; exit 1; }
	@version='import sys; print(sys.version_info[:2])'; \
		[ "$$($(python) -c "import pip; $$version" 2>/dev/null)" = "$$($(PYTHON) -c "$$version")" ] || { \
			echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing sandbox-registry and its tools in $(VENV) (about a minute)"
	@$(python) -m pip install --quiet --editable '.[cli,dev]'
	@touch $@
