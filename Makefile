# Two commands: `make demo` and `make test`. Both set up .venv first; nothing else is needed but
# Python 3.11 or newer. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.stamp
WORKERS ?= 2
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-bundle ladder test test-slow test-clients docs lint format beauty games bench peers readme clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## .venv with everything for tests

# torch goes first and by itself: with its version pinned the CPU build on disk or in the index is
# taken, and nothing later replaces it. Modules are compiled when first imported: most never are.
# A half-made environment is made anew.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "error: Python 3.11 or newer is needed (make PYTHON=/path/to/python3.11)"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "setting up .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	  "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	  -c constraints.txt -e '.[dev]'
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

test: lint  ## lint, types, tests
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/pytest -q -m slow

# The public clients pin older releases of shared packages, so they get an environment of their own;
# it looks into .venv for the rest (torch, diffgr2), after its own packages.
test-clients: $(STAMP) .venv-clients/.stamp  ## unmodified public clients against a running server
	PYTHONPATH=tests $(BIN)/python tests/clients/serve.py .venv-clients/bin/python -m pytest -q tests/clients

.venv-clients/.stamp: requirements-clients.txt
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-clients.txt
	@$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > "$$(.venv-clients/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	@touch $@

# The site needs neither torch nor what tests need: an environment of its own is made in a minute.
docs: .venv-docs/.stamp  ## the documentation as a site in build/docs/site; a broken link fails
	.venv-docs/bin/python tools/docs_site.py build/docs

.venv-docs/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "error: Python 3.11 or newer is needed (make PYTHON=/path/to/python3.11)"; exit 2; }
	@.venv-docs/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
	  -c constraints.txt -e '.[docs]'
	@touch $@

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/peers.py demo --out results/peers.json
	$(BIN)/python benchmarks/growth.py demo --out results/growth.json

readme: $(STAMP)  ## the tables and the picture of README and docs from results/
	$(BIN)/python tools/readme_table.py README.md results
	$(BIN)/python tools/readme_table.py docs/results.md results
	$(BIN)/python tools/readme_table.py docs/own_lists.md results
	$(BIN)/python tools/readme_table.py docs/bases.md results
	$(BIN)/python tools/readme_picture.py results/demo.json results/demo.json docs/quality.png

clean:  ## caches and builds; runs and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
