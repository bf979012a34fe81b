# Everything a developer runs. `make help` lists it.
SHELL := /bin/bash
CARGO ?= cargo
CACHE ?= $(if $(KARPENTER_CACHE),$(KARPENTER_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/karpenter-dev-v1)
export KARPENTER_CACHE := $(CACHE)

# The Python that has moto: the local world's.
MOTO_PYTHON ?= $(firstword $(wildcard $(CACHE)/venv-*/bin/python))

.PHONY: help build demo test test-all storm storm-check fuzz bench compare data lint fmt crds deny docs charts chart-packages page-test images images-check notice sbom alerts-test
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

build: ## the release binary, target/release/karpenter
	$(CARGO) build --release --locked

demo: build ## a pending Deployment gets its node on the local world; KEEP=1 leaves it running
	tests/env/world demo

# End-to-end tests that take long on two cores; `make test-all` runs them.
LONG := ec2:: instances:: model:: nodeclass:: policy:: trouble:: api::takeover api::certificate the_founding_commands_install

# For many schedules the model world is optimised, and needs no provider.
MODEL := $(CARGO) test --locked --profile model --no-default-features -p karpenter --test model

test: ## every fast test and the end-to-end tests
	tests/env/world prepare
	tests/env/world check
	$(CARGO) test --locked --no-fail-fast -p karpenter -p karpenter-api -p karpenter-core -p karpenter-model --lib --bins --test reference --test api --test model
	$(CARGO) test --locked --no-fail-fast --test e2e -- $(addprefix --skip ,$(LONG))

test-all: ## every test, the long end-to-end ones too
	tests/env/world prepare
	$(CARGO) test --locked --no-fail-fast -p karpenter -p karpenter-api -p karpenter-core -p karpenter-model

storm: ## schedules of faults in the model world, on all cores; MINUTES=10, or SEED=n for one
	$(MODEL) -- --nocapture --include-ignored \
		--exact storm::$(if $(SEED),schedules_of_faults_break_nothing,a_storm)

storm-check: ## plants defects one at a time, and shows after how many schedules the checks of the storm find each
	$(MODEL) -- --nocapture --include-ignored \
		--exact storm::check::every_defect_that_is_planted_is_found

storm: export STORM_MINUTES := $(or $(MINUTES),10)
storm: export STORM_SEED := $(SEED)

# Coverage for libFuzzer as cargo-fuzz switches it on; without a sanitizer it needs no nightly toolchain.
FUZZ_FLAGS := --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,\
	level=4 inline-8bit-counters pc-table trace-compares)
FUZZ := $(CACHE)/fuzz
HOST = $(shell rustc -vV | sed -n 's/^host: //p')

fuzz: ## conversion and its webhook's bodies under libFuzzer; SECONDS_EACH=300
	mkdir -p $(FUZZ)/conversion
	RUSTFLAGS="$(FUZZ_FLAGS)" CARGO_TARGET_DIR=$(FUZZ)/target $(CARGO) build --locked --profile fuzz -p karpenter-fuzz --target $(HOST)
	$(FUZZ)/target/$(HOST)/fuzz/conversion $(FUZZ)/conversion fuzz/corpus/conversion -dict=fuzz/conversion.dict \
		-artifact_prefix=$(FUZZ)/ -max_total_time=$(or $(SECONDS_EACH),300) -max_len=8192 -timeout=10 -print_final_stats=1

# The peer is Karpenter's own scheduler, built from its Go module with the Go release that it asks for; the tables need scipy, and moto's list of EC2's types.
PEER := $(CACHE)/bin/karpenter-peer
BENCH_VENV := $(CACHE)/bench-venv-$(shell cat benches/requirements.txt tests/env/requirements.txt | sha256sum | cut -c1-12)
MOTO := $(shell sed -n 's/^moto[^=]*==/moto==/p' tests/env/requirements.txt)

