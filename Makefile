# Two commands: `make demo` and `make test`. Both set up .venv first; nothing else is needed but
# Python 3.11 or newer. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
WORKERS ?= 2
SHELL := /bin/bash
# Where bytecode may not be kept, each process of a test run compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE

EXTRAS := train,serve,llm,lambdamart,bulk
TORCH = "$$(grep '^torch==' constraints.txt)"
INSTALL := python -m pip install --quiet --no-compile --disable-pip-version-check
NEEDS = $(PYTHON) tools/requirements.py $(1)
# An environment: a half-made one is made anew.
ENVIRONMENT = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  || { echo "error: Python 3.11 or newer is needed (make PYTHON=/path/to/python3.11)"; exit 2; } \
  && { $(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1); }

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-bundle ladder test test-slow test-clients test-lowest test-wheel try-wheel dist lock docs
.PHONY: lint lint-workflows format beauty games bench peers readme clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## .venv with everything for tests (LOCKED=1: exactly locks/dev.txt)

# torch goes by itself: with its version pinned the CPU build on disk or in the index is taken, and
# nothing replaces it. Modules are compiled when first imported: most never are. A lock is complete,
# so nothing is solved and every file's hash is known.
$(STAMP): pyproject.toml constraints.txt
	@$(call ENVIRONMENT,.venv)
	@echo "setting up .venv (a few minutes the first time)"
ifdef LOCKED
	@$(BIN)/$(INSTALL) --no-deps --require-hashes -r locks/dev.txt
	@$(BIN)/$(INSTALL) --no-deps $(TORCH)
	@$(BIN)/$(INSTALL) --no-deps --no-build-isolation -e .
else
	@$(BIN)/$(INSTALL) $(TORCH)
	@$(BIN)/$(INSTALL) -c constraints.txt -e '.[$(EXTRAS)]' -r <($(call NEEDS,group dev))
endif
	@touch $@

demo: $(STAMP)  ## the recipe on the simulated shop: table, plots, three examples, a model to serve
	$(BIN)/diffgr2 run demo --goal story
	$(BIN)/diffgr2 report demo --examples 3
	@echo "a page to try it at: $(BIN)/diffgr2 serve --model runs/demo/bundle"

demo-bundle: $(STAMP)  ## the bundle that ships with the package, out of runs/demo
	$(BIN)/diffgr2 run demo --goal story
	$(BIN)/diffgr2 report demo
	$(BIN)/python tools/demo_bundle.py runs/demo

ladder: $(STAMP)  ## what the demo leaves out: every row, speed, probes
	$(BIN)/diffgr2 run demo
	$(BIN)/diffgr2 report demo

# Each worker has a core; numpy's threads would wait for each other's.
ONE_EACH := OPENBLAS_NUM_THREADS=1

test: lint  ## lint, types, tests
	$(ONE_EACH) $(BIN)/pytest -q -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)  ## the tests that take minutes
	$(ONE_EACH) $(BIN)/pytest -q -m slow

# The public clients pin older releases of shared packages, so they get an environment of their own;
# it looks into .venv for the rest (torch, diffgr2), after its own packages.
test-clients: $(STAMP) .venv-clients/.stamp  ## unmodified public clients against a running server
	PYTHONPATH=tests $(BIN)/python tests/clients/serve.py .venv-clients/bin/python -m pytest -q tests/clients

.venv-clients/.stamp: requirements-clients.txt
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/$(INSTALL) -r requirements-clients.txt
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > "$$(.venv-clients/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	@touch $@

# The site needs neither torch nor what tests need: an environment of its own is made in a minute.
docs: .venv-docs/.stamp  ## the documentation as a site in build/docs/site; a broken link fails
	.venv-docs/bin/python tools/docs_site.py build/docs

.venv-docs/.stamp: pyproject.toml constraints.txt
	@$(call ENVIRONMENT,.venv-docs)
	@.venv-docs/bin/$(INSTALL) -c constraints.txt -e '.[serve]' -r <($(call NEEDS,group docs))
	@touch $@

# The oldest releases that pyproject.toml admits, torch at its pin: the pipeline, the readers, the
# forwards, exports and the server.
test-lowest: .venv-lowest/.stamp  ## a fast part of the tests on the oldest packages admitted
	.venv-lowest/bin/python -m pytest -q -p no:cacheprovider $(LOWEST_TESTS)

LOWEST := train serve lambdamart bulk llm
LOWEST_TESTS := $(addprefix tests/,contract/test_backends.py property/test_parquet_columns.py \
  unit/test_lambdamart.py unit/test_evaluate_plots.py unit/test_export.py unit/test_trace_client.py \
  serve/test_http.py)

