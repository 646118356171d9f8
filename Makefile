# Needs Python 3.11+, a Rust toolchain and make; everything else is set up in .venv from requirements/dev.txt.
# What was done is remembered in .make/, so that nothing is done twice.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := .make
REF ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tools of .ci/run; harmless where they are not.
export PATH := $(abspath $(BIN)):$(or $(LAMELLA_CACHE),$(HOME)/.cache/lamella)/tools/bin:$(PATH)
# maturin and pip look here.
export VIRTUAL_ENV := $(abspath $(VENV))

RUST_SOURCES := $(wildcard Cargo.toml Cargo.lock rust-toolchain.toml) $(shell find rust -type f -not -path '*/target/*' \
	-not -path '*/tests/*')
TARGET ?= $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))
TARGET_SECONDS ?= 60
# Link-time optimisation would take the marks of coverage away.
FUZZ := CARGO_PROFILE_RELEASE_LTO=off cargo +nightly fuzz
FUZZ_BUILD := --fuzz-dir fuzz --target-dir target/fuzz --features libfuzzer
FUZZ_LIMITS := -max_len=16384 -timeout=25 -rss_limit_mb=2048 -malloc_limit_mb=512 -detect_leaks=0

CHECKED_PYTHON := python tests benches examples tools

.PHONY: help
help: ## Say what there is (the default)
	@echo "lamella: containerd's model as a library"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r target text; do \
		printf '%-17s %s\n' "$$target" "$$text"; done
	@echo
	@echo "  REF=nginx:latest      with demo: pull this image instead of the one that the demo builds"
	@echo "  PYTEST_ARGS='-k word' with test: more arguments for pytest"
	@echo "  BENCH_ARGS='--peers'  with bench: also measure containerd, podman and umoci (benches/peers.py; needs root)"

.PHONY: demo
demo: build ## Build a small image, serve, pull, snapshot and run it; delete it again
	@$(BIN)/python examples/demo.py $(REF)

# What tests choose at random follows from the commit: who runs them again, or elsewhere, has the same choices.
.PHONY: test
test: export LAMELLA_SEED ?= $(shell seed=$$(git -c safe.directory='*' rev-parse HEAD 2>/dev/null) && echo $$((0x$${seed::8})))
test: export PROPTEST_RNG_SEED ?= $(LAMELLA_SEED)
test: build ## Run everything that can run here (cargo test, then pytest)
	cargo test --workspace --locked
	$(BIN)/python tools/run_tests.py $(PYTEST_ARGS)

.PHONY: nightly
nightly: build ## Run pytest at length: kills at every step, ten minutes of stress (LAMELLA_SEED=N repeats a choice)
	LAMELLA_NIGHTLY=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# Inputs that lead to new code stay in target/fuzz/corpus, and serve the next run too.
.PHONY: fuzz
fuzz: ## Fuzz for TARGET_SECONDS=60 with coverage: all targets in turn, or TARGET=name (CONTRIBUTING.md)
	@cargo +nightly fuzz --version >/dev/null || { echo "it takes a nightly toolchain and cargo-fuzz: rustup toolchain" \
		"install nightly; cargo install --locked cargo-fuzz" >&2; exit 1; }
	$(FUZZ) build $(FUZZ_BUILD)
	scratch=$$(mktemp -d "$${TMPDIR:-/dev/shm}/lamella-fuzz.XXXXXX"); trap 'rm -rf "$$scratch"' EXIT; \
	for target in $(TARGET); do mkdir -p target/fuzz/corpus/$$target; \
		TMPDIR=$$scratch $(FUZZ) run $(FUZZ_BUILD) $$target target/fuzz/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(TARGET_SECONDS) $(FUZZ_LIMITS) -dict=fuzz/dictionary -print_final_stats=1; done

