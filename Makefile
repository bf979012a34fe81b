# Everything a developer runs. `make help` lists it.
SHELL := /bin/bash
CARGO ?= cargo
CACHE ?= $(if $(KARPENTER_CACHE),$(KARPENTER_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/karpenter-dev-v1)
export KARPENTER_CACHE := $(CACHE)

.PHONY: help build demo test lint fmt crds
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

build: ## the release binary, target/release/karpenter
	$(CARGO) build --release --locked

demo: build ## a pending Deployment gets its node on the local world; KEEP=1 leaves it running
	tests/env/world demo

test: ## every fast test and the end-to-end tests
	tests/env/world prepare
	tests/env/world check
	$(CARGO) test --locked --no-fail-fast

lint: ## formatting and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

fmt: ## format the code
	$(CARGO) fmt --all
