# Everything a developer runs. `make help` lists it.
SHELL := /bin/bash
CARGO ?= cargo
CACHE ?= $(if $(KARPENTER_CACHE),$(KARPENTER_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/karpenter-dev-v1)
export KARPENTER_CACHE := $(CACHE)

# The Python that has moto: the local world's.
MOTO_PYTHON ?= $(firstword $(wildcard $(CACHE)/venv-*/bin/python))

.PHONY: help build build-arm64 matrix demo test test-all storm storm-check fuzz bench compare replay-compare data lint fmt crds deny docs charts chart-packages page-test images images-check image-push notice sbom alerts-test profiling-test \
	archive release-check release-notes release-assets
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

build: ## the release binary, target/release/karpenter
	$(CARGO) build --release --locked

# Debian's gcc-aarch64-linux-gnu, and `rustup target add aarch64-unknown-linux-gnu`.
build-arm64: ## the release binary for arm64, target/aarch64-unknown-linux-gnu/release/karpenter, by cross-compilation
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
		CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++ $(CARGO) build --release --locked --target aarch64-unknown-linux-gnu

demo: build ## a pending Deployment gets its node on the local world; KEEP=1 leaves it running
	tests/env/world demo

# End-to-end tests that take long on two cores; `make test-all` runs them.
LONG := ec2:: instances:: model:: nodeclass:: policy:: trouble:: api::takeover api::certificate the_founding_commands_install traces:: every_query_of_the_dashboards commands_ask_the_controller

# For many schedules the model world is optimised, and needs no provider.
MODEL := $(CARGO) test --locked --profile model --no-default-features -p karpenter --test model

test: ## every fast test and the end-to-end tests
	tests/env/world prepare
	tests/env/world check
	$(CARGO) test --locked --no-fail-fast -p karpenter -p karpenter-api -p karpenter-core -p karpenter-model --lib --bins --test reference --test api --test model
	$(CARGO) test --locked --no-fail-fast --test e2e -- $(addprefix --skip ,$(LONG))

# The oldest and the newest version that is supported, and the one that everything else runs on.
MATRIX ?= 1.31 1.35 1.37
WHOLE_CHAIN := chain:: helm_installs_and_upgrades two_nodes_are_replaced the_founding_commands_install

matrix: ## install, launch, consolidate and remove on control planes of several Kubernetes versions; MATRIX="1.31 1.37" chooses
	@for version in $(MATRIX); do \
		echo "== Kubernetes $$version"; export KUBERNETES=$$version; \
		tests/env/world prepare && $(CARGO) test --locked --no-fail-fast --test e2e -- $(WHOLE_CHAIN) || exit 1; \
	done

test-all: ## every test, the long end-to-end ones too
	tests/env/world prepare
	$(CARGO) test --locked --no-fail-fast -p karpenter -p karpenter-api -p karpenter-core -p karpenter-model

storm: ## schedules of faults in the model world, on all cores; MINUTES=10, or SEED=n for one, or SEEDS=n for the first n
	$(MODEL) -- --nocapture --include-ignored \
		--exact storm::$(if $(SEED)$(SEEDS),schedules_of_faults_break_nothing,a_storm)

storm-check: ## plants defects one at a time, and shows after how many schedules the checks of the storm find each
	$(MODEL) -- --nocapture --include-ignored \
		--exact storm::check::every_defect_that_is_planted_is_found

storm: export STORM_MINUTES := $(or $(MINUTES),10)
storm: export STORM_SEED := $(SEED)
storm: export STORM_SEEDS := $(SEEDS)

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

replay-compare: build $(PEER) $(BENCH_VENV)/complete ## a day of a workload with the decisions of both: bill, evictions, waiting times
	cd benches && $(BENCH_VENV)/bin/python -m harness replay --karpenter $(CURDIR)/target/release/karpenter --peer $(PEER) --work $(CACHE)/bench

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
	$(CARGO) install --locked --quiet --debug --root $(CACHE) cargo-deny@0.20.2

deny: $(DENY) ## licences, sources and banned crates of the dependencies, and NOTICE; ADVISORIES=1 also asks the advisory database
	$(DENY) check licenses bans sources $(if $(ADVISORIES),advisories)
	python3 -B deploy/image/dependencies.py notice --check

# Without its server and search index mdbook builds in a fraction of the time.
MDBOOK := $(CACHE)/bin/mdbook
$(MDBOOK):
	$(CARGO) install --quiet --locked --root $(CACHE) --no-default-features --debug mdbook@0.5.4

docs: $(MDBOOK) ## the book, in target/book, its links and the permissions it explains, and the chart's page
	python3 -B docs/check.py
	python3 -B charts/readme.py --check
	$(MDBOOK) build docs

charts: ## helm lint of both charts
	tests/env/world helm >/dev/null
	set -e; for chart in charts/*/; do $$(tests/env/world helm) lint --quiet $$chart --set settings.clusterName=lint; done

chart-packages: ## both charts as archives in target/charts, to push to an OCI registry; REPOSITORY is where the image is
	tests/env/world helm >/dev/null
	rm -rf target/charts target/chart-sources
	mkdir -p target/charts
	cp -rL charts target/chart-sources
	$(if $(REPOSITORY),sed -i.bak 's|repository: karpenter/controller$$|repository: $(REPOSITORY)|' target/chart-sources/karpenter/values.yaml && rm target/chart-sources/karpenter/values.yaml.bak)
	set -e; for chart in target/chart-sources/*/; do $$(tests/env/world helm) package $$chart --destination target/charts; done

# Chromium drives the page; playwright-core comes from the npm registry, Chromium from the system.
CHROMIUM ?= $(firstword $(wildcard /usr/bin/chromium /usr/bin/chromium-browser /usr/bin/google-chrome))
PAGE := $(CACHE)/page-$(shell sha256sum tests/page/package.json | cut -c1-12)
$(PAGE)/node_modules:
	mkdir -p $(PAGE)
	cp tests/page/package.json $(PAGE)/
	npm install --prefix $(PAGE) --no-fund --no-audit --ignore-scripts --silent

page-test: export PAGE_MODULES := $(PAGE)
page-test: export CHROMIUM := $(CHROMIUM)
page-test: export SCREENSHOTS := $(abspath $(SCREENSHOTS))
page-test: $(PAGE)/node_modules ## the fleet's page in Chromium, by Node.js, with scenes and with the local world; SCREENSHOTS=DIR keeps pictures
	@test -n "$(CHROMIUM)" || { echo "no Chromium found: install it, or set CHROMIUM=FILE"; exit 1; }
	$(CARGO) test --locked --test page -- --nocapture
	tests/env/world prepare
	$(CARGO) test --locked --test e2e -- --nocapture --ignored the_page_follows_the_local_world_in_chromium

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

image-push: ## copy target/image with its bill of materials and provenance; TO=REGISTRY/REPOSITORY, needs oras
	oras cp -r --from-oci-layout target/image:$(VERSION) $(TO):$(VERSION)

# Releases. The version is Cargo.toml's.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
RELEASE := python3 -B deploy/release/release.py

release-check: ## whether TAG=vX.Y.Z is the version of Cargo.toml, the charts and the changelog
	$(RELEASE) check $(TAG)

archive: ## the release binary of this machine as target/dist/karpenter-OS-ARCH.tar.gz, with its checksum; BINARY=FILE
	$(RELEASE) archive $(BINARY)

release-notes: ## the version's section of the changelog
	@$(RELEASE) notes

release-assets: sbom ## target/dist, which has the archives of all platforms, with bill of materials, plugin manifest and checksums
	mkdir -p target/dist
	cp target/sbom.json target/dist/karpenter-$(VERSION).cdx.json
	$(RELEASE) krew > target/dist/karpenter-krew.yaml
	$(RELEASE) checksums

sbom: ## bill of materials of the binary, CycloneDX JSON, to target/sbom.json
	mkdir -p target
	python3 -B deploy/image/dependencies.py sbom > target/sbom.json

notice: ## NOTICE anew from the dependencies' licences; CHECK=1 only says whether it is stale
	python3 -B deploy/image/dependencies.py notice $(if $(CHECK),--check)

profiling-test: ## profiles of a test's process, then of a controller in the local world, read by Go's pprof
	$(CARGO) test --locked -p karpenter-profiling
	tests/env/world prepare
	$(CARGO) test --locked --test e2e -- --nocapture profiles::

# Without service discovery, which rules need not, promtool builds in a fraction of the time.
PROMTOOL := $(CACHE)/bin/promtool
$(PROMTOOL):
	GOBIN=$(@D) go install -tags remove_all_sd github.com/prometheus/prometheus/cmd/promtool@v0.316.0

alerts-test: $(PROMTOOL) ## the chart's alerts under promtool's unit tests, of which every alert has some; the queries of the dashboards are read
	$(PROMTOOL) check rules charts/karpenter/alerts/karpenter.yaml
	@for alert in $$(sed -n 's/.*- alert: //p' charts/karpenter/alerts/karpenter.yaml); do \
		grep -q "alertname: $$alert$$" tests/alerts/karpenter.yaml || { echo "$$alert has no test in tests/alerts"; exit 1; }; done
	cd tests/alerts && $(PROMTOOL) test rules karpenter.yaml
	set -o pipefail; python3 -B tests/alerts/dashboards.py charts/karpenter/dashboards | $(PROMTOOL) check rules

fmt: ## format the code
	$(CARGO) fmt --all

data: ## make the data files anew from published packages (data/README.md)
	cd data/refresh && $(MOTO_PYTHON) -B refresh.py && $(MOTO_PYTHON) -B devices.py && $(MOTO_PYTHON) -B catalog.py
	cd data/refresh/fields && go run . > ../../kubernetes-fields.tsv