.venv-lowest/.stamp: pyproject.toml constraints.txt tools/requirements.py
	@$(call ENVIRONMENT,.venv-lowest)
	@.venv-lowest/bin/$(INSTALL) $(TORCH)
	@$(call NEEDS,lowest $(LOWEST)) > .venv-lowest/lowest.txt
	@.venv-lowest/bin/$(INSTALL) -c .venv-lowest/lowest.txt -e . -r <(sed 's/==.*//' .venv-lowest/lowest.txt) \
	  -r <($(call NEEDS,group try))
	@touch $@

# What builds and checks the package stays out of .venv: tests need none of it.
comma := ,
PACKAGE := .venv-package/bin

.venv-package/.stamp: pyproject.toml locks/all.txt
	@$(call ENVIRONMENT,.venv-package)
	@$(PACKAGE)/$(INSTALL) -c locks/all.txt -r <($(call NEEDS,group package try))
	@touch $@

dist: .venv-package/.stamp  ## wheel and sdist in dist/, checked
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(PACKAGE)/python -m build
	$(PACKAGE)/twine check --strict dist/*

# WHEEL_PYTHON=/path/to/python3.13 tries another interpreter, NO_TORCH=1 leaves out what installs
# torch. What stands in dist/ is tried by itself in CI, where it was built before.
test-wheel: dist try-wheel  ## the wheel in empty environments outside the checkout

try-wheel: .venv-package/.stamp
	DIFFGR2_DIST=$(CURDIR)/dist DIFFGR2_PYTHON=$(WHEEL_PYTHON) DIFFGR2_NO_TORCH=$(NO_TORCH) \
	  $(PACKAGE)/python -m pytest -q -p no:cacheprovider tests/package

# all.txt pins everything (`pip install -c locks/all.txt 'diffgr2[ray]'`), dev.txt and serve.txt hold
# hashes, too, for one environment each. torch is left out of those: whose build is taken depends on
# the machine. Pins stay until UPGRADE=--upgrade, or until a bound moves.
LOCK = $(PACKAGE)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
  --no-emit-index-url --no-annotate --custom-compile-command 'make lock' $(UPGRADE)

lock: .venv-package/.stamp  ## locks/ anew from pyproject.toml and constraints.txt
	$(LOCK) -c constraints.txt --all-extras --group dev --group docs --group package -o locks/all.txt
	$(LOCK) -c locks/all.txt $(addprefix --extra=,$(subst $(comma), ,$(EXTRAS))) --group dev \
	  --no-emit-package torch --generate-hashes -o locks/dev.txt
	$(LOCK) -c locks/all.txt --extra serve --generate-hashes -o locks/serve.txt

# actionlint is run where it is installed: its package fetches a program while it is built.
lint-workflows: .venv-package/.stamp  ## .github/workflows: schema, security, actionlint if there
	$(PACKAGE)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(PACKAGE)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(PACKAGE)/zizmor --offline --quiet .github
	@if command -v actionlint >/dev/null; then actionlint; else echo "no actionlint here"; fi

lint: $(STAMP)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

beauty: $(STAMP)  ## the Beauty recipe: make beauty DATA=/folder/with/interactions.parquet
	@test -n "$(DATA)" || { echo "error: make beauty DATA=FOLDER"; exit 2; }
	$(BIN)/diffgr2 run beauty --set data.interactions=$(DATA)/interactions.parquet \
	  --set data.items=$(DATA)/items.parquet
	$(BIN)/diffgr2 report runs/beauty

games: $(STAMP)  ## lists of somebody else's ranker: make games DATA=/folder/with/lists.parquet
	@test -n "$(DATA)" || { echo "error: make games DATA=FOLDER"; exit 2; }
	$(BIN)/diffgr2 run games --set data.interactions=$(DATA)/interactions.parquet \
	  data.items=$(DATA)/items.parquet lists.file=$(DATA)/lists.parquet
	$(BIN)/diffgr2 report runs/games

bench: $(STAMP)  ## decoders timed on the demo's models
	$(BIN)/diffgr2 speed demo --force

peers: $(STAMP)  ## the demo's lists ranked by others, too, and what longer ones cost
	$(BIN)/$(INSTALL) -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/peers.py demo --out results/peers.json
	$(BIN)/python benchmarks/growth.py demo --out results/growth.json

readme: $(STAMP)  ## the tables and the picture of README and docs from results/
	$(BIN)/python tools/readme_table.py README.md results
	$(BIN)/python tools/readme_table.py docs/results.md results
	$(BIN)/python tools/readme_table.py docs/own_lists.md results
	$(BIN)/python tools/readme_table.py docs/bases.md results
	$(BIN)/python tools/readme_table.py docs/evidence.md results
	$(BIN)/python tools/readme_table.py docs/scaling.md results
	$(BIN)/python tools/readme_picture.py results/demo.json results/demo.json docs/quality.png

clean:  ## caches and builds; runs and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