.PHONY: fuzz-corpus
fuzz-corpus: ## Take what `make fuzz` found into fuzz/corpus, as few inputs as reach the same code
	scratch=$$(mktemp -d "$${TMPDIR:-/dev/shm}/lamella-fuzz.XXXXXX"); trap 'rm -rf "$$scratch"' EXIT; \
	for target in $(TARGET); do mkdir -p target/fuzz/corpus/$$target; rm -rf target/fuzz/least; mkdir target/fuzz/least; \
		TMPDIR=$$scratch $(FUZZ) run $(FUZZ_BUILD) $$target target/fuzz/least fuzz/corpus/$$target target/fuzz/corpus/$$target \
			-- -set_cover_merge=1 $(FUZZ_LIMITS); \
		rm -rf fuzz/corpus/$$target; mv target/fuzz/least fuzz/corpus/$$target; done

.PHONY: lint
lint: build ## Check formatting, lints, types, stubs, licences
	@$(MAKE) --no-print-directory -j2 --output-sync=target lint-rust lint-python

.PHONY: lint-python
lint-python: build
	$(BIN)/ruff format --check $(CHECKED_PYTHON)
	$(BIN)/ruff check $(CHECKED_PYTHON)
	$(BIN)/mypy
	$(BIN)/stubtest lamella._core

.PHONY: lint-rust
lint-rust: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@if command -v cargo-deny >/dev/null; then set -x; cargo deny --locked check licenses bans sources; \
	elif [ -n "$${LAMELLA_REQUIRE_ALL:-}" ]; then echo "cargo-deny is not installed" >&2; exit 1; \
	else echo "skipped: cargo deny (cargo install --locked cargo-deny)"; fi

# Not part of lint, because both read a database (RustSec's, and PyPI's JSON interface) that a build machine with nothing
# but package registries does not reach.
.PHONY: audit
audit: $(STAMPS)/venv ## Check the dependencies for known advisories (needs the internet)
	cargo deny --locked check advisories
	$(PYTHON) -m venv $(STAMPS)/audit
	$(STAMPS)/audit/bin/pip install --quiet pip-audit
	$(STAMPS)/audit/bin/pip-audit --require-hashes --disable-pip -r requirements/dev.txt

.PHONY: bench
bench: build ## Run the micro-benchmarks; BENCH_ARGS=--peers for the comparison with other programs
	@if [[ "$(BENCH_ARGS)" == *--peers* ]]; then $(BIN)/python benches/peers.py $(filter-out --peers,$(BENCH_ARGS)); \
	else $(BIN)/python -m pytest benches -p no:cacheprovider --benchmark-only $(BENCH_ARGS); fi

.PHONY: wheel
wheel: $(STAMPS)/venv ## Build the wheel into dist/
	$(BIN)/maturin build --release --locked --out dist

.PHONY: build
build: $(STAMPS)/extension ## Make .venv and build the extension into it

.PHONY: lock
lock: ## Renew requirements/dev.txt from pyproject.toml
	$(PYTHON) -m venv $(STAMPS)/lock
	$(STAMPS)/lock/bin/pip install --quiet uv
	$(STAMPS)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' --extra dev --upgrade --output-file requirements/dev.txt pyproject.toml

.PHONY: serve-api
serve-api: $(STAMPS)/venv ## Generate the messages of containerd's API again, from python/lamella/serve/protos
	$(BIN)/python tools/serve_api.py

.PHONY: clean
clean: ## Remove what was built, .venv included
	rm -rf $(VENV) $(STAMPS) target dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find python -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv: requirements/dev.txt
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 1; fi
	@command -v cargo >/dev/null || { echo "a Rust toolchain is needed: https://rustup.rs" >&2; exit 1; }
	@mkdir -p $(STAMPS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) -m venv failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

$(STAMPS)/extension: $(STAMPS)/venv pyproject.toml $(RUST_SOURCES)
	PIP_QUIET=1 $(BIN)/maturin develop --release --locked
	@touch $@
