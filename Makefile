# `make` or `make help` lists the targets. Settings, given as `make NAME=value`:
#   PYTHON    the Python that makes .venv (3.10 or newer)
#   PIP_ARGS  more arguments for `pip install`, e.g. --extra-index-url for another build of torch
#   WORKERS   test processes that run side by side

PYTHON   ?= python3
PIP_ARGS ?=
WORKERS  ?= 2

# What the versions of the requirements can break: engine, runs, files, pictures, commands.
OLDEST ?= tests/test_requirements.py tests/hooks/test_caches.py tests/hooks/test_attach.py \
    tests/interventions/test_exactness.py tests/conformance tests/cli tests/evals/asking \
    tests/evals/runs tests/evals/clips tests/evals/reports
# Likewise, in two minutes.
SMOKE ?= tests/test_requirements.py tests/hooks/test_caches.py tests/hooks/test_attach.py \
    tests/interventions/test_pai.py tests/interventions/test_paint.py tests/conformance \
    tests/evals/runs/test_store.py tests/cli/test_show.py tests/cli/test_plugins.py

VENV := .venv
FLOORS := .venv-floors
BIN  := $(VENV)/bin
# One stamp for what running needs, one for developing and one for the site: a second `make` installs
# nothing, a changed requirement installs again.
RUN  := $(VENV)/.installed
DEV  := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
REL  := $(VENV)/.installed-release

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo results picture-results smol test test-oldest smoke-oldest check style typecheck bench docs cards \
    cut wheel release format clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUN)  ## Score the built-in model on POPE and CHAIR with four methods; write an HTML report.
	@echo "==> Running the demo: nothing is downloaded, it takes a few minutes on a laptop"
	@$(BIN)/regaze demo
	@echo "==> To go on: . $(BIN)/activate puts regaze on your path; docs/first-hour.md walks on from here"

# Sizes by ARGS, e.g. ARGS="--pope 300 --trials 40 --out runs/large"; see --help.
results: $(DEV)  ## Tune and score every method, write docs/results.md; about half an hour of one core, resumable.
	@echo "==> Every method on the built-in model: stopped, it goes on where it was"
	@$(BIN)/python -m regaze.evals.results $(ARGS)

results-smol: $(DEV)  ## The same methods as they come on smol, beside the sandbox's: docs/results-smol.md, resumable.
	@echo "==> Every method on smol: stopped, it goes on where it was"
	@$(BIN)/python -m regaze.evals.columns $(ARGS)

picture-results: $(DEV)  ## The same for diffusion methods on the painters: docs/results-diffusion.md, resumable.
	@echo "==> Methods for diffusion models on the painters: stopped, it goes on where it was"
	@$(BIN)/python -m regaze.evals.picture_results $(ARGS)

smol: $(DEV)  ## Fetch the small real language model that some tests need, 110 MB, once.
	@$(BIN)/regaze sandbox fetch smol

test: $(DEV)  ## Run the whole test suite.
	@echo "==> Running the tests"
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-oldest:  ## Run a part of the tests on the oldest versions allowed, in .venv-oldest (PYTHON=python3.10).
	@test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/pip install -q $(PIP_ARGS) -c constraints-oldest.txt -e . 'pytest>=9'
	@echo "==> Running a part of the tests on the oldest versions"
	@.venv-oldest/bin/python -m pytest $(OLDEST)

# The oldest torch alone is 3 GB, so this takes the one in .venv: everything installed there counts
# as installed, and what has to be older goes in front of it.
smoke-oldest: $(DEV)  ## Run two minutes of tests on the oldest versions allowed, but for torch.
	@mkdir -p build; if ! $(BIN)/pip download -q $(PIP_ARGS) --no-deps --retries 1 -d build/reached \
	    -c constraints-oldest.txt filelock >build/reached.log 2>&1; then \
	    echo "==> Skipped: the oldest versions can't be downloaded here (build/reached.log)"; exit; fi; \
	echo "==> Installing the oldest versions, but for torch, into $(FLOORS)"; \
	test -d $(FLOORS) || $(BIN)/python -m venv $(FLOORS) || exit; \
	$(BIN)/python -c 'import sys; print(*[p for p in sys.path if "site-packages" in p], sep="\n")' \
	    >"$$(echo $(FLOORS)/lib/python*/site-packages)/zz_torch.pth" && \
	grep -v '^torch=' constraints-oldest.txt >build/floors.txt && \
	{ $(FLOORS)/bin/pip install -q $(PIP_ARGS) -c build/floors.txt -e . >build/floors.log 2>&1 || \
	    { cat build/floors.log; exit 1; }; } && \
	echo "==> Running a part of the tests on them" && \
	$(FLOORS)/bin/python -m pytest -p no:xdist $(SMOKE)

