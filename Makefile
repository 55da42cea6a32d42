# make demo, make test: all the set-up there is. make check: what CI runs.
SHELL := /bin/sh
BIN := .venv/bin
READY := .venv/.ready
DEMO := outputs/demo/$(shell date +%Y-%m-%d_%H-%M-%S)

.PHONY: demo test check env clean

demo: env
	$(BIN)/rrec train model=kgat defense=rawp hydra.run.dir=$(DEMO)/train
	$(BIN)/rrec attack ckpt=$(DEMO)/train eps=0.1 hydra.run.dir=$(DEMO)/attack

test: env
	$(BIN)/python -m pytest -n auto --dist worksteal

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@set -e; found=; for each in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then found=$$each; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	"$$found" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[test]'
	@touch $(READY)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
