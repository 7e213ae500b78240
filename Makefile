# Everything a developer runs. `make demo` and `make test` need only Python 3.11+ and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-all check bench docs clean

demo: $(STAMP)   ## compile MiniLM into slices and run them as functions on this machine
	$(BIN)/python examples/sentence_embeddings.py

test: $(STAMP) check   ## the checks and the default tests
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-all: $(STAMP) check   ## the slow tests too
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Type checkers and import-linter cannot follow an editable install's import hook: they read this link tree.
check: $(STAMP)
	rm -rf build/types && mkdir -p build/types/slicewise
	ln -s "$(CURDIR)"/compiler/* "$(CURDIR)"/passes "$(CURDIR)"/codegen "$(CURDIR)"/targets build/types/slicewise/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=build/types $(BIN)/lint-imports

bench: $(STAMP)   ## every benchmark, each prints a table
	for program in benchmarks/*.py; do $(BIN)/python $$program || exit 1; done

docs: $(STAMP)   ## the site, in build/site
	rm -rf build/types && mkdir -p build/types/slicewise
	ln -s "$(CURDIR)"/compiler/* "$(CURDIR)"/passes "$(CURDIR)"/codegen "$(CURDIR)"/targets build/types/slicewise/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Installed once; again only when the declared dependencies change.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
