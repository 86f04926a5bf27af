# Millrace. `make up` is all a newcomer needs; `make help` lists the rest.
# Paths are relative on purpose: make can't hold a space in a target, a clone may lie in one.

PY := .venv/bin/python
PACKAGES := api billing cli millrace models store tasks workers benchmarks tests
STAMP := .venv/.installed
TRITON := .venv/.triton

ifneq ($(filter-out cpu cuda,$(TORCH)),)
$(error TORCH=$(TORCH) is unknown: use cpu or cuda)
endif

.DEFAULT_GOAL := help
.PHONY: help install up down status test test-slow test-compat test-bare mutants check fmt lock clean purge

help:  ## Show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /|/' | while IFS='|' read -r name text; do \
		printf '  make %-11s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  make up takes DETACH=1  MODEL=<folder or hub id>  DTYPE=auto|bf16|int8|nf4'
	@echo '  DEVICE=auto|cpu|cuda:0  PORT=8000'
	@echo '  Installing takes PYTHON=python3.12  TORCH=cpu|cuda (default: cuda where a GPU is seen)'

install: $(STAMP)  ## Make .venv and install requirements.lock into it

$(STAMP): requirements.lock pyproject.toml deploy/bootstrap.sh
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh deploy/bootstrap.sh
	@touch $(STAMP)

up: $(STAMP)  ## Start everything, answer a first prompt, stay until Ctrl-C
	@$(PY) -m cli.main up $(if $(DETACH),--detach) $(if $(MODEL),--model "$(MODEL)") \
		$(if $(DTYPE),--dtype "$(DTYPE)") $(if $(DEVICE),--device "$(DEVICE)") \
		$(if $(PORT),--port "$(PORT)")

down: $(STAMP)  ## Stop what `make up` started
	@$(PY) -m cli.main down

status: $(STAMP)  ## Show processes, queues, workers and jobs
	@$(PY) -m cli.main status

# Only tests need it where there is no GPU, and it is large. Without it theirs are left out.
$(TRITON): $(STAMP)
	@$(PY) -c 'import triton' 2>/dev/null \
		|| $(PY) -m pip install --disable-pip-version-check --quiet --no-deps -r deploy/kernels.lock \
		|| echo "Triton can't be installed: the tests of the CUDA kernels are left out" >&2
	@touch $(TRITON)

# What measures time runs behind the others, when nothing else runs.
test: $(STAMP) $(TRITON)  ## Run the test suite: JOBS=2; it starts its own Postgres and Redis
	$(PY) -m pytest -m "not slow and not alone" -n $(or $(JOBS),2) --no-loadscope-reorder
	$(PY) -m pytest -m "not slow and alone"

test-slow: $(STAMP) $(TRITON)  ## Run the tests that take minutes
	$(PY) -m pytest -m slow --timeout 900

test-compat: $(STAMP) .venvs/compat/.installed  ## Run stock clients against a running server
	.venvs/compat/bin/python -m pytest -W default -m "not slow" tests/compat
	.venvs/agents/bin/python -m pytest -W default -m "not slow" tests/compat/agents

# As root. BASE=<folder> keeps the bare Debian; WITHOUT_SUITE=1 leaves `make test` out.
test-bare:  ## Run `make up` and `make test` on a bare Debian
	@sh deploy/try_bare.sh $(if $(BASE),--base "$(BASE)") $(if $(WITHOUT_SUITE),--without-suite) \
		$(if $(JSON),--json)

.venvs/compat/.installed: deploy/compat.lock deploy/agents.lock deploy/compat.sh \
		tests/compat/node/package-lock.json
	@sh deploy/compat.sh
	@touch $@

mutants: $(STAMP)  ## Make mistakes in the code, see which tests notice: N=150 SEED=1 JOBS=2
	$(PY) -m tests.mutants --num $(or $(N),150) --seed $(or $(SEED),1) --jobs $(or $(JOBS),2) \
		$(if $(ONLY),--only $(ONLY)) $(if $(JSON),--json)

check: $(STAMP)  ## Check format, lint, types and import rules
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy $(PACKAGES)
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

fmt: $(STAMP)  ## Format, and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lock:  ## Write requirements.lock anew, from pyproject.toml
	@PYTHON="$(PYTHON)" sh deploy/lock.sh

clean:  ## Delete caches; .venv and .millrace stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

purge: $(STAMP)  ## Stop everything and delete all data of `make up`
	@$(PY) -m cli.main down --purge
