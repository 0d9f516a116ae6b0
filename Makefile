# `make demo` and `make test` are all one needs; `make help` lists the rest.

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
# Passed on to what is run, such as `make demo ARGS="--base-port 9000"`.
ARGS ?=

.PHONY: help demo test build setup setup-test

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: setup ## three real members on this machine; Ctrl-C ends it all
	@cargo run --quiet --release --package sempre -- demo $(ARGS)

test: setup-test ## every test there is; ends with `N passed, N failed, N skipped`
	@cargo xtask test $(ARGS)

build: ## target/release/sempre
	@cargo build --release --package sempre

setup: ## install what the demo needs and this machine lacks
	@scripts/setup.sh

setup-test: ## the same for the tests
	@scripts/setup.sh --test
