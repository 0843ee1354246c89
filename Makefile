# Each target creates .venv if it is missing or pyproject.toml has changed.
# To choose the interpreter: make test PYTHON=/path/to/python3.12

PYTHONS := $(PYTHON) python3.13 python3.12 python3.11 python3
READY := .venv/.ready

.PHONY: demo test lint bench evening docs package clean

demo: $(READY)
	.venv/bin/maskrcnn demo

# One process per core, at most 16, each with one thread (tests/conftest.py). make test PROCESSES=4 runs four.
PROCESSES := auto
test: $(READY)
	.venv/bin/python -m pytest --processes $(PROCESSES) --processor-time

# Writes benchmarks/results/ and the tables of docs/performance.md. Run it on a quiet machine.
bench: $(READY)
	.venv/bin/python -m benchmarks

# The API reference, from the docstrings. A warning is an error.
docs: $(READY)
	.venv/bin/python docs/build_api.py build/api

# Runs the commands of docs/first_evening.md and writes their times: make evening NUCLEI=/data/nuclei
evening: $(READY)
	.venv/bin/python -m benchmarks.first_evening_page $(NUCLEI)

# The source distribution and the wheel, in build/dist, checked as a package index checks them.
package: $(READY)
	rm -rf build/dist
	.venv/bin/python -m build --no-isolation --outdir build/dist
	.venv/bin/python -m twine check --strict build/dist/*

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/ty check

# The interpreter must be able to create an environment: some systems ship Python without
# ensurepip, and version managers leave names that do not run.
$(READY): pyproject.toml
	@if [ ! -x .venv/bin/python ]; then \
	  for python in $(PYTHONS); do \
	    $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	  done; \
	  if [ -z "$$python" ]; then echo "No Python >= 3.11 with pip found; install one or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	  echo "Creating .venv with $$($$python --version)"; \
	  $$python -m venv .venv; \
	fi
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo build