check: $(DEV) typecheck style  ## Lint, check formatting, types, import rules and documentation links.
	@echo "==> Checking import rules and documentation links"
	@$(BIN)/pytest tests/test_imports.py tests/test_docs.py

style: $(DEV)  ## Lint and check formatting.
	@echo "==> Linting (ruff check)"
	@$(BIN)/ruff check
	@echo "==> Checking the format (ruff format)"
	@$(BIN)/ruff format --check

# Type checkers follow no package-dir mapping, so they get the installed layout as links.
typecheck: $(DEV)  ## Check the types (mypy --strict).
	@echo "==> Checking the types (mypy)"
	@rm -rf build/types/regaze && mkdir -p build/types/regaze
	@for path in regaze/* hooks interventions evals; do \
	    ln -sfn "$(CURDIR)/$$path" build/types/regaze/; done
	@ln -sfn "$(CURDIR)/tests" build/types/tests
	@ln -sfn "$(CURDIR)/docs" build/types/docs
	@cd build/types && "$(CURDIR)/$(BIN)/mypy" --config-file ../../pyproject.toml regaze tests docs/builder docs/hook.py

bench: $(RUN)  ## Measure speed and memory beside the unmodified model.
	@for file in benchmarks/[a-z]*.py; do \
	    echo "==> Running $$file"; \
	    $(BIN)/python -m "benchmarks.$$(basename "$$file" .py)" || exit; done

docs: $(DOCS) cards  ## Build the documentation site into build/site (Python 3.11 or newer).
	@echo "==> Building the site: build/site/index.html; to search it, too: $(BIN)/python -m http.server -d build/site"
	@# Without --quiet, which hides warnings from --strict, too.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

cards: $(RUN)  ## Make the cards of the methods, docs/methods, anew from the code and the stored results.
	@echo "==> Writing a card for each method"
	@PYTHONPATH=docs $(BIN)/python -m builder.cards

cut:  ## Date the changelog and set the version: make cut VERSION=0.2.0 [DATE=2026-11-28].
	@$(PYTHON) tools/release.py cut $(VERSION) $(DATE)

wheel: $(REL)  ## Build wheel and sdist of what is committed into dist/; try each in an empty environment.
	@echo "==> Building wheel and source distribution"
	@$(BIN)/python tools/release.py wheel --pip="$(PIP_ARGS)"

release: wheel  ## Likewise for a version that was cut; print its notes and how to tag it.
	@$(BIN)/python tools/release.py notes >build/release/notes.md
	@cat build/release/notes.md
	@echo "==> If all is well: git tag -a v$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) -F build/release/notes.md --cleanup=verbatim"

format: $(DEV)  ## Sort imports, apply safe lint fixes and format.
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## Remove .venv and everything built or cached; runs/ stays.
	rm -rf $(VENV) .venv-oldest $(FLOORS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN): pyproject.toml constraints.txt | $(VENV)
	@echo "==> Installing regaze and its pinned requirements into $(VENV)"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(VENV)
	@echo "==> Installing regaze with its development tools, all pinned, into $(VENV)"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(RUN) $@

$(REL): pyproject.toml constraints.txt | $(VENV)
	@echo "==> Installing what builds a release into $(VENV)"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[release]'
	@touch $(RUN) $@

$(DOCS): pyproject.toml constraints.txt | $(VENV)
	@echo "==> Installing what the documentation site is made with into $(VENV)"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	@touch $(RUN) $@

# A half-made environment is removed, or the next `make` would take it for a whole one.
$(VENV):
	@command -v $(PYTHON) >/dev/null || { \
	    echo "No $(PYTHON) found. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "$(PYTHON) is `$(PYTHON) -V 2>&1`; regaze needs 3.10 or newer. Name one: make PYTHON=python3.11" >&2; exit 1; }
	@echo "==> Making $(VENV) with `$(PYTHON) -V 2>&1`"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "$(PYTHON) has no working venv and pip (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
