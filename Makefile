# SPDX-License-Identifier: Apache-2.0

VERSION ?= 0.1.0
ARCH    ?= $(shell go env GOARCH)
DIST    ?= dist
STAGE    = $(DIST)/$(ARCH)
DEB      = $(DIST)/nodeagent_$(VERSION)_$(ARCH).deb
MAINTAINER = nodeagent developers <nodeagent@localhost.invalid>

# Two builds of one commit are the same, bit for bit, wherever and whenever.
deb docs: export SOURCE_DATE_EPOCH ?= $(shell git -c safe.directory='*' log -1 --format=%ct 2>/dev/null || echo 0)
GO_BUILD = CGO_ENABLED=0 GOARCH=$(ARCH) go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

NFPM        = go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
SUDO        = $(shell test "$$(id -u)" = 0 || echo sudo --preserve-env=HOME,CI,PATH,GOPROXY,GOFLAGS,GOTOOLCHAIN)

# What the emulated cloud runs and builds with, all of it from Debian.
PACKAGES = qemu-system-x86 qemu-user qemu-utils mmdebstrap xorriso dnsmasq-base fdisk gdisk parted e2fsprogs xfsprogs btrfs-progs \
	grub-pc-bin grub-efi-amd64-bin grub-common ovmf iproute2 cloud-guest-utils genisoimage dosfstools mtools \
	systemd dbus-daemon lintian shellcheck tmux gcc

.DEFAULT_GOAL := help
.PHONY: help build deb debs docs timeline-screenshot packages lint unit fleet test e2e e2e-arm64 e2e-cluster template bench demo clean

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

build: ## Build bin/nodeagent, one static file
	$(GO_BUILD) -o bin/nodeagent ./cmd/nodeagent

deb: ## Build the Debian package in dist/ (ARCH=arm64: on any machine)
	@rm -rf $(STAGE) && mkdir -p $(STAGE)
	$(GO_BUILD) -o $(STAGE)/nodeagent ./cmd/nodeagent
	GOARCH= go run -tags docs ./cmd/nodeagent docs $(STAGE)
	GOARCH= go run ./packaging/changelog $(VERSION) '$(MAINTAINER)' <CHANGELOG.md >$(STAGE)/changelog.Debian
	GOARCH= go run ./packaging/copyright $(ARCH) ./cmd/nodeagent >$(STAGE)/copyright
	gzip -9n $(STAGE)/man/* $(STAGE)/changelog.Debian
	VERSION=$(VERSION) ARCH=$(ARCH) STAGE=$(STAGE) MAINTAINER='$(MAINTAINER)' GOFLAGS= GOARCH= \
		$(NFPM) package -p deb -f packaging/nfpm.yaml -t $(DEB)

debs: ## Build the packages for amd64 and arm64
	$(MAKE) deb ARCH=amd64
	$(MAKE) deb ARCH=arm64

docs: ## Write the reference of the commands, docs/cli
	@rm -rf docs/cli $(STAGE)/docs
	go run -tags docs ./cmd/nodeagent docs $(STAGE)/docs
	cp -r $(STAGE)/docs/cli docs/cli

CHROMIUM = chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars
timeline-screenshot: ## Draw docs/timeline.png anew (needs Debian's chromium)
	profile=$$(mktemp -d) && $(CHROMIUM) --user-data-dir=$$profile --window-size=1100,706 --screenshot=docs/timeline.png \
		file://$(CURDIR)/cmd/nodeagent/testdata/timeline/done.svg; rm -rf $$profile

packages:
	@missing=; for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; fi

GO_FOLDERS = cmd internal packaging test
lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l $(GO_FOLDERS))" || { echo 'gofmt wants to change:'; gofmt -l $(GO_FOLDERS); exit 1; }
	go vet -tags vm,guest ./...
	go vet -tags docs ./cmd/nodeagent
	$(STATICCHECK) -tags vm,guest ./...

unit: packages ## The tests that need no VM
	$(SUDO) env "PATH=$$PATH" go test -race -timeout 20m ./...

fleet: packages ## The journal of a cluster's nodes, tested with libdqlite linked
	$(SUDO) env "PATH=$$PATH" go run ./packaging/dqlite $$(go env GOARCH) go vet ./internal/fleet
	$(SUDO) env "PATH=$$PATH" go run ./packaging/dqlite $$(go env GOARCH) go test -race -timeout 20m ./internal/fleet

test: unit deb ## All tests that need no Kubernetes: unit tests, then VMs
	template=$$($(SUDO) env "PATH=$$PATH" go run ./test/template/cmd/build-template $(DEB) | sed -n 's/^disk: *//p') && \
	$(SUDO) env "PATH=$$PATH" NODEAGENT_TEMPLATE="$$(dirname "$$template")" \
		go test -tags vm -p 1 -parallel 2 -count=1 -timeout 60m -v -skip '^Test(E2E|Cluster|More)' ./test/cloud ./test/vm

e2e: packages deb ## A Kubernetes control node from power-on to Ready, and its reboot
	$(SUDO) env "PATH=$$PATH" go test -tags vm -parallel 1 -count=1 -timeout 50m -v -run '^TestE2E' -skip '^TestE2EArm64$$' ./test/vm

ARM64_PACKAGES = qemu-system-arm qemu-efi-aarch64 qemu-user-static
e2e-arm64: ## A router on an emulated arm64 machine with GPT and UEFI, and its reboot
	$(MAKE) packages deb ARCH=arm64 PACKAGES='$(PACKAGES) $(ARM64_PACKAGES)'
	$(SUDO) env "PATH=$$PATH" go test -tags vm -count=1 -timeout 90m -v -run '^TestE2EArm64$$' ./test/vm

e2e-cluster: packages deb ## What CI has no time for: whole clusters, upgrade, reset, more VMs (two hours and more)
	$(SUDO) env "PATH=$$PATH" go test -tags vm -parallel 1 -count=1 -timeout 180m -v -run '^Test(Cluster|More)' ./test/vm

TEMPLATES ?= bookworm-mbr bookworm-gpt trixie-mbr trixie-gpt
template: packages deb ## Bake templates with the package in dist/ (TEMPLATES=trixie-gpt: one)
	for name in $(TEMPLATES); do $(SUDO) env "PATH=$$PATH" go run ./test/template/cmd/build-template -suite $${name%-*} $$(test $${name#*-} = mbr || echo -gpt) \
		-o $(DIST)/nodeagent-template-$(VERSION)-$$name.qcow2 $(DEB) || exit 1; done

bench: packages deb ## Measure nodeagent against what it replaces, in a VM
	$(SUDO) env "PATH=$$PATH" go run ./test/cmd/bench

ROLE ?= cksnode
demo: packages deb ## Boot a node and follow it until it is Ready (ROLE=router: the quick one)
	$(SUDO) env "PATH=$$PATH" go run ./test/cmd/demo -role $(ROLE)

clean: ## Remove what was built here (the cache in ~/.cache/nodeagent stays)
	rm -rf bin dist
