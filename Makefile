# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
# Optional rules that ask for more than trio does: a checkpoint on every path, no async function without an await.
ASYNC_OPTIONAL := ASYNC114,ASYNC124,ASYNC128,ASYNC910,ASYNC911,ASYNC912,ASYNC913
STAMP := $(VENV)/.setup-stamp

.PHONY: setup demo engines test check bench bench-sync bench-sync-quick bench-swarm bench-paper bench-paper-quick clean

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" sh scripts/setup.sh $(VENV)
	@touch $@

demo: setup
	@$(BIN)/p2player demo

# What the real engines need: packages of Debian or Ubuntu and a CRIU, as root, and their Python bindings. Where they cannot
# be installed their tests are skipped, and named in the last lines. P2PLAYER_ENGINES=0 leaves all of it out.
engines: setup
	@if [ "$${P2PLAYER_ENGINES:-1}" = 0 ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	sh scripts/engine-packages.sh; \
	for binding in lxd:pylxd libvirt:libvirt; do \
	    $(BIN)/python -c "import $${binding#*:}" 2>/dev/null || sh scripts/setup.sh $(VENV) "$${binding%:*}" || \
	        echo "engines: the Python binding of $${binding%:*} cannot be installed" >&2; \
	done

test: setup engines
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

# Needs the engines, too. ARGS, for example: --platform lxd, --apps game, --only table, --list; see bench/README.md.
bench-paper: $(BENCH_STAMP) engines
	@$(BIN)/python -m bench.paper $(ARGS)

bench-paper-quick: $(BENCH_STAMP) engines
	@$(BIN)/python -m bench.paper --quick $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
