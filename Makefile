# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
# Optional rules that ask for more than trio does: a checkpoint on every path, no async function without an await.
ASYNC_OPTIONAL := ASYNC114,ASYNC124,ASYNC128,ASYNC910,ASYNC911,ASYNC912,ASYNC913
STAMP := $(VENV)/.setup-stamp

.PHONY: setup demo test check bench bench-sync bench-sync-quick bench-swarm clean

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" sh scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	@$(BIN)/p2player demo

test: setup
	@$(BIN)/pytest -q -n 2 --dist loadgroup

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8-async --disable=$(ASYNC_OPTIONAL) $$(find p2player chunkstore gossip backends bench -name "*.py")
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: setup
	@$(BIN)/python -m bench

# What the benchmarks need beside: Debian packages (as root; elsewhere it says which), and matplotlib.
BENCH_STAMP := $(VENV)/.bench-stamp

$(BENCH_STAMP): $(STAMP) scripts/bench-packages.sh
	@sh scripts/bench-packages.sh
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

bench-sync: $(BENCH_STAMP)
	@$(BIN)/python -m bench.sync $(ARGS)

bench-sync-quick: $(BENCH_STAMP)
	@$(BIN)/python -m bench.sync --quick $(ARGS)

bench-swarm: $(BENCH_STAMP)
	@$(BIN)/python -m bench.swarm $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
