# SPDX-License-Identifier: Apache-2.0

VERSION ?= 0.1.0
ARCH    ?= $(shell go env GOARCH)
DEB      = dist/nodeagent_$(VERSION)_$(ARCH).deb

NFPM        = go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
SUDO        = $(shell test "$$(id -u)" = 0 || echo sudo --preserve-env=HOME,CI,PATH,GOPROXY,GOFLAGS,GOTOOLCHAIN)

# What the emulated cloud runs and builds with, all of it from Debian.
PACKAGES = qemu-system-x86 qemu-utils mmdebstrap xorriso dnsmasq-base fdisk gdisk parted e2fsprogs xfsprogs btrfs-progs \
	grub-pc-bin grub-common iproute2 cloud-guest-utils genisoimage dosfstools mtools

.DEFAULT_GOAL := help
.PHONY: help build deb packages lint unit test e2e bench demo clean

help: ## Show this list
	@sed -n 's/^\([a-z0-9]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

build: ## Build bin/nodeagent, one static file
	CGO_ENABLED=0 GOARCH=$(ARCH) go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/nodeagent ./cmd/nodeagent

deb: build ## Build the Debian package in dist/
	@mkdir -p dist
	VERSION=$(VERSION) ARCH=$(ARCH) GOFLAGS= GOARCH= $(NFPM) package -p deb -f packaging/nfpm.yaml -t $(DEB)

packages:
	@missing=; for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l cmd internal test)" || { echo 'gofmt wants to change:'; gofmt -l cmd internal test; exit 1; }
	go vet -tags vm,guest ./...
	$(STATICCHECK) -tags vm,guest ./...

unit: packages ## The tests that need no VM
	$(SUDO) env "PATH=$$PATH" go test -race ./...

test: unit deb ## All tests that need no Kubernetes: unit tests, then VMs
	template=$$($(SUDO) env "PATH=$$PATH" go run ./test/template/cmd/build-template $(DEB) | sed -n 's/^disk: *//p') && \
	$(SUDO) env "PATH=$$PATH" NODEAGENT_TEMPLATE="$$(dirname "$$template")" \
		go test -tags vm -p 1 -parallel 2 -count=1 -timeout 40m -v -skip '^TestE2E' ./test/cloud ./test/vm

e2e: packages deb ## A Kubernetes control node from power-on to Ready, and its reboot
	$(SUDO) env "PATH=$$PATH" go test -tags vm -parallel 1 -count=1 -timeout 50m -v -run '^TestE2E' ./test/vm

bench: packages deb ## Measure nodeagent against what it replaces, in a VM
	$(SUDO) env "PATH=$$PATH" go run ./test/cmd/bench

ROLE ?= cksnode
demo: packages deb ## Boot a node and follow it until it is Ready (ROLE=router: the quick one)
	$(SUDO) env "PATH=$$PATH" go run ./test/cmd/demo -role $(ROLE)

clean: ## Remove what was built here (the cache in ~/.cache/nodeagent stays)
	rm -rf bin dist