$(PEER): $(wildcard benches/peer/*)
	@mkdir -p $(@D)
	cd benches/peer && GOTOOLCHAIN=auto go build -o $@ .

$(BENCH_VENV)/complete:
	python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r benches/requirements.txt
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps $(MOTO)
	touch $@

bench: build $(PEER) $(BENCH_VENV)/complete ## both schedulers on the same scenarios, in a table; BENCH=full for all sizes, ONLY="NAME ..." for some
	cd benches && $(BENCH_VENV)/bin/python -m harness bench --karpenter $(CURDIR)/target/release/karpenter --peer $(PEER) \
		--work $(CACHE)/bench $(if $(filter full,$(BENCH)),--full) $(if $(ONLY),--only $(ONLY))

compare: build $(PEER) ## 500 random scenarios through both schedulers, and each difference's class; COUNT and SEED choose others
	$(CARGO) bench --locked --profile dev --bench compare -- --karpenter $(CURDIR)/target/release/karpenter --peer $(PEER) --work $(CACHE)/compare \
		$(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED))

crds: ## crds/ anew, after a change of the types; the charts read them there
	UPDATE_CRDS=1 $(CARGO) test --locked -p karpenter-api --lib the_files_are_those_of_the_types

lint: ## formatting and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -p karpenter -p karpenter-api -p karpenter-core -p karpenter-model -- -D warnings

DENY := $(CACHE)/bin/cargo-deny
$(DENY):
	$(CARGO) install --locked --quiet --root $(CACHE) cargo-deny

deny: $(DENY) ## licences, sources and banned crates of the dependencies, and NOTICE; ADVISORIES=1 also asks the advisory database
	$(DENY) check licenses bans sources $(if $(ADVISORIES),advisories)
	python3 -B deploy/image/dependencies.py notice --check

docs: ## the book's links and the chart's page; with mdbook installed, also the book itself, in target/book
	python3 -B docs/check.py
	python3 -B charts/readme.py --check
	if command -v mdbook >/dev/null; then mdbook build docs; fi

charts: ## helm lint of both charts
	tests/env/world helm >/dev/null
	set -e; for chart in charts/*/; do $$(tests/env/world helm) lint --quiet $$chart --set settings.clusterName=lint; done

chart-packages: ## both charts as archives in target/charts, to push to an OCI registry
	tests/env/world helm >/dev/null
	mkdir -p target/charts
	set -e; for chart in charts/*/; do $$(tests/env/world helm) package $$chart --destination target/charts; done

# Chromium drives the page; playwright-core comes from the npm registry, Chromium from the system.
CHROMIUM ?= $(firstword $(wildcard /usr/bin/chromium /usr/bin/chromium-browser /usr/bin/google-chrome))
PAGE := $(CACHE)/page-$(shell sha256sum tests/page/package.json | cut -c1-12)
$(PAGE)/node_modules:
	mkdir -p $(PAGE)
	cp tests/page/package.json $(PAGE)/
	npm install --prefix $(PAGE) --no-fund --no-audit --ignore-scripts --silent

page-test: $(PAGE)/node_modules ## the fleet's page in Chromium, by Node.js; SCREENSHOTS=DIR keeps pictures
	@test -n "$(CHROMIUM)" || { echo "no Chromium found: install it, or set CHROMIUM=FILE"; exit 1; }
	PAGE_MODULES=$(PAGE) CHROMIUM=$(CHROMIUM) SCREENSHOTS=$(abspath $(SCREENSHOTS)) $(CARGO) test --locked --test page -- --nocapture

# The release binary by default; BINARY="amd64=FILE arm64=FILE" for both architectures.
BINARY ?= target/release/karpenter
IMAGE := python3 -B deploy/image/image.py
BINARIES = $(addprefix --binary ,$(BINARY)) --packages $(CACHE)/image-packages

images: ## the image as an OCI layout in target/image, without a container daemon; BINARY=FILE
	$(IMAGE) build $(BINARIES) --output target/image

images-check: images ## build it again, compare digests, unpack it and run it as its user (as root)
	$(IMAGE) build $(BINARIES) --output target/image-again
	diff -r target/image target/image-again
	rm -r target/image-again
	$(IMAGE) check --layout target/image

sbom: ## bill of materials of the binary, CycloneDX JSON, to target/sbom.json
	python3 -B deploy/image/dependencies.py sbom > target/sbom.json

notice: ## NOTICE anew from the dependencies' licences; CHECK=1 only says whether it is stale
	python3 -B deploy/image/dependencies.py notice $(if $(CHECK),--check)

# Without service discovery, which rules need not, promtool builds in a fraction of the time.
PROMTOOL := $(CACHE)/bin/promtool
$(PROMTOOL):
	GOBIN=$(@D) go install -tags remove_all_sd github.com/prometheus/prometheus/cmd/promtool@v0.316.0

alerts-test: $(PROMTOOL) ## the chart's alerts under promtool's unit tests; every alert has some
	$(PROMTOOL) check rules charts/karpenter/alerts/karpenter.yaml
	@for alert in $$(sed -n 's/.*- alert: //p' charts/karpenter/alerts/karpenter.yaml); do \
		grep -q "alertname: $$alert$$" tests/alerts/karpenter.yaml || { echo "$$alert has no test in tests/alerts"; exit 1; }; done
	cd tests/alerts && $(PROMTOOL) test rules karpenter.yaml

fmt: ## format the code
	$(CARGO) fmt --all

data: ## make the data files anew from published packages (data/README.md)
	cd data/refresh && $(MOTO_PYTHON) -B refresh.py && $(MOTO_PYTHON) -B catalog.py
