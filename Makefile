# Everything is a target here; CI runs `make test` and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/weftnet/weft/internal/version.Text=$(VERSION)
# Downloads, the guest and the linter are kept outside the tree: a new clone finds them.
export WEFT_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/weft

# The linter is built once for each version of it and of Go.
LINT_MODULE := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
LINT = $(WEFT_CACHE)/tools/golangci-lint-$(shell cat tools/go.sum <(go version) | sha256sum | cut -c1-16)

.PHONY: help
help: ## say what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

.PHONY: setup
setup: ## install the Debian packages that are missing
	@scripts/setup.sh

.PHONY: build
build: ## bin/weft, bin/weftd, ...: every program in cmd/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: guest
guest: build ## build the small guest and load it as localhost/weft/guest:latest
	@archive=$$(guest/build.sh | tee >(cat >&2) | tail -n 1); bin/weft image load "$$archive"

.PHONY: demo
demo: setup build ## run examples/three-networks.yaml on a machine of its own and show it
	@archive=$$(guest/build.sh | tee >(cat >&2) | tail -n 1); examples/demo.sh "$$archive"

.PHONY: check
check: lint ## lint and the short tests, in under two minutes
	go test -short ./...

.PHONY: test
test: ## everything CI runs: setup, build, guest, lint, all tests, examples
	@scripts/test.sh

.PHONY: lint
lint: $(LINT) ## golangci-lint: vet, static checks, style, formatting
	$(LINT) run ./...

.PHONY: fmt
fmt: $(LINT) ## format the Go code
	$(LINT) fmt ./...

$(LINT):
	@echo "building golangci-lint $$(cd tools && go list -m -f '{{.Version}}' github.com/golangci/golangci-lint/v2); once, about two minutes"
	@cd tools && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o '$@' $(LINT_MODULE)

.PHONY: generate
generate: ## write again what is generated: the CLI reference in docs/
	go generate ./...

.PHONY: bench
bench: setup build ## benchmarks, and tables of ratios against the reference plugins and Multus
	@scripts/bench.sh

.PHONY: clean
clean: ## remove bin/
	rm -rf bin
