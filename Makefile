# SPDX-License-Identifier: Apache-2.0
# The two commands that matter: `make demo` and `make test`. Both install what they need (Debian, root) and start from nothing.

SHELL   := /bin/bash
ifndef VERSION
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-dev)
endif
BIN     := bin
LDFLAGS := -s -w -X sidestep.dev/sidestep/internal/version.Version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
CLUSTER := $(BIN)/cluster

.DEFAULT_GOAL := help
.PHONY: help build man images release generate check-generated lint fmt test test-unit test-race test-fuzz test-long vulncheck test-e2e test-upgrade cluster-programs demo bench bench-quick bench-tools vmtest cluster-up cluster-down clean deps deps-build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the three programs, statically linked, into bin/
	@mkdir -p $(BIN)
	$(GOBUILD) -o $(BIN)/ ./cmd/...

$(CLUSTER): FORCE
	@mkdir -p $(BIN)
	@go build -C tests/cluster -o ../../$(CLUSTER) .
FORCE:

$(BIN)/apps: FORCE
	@mkdir -p $(BIN)
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(BIN)/apps ./tests/apps

man: build ## a manual page for each command of the command line, into build/man/man1
	$(BIN)/sidestep man-pages build/man/man1

images: build $(BIN)/apps ## container images of the programs and of the sample apps, into build/images
	go run ./deploy/images --out build/images --tag $(VERSION) --apps $(if $(IMAGE_REGISTRY),--push $(IMAGE_REGISTRY))

release: ## the files of a release with checksums, SBOMs and provenance, into build/release: make release VERSION=v1.2.3 REPOSITORY=https://… BUILDER=https://…
	deploy/release.sh $(VERSION)

deps: ## Debian packages that the tests and the demo use, if they are missing
	@tests/deps.sh run

deps-build: ## Debian packages that regenerating code uses, if they are missing
	@tests/deps.sh generate

generate: deps-build ## regenerate protobuf, CRD, deepcopy and BPF code
	go generate ./api/... ./bpf/...

check-generated: generate ## fail if generated code is not what its sources give
	@git diff --exit-code --stat -- api bpf deploy/chart/crds || { echo "generated code is stale: run make generate and commit the result"; exit 1; }

lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt: $$out"; exit 1; }
	go vet ./...
	go vet -tags e2e ./tests/e2e/...
	go tool staticcheck ./...
	go vet -C tests/cluster ./...
	go vet -C tests/http2 ./...

fmt: ## gofmt everything
	gofmt -w $$(git ls-files '*.go')

# Packages without a kernel under them: their tests need no root, and the race detector changes little of their timing.
RACE    := ./internal/match ./internal/tunnel ./internal/backoff ./manager/... ./client/... ./nodeagent/http1/... ./nodeagent/proxy/http2 ./nodeagent/proxy/tap
PART    := tests/part.sh

test: ## everything that CI runs, with the minutes of each part
	@$(PART) dependencies $(MAKE) deps
	@$(PART) generated $(MAKE) check-generated
	@$(PART) lint $(MAKE) lint
	@$(PART) unit $(MAKE) test-unit
	@$(PART) race $(MAKE) test-race
	@$(PART) fuzz $(MAKE) test-fuzz
	@$(PART) vulncheck $(MAKE) vulncheck
	@$(PART) e2e $(MAKE) test-e2e
	@$(PART) --sum

test-unit: cluster-programs ## unit tests and tests in network namespaces (root), with the coverage of each package
	go test -p 2 -timeout 15m -cover ./...
	go test -C tests/cluster -timeout 5m ./...
	go test -C tests/http2 -timeout 5m ./...

test-race: cluster-programs ## the tests that need no kernel of their own, under the race detector
	go test -race -short -p 2 -timeout 15m $(RACE)

test-fuzz: ## each fuzz target for FUZZTIME (5s)
	@tests/fuzz.sh $(or $(FUZZTIME),5s)

test-long: cluster-programs test-upgrade ## what does not fit into CI: the upgrade, everything under the race detector, 1,000 hostile peers, and each fuzz target for 10 minutes
	go test -race -p 2 -timeout 60m ./...
	SIDESTEP_TEST_LONG=1 go test -count=1 -timeout 10m -run Hostile -v ./manager | grep -v level=
	@tests/fuzz.sh $(or $(FUZZTIME),10m)

vulncheck: ## govulncheck, where its database can be reached
	@tests/vulncheck.sh

cluster-programs: $(CLUSTER) ## the programs of the local Kubernetes, built once
	@$(CLUSTER) build

test-e2e: deps build images $(CLUSTER) ## end-to-end tests on a real Kubernetes: $$KUBECONFIG, or the local one
	SIDESTEP_IMAGE_TAG=$(VERSION) go test -tags e2e -count=1 -timeout 40m -v -run '^TestEndToEnd$$' ./tests/e2e

RELEASED := cfa1876

test-upgrade: deps build images $(CLUSTER) ## the last release is upgraded on the local cluster while intercepts are in use; 15 minutes
	rm -rf build/released
	mkdir -p build/released
	git archive $(RELEASED) | tar -x -C build/released
	$(MAKE) -C build/released images VERSION=$(RELEASED)
	SIDESTEP_IMAGE_TAG=$(VERSION) SIDESTEP_RELEASED=$(CURDIR)/build/released \
		go test -tags e2e -count=1 -timeout 30m -v -run '^TestUpgradeFromRelease$$' ./tests/e2e

vmtest: ## the datapath's tests on Linux 5.10, 6.1, 6.12, the newest and this one, in virtual machines; writes docs/kernels.md
	@tests/deps.sh vm
	go run ./vmtests -docs docs/kernels.md $(if $(KERNELS),-kernels $(KERNELS)) $(if $(RUN),-run '$(RUN)') $(if $(PACKAGES),-packages $(PACKAGES))

demo: deps build images $(CLUSTER) ## a Kubernetes, a shop on it, and intercepts at work
	@SIDESTEP_IMAGE_TAG=$(VERSION) go run ./tests/demo

bench: bench-tools ## figures on the local cluster, in about 15 minutes: tables and picture into docs/performance.md, all values into build/bench.json
	@SIDESTEP_IMAGE_TAG=$(VERSION) go run ./tests/bench -results build/bench.json -page docs/performance.md $(BENCH)

bench-quick: bench-tools ## the rows that say most, from fewer rounds, printed only; BENCH='-only gRPC' takes a part
	@SIDESTEP_IMAGE_TAG=$(VERSION) go run ./tests/bench -quick $(BENCH)

bench-tools: deps build images $(CLUSTER)
	@tests/deps.sh bench

cluster-up: deps $(CLUSTER) ## the local Kubernetes
	$(CLUSTER) up

cluster-down: $(CLUSTER) ## remove the local Kubernetes without a trace
	$(CLUSTER) down

clean: ## remove what was built
	rm -rf $(BIN) build
