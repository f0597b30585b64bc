# imds-guard: the commands for developers. Each works on a bare Debian machine with Go and root.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
# localhost: a name that no registry has. To push the image, name yours.
IMAGE   ?= localhost/imds-guard:v0.1.0

.PHONY: help demo test test-release test-kernels e2e build bench lint notices fuzz image manifests release clean

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: build bin/ec2-metadata-mock ## see it work, in half a minute, on this machine alone
	@hack/packages iptables nftables iproute2
	go run ./test/demo --guard bin/imds-guard --imds bin/ec2-metadata-mock

test: bin/helm bin/awsclient ## run every Go test: both backends, both families, real packets (needs root)
	@hack/packages gcc libc6-dev iptables nftables iproute2 util-linux prometheus curl python3-botocore awscli
	go test -race -timeout 30m ./...

test-release: bin/helm ## make a release twice, in two places; compare and inspect both; test the licence check
	@hack/packages git
	cd tools && HELM=$(abspath bin/helm) go test -count=1 -timeout 20m -v ./release ./licenses

test-kernels: ## run the enforcement tests under the kernels of EKS nodes, 6.1 and 6.12, in QEMU without KVM
	@hack/packages qemu-system-x86 busybox-static kmod cpio dash xz-utils ipvsadm iptables nftables iproute2 util-linux
	test/kernels/run.sh 6.1 6.12

e2e_flags := -tags e2e -timeout 70m
ifdef FIGURES
e2e_flags := -tags e2e,figures -timeout 120m
endif
# RUN=TestSeedStory runs one test only, FIGURES=FILE measures as well (35 minutes more): see test/e2e/README.md.
e2e: build bin/helm ## run every test on a real Kubernetes node; building that takes 12 to 20 minutes the first time (needs root)
	@hack/packages containerd runc containernetworking-plugins debootstrap buildah iptables nftables iproute2 conntrack \
	  curl openssl procps util-linux
	test/e2e/node/build.sh
	test/e2e/node/images.sh
	E2E_FIGURES=$(abspath $(FIGURES)) go test $(e2e_flags) -count=1 -p 1 -v $(if $(RUN),-run '$(RUN)') ./test/e2e/...

build: ## build the static binary bin/imds-guard and the kubectl plugin
	VERSION=$(VERSION) COMMIT=$(COMMIT) hack/build bin ./cmd/imds-guard ./cmd/kubectl-imds_guard

bench: build ## run the benchmarks and write docs/benchmarks.md (13 minutes)
	@hack/packages iptables nftables iproute2
	go run ./test/bench --guard bin/imds-guard --out docs/benchmarks.md

lint: ## run gofmt, go vet, staticcheck, shellcheck, and check the licences of dependencies
	@hack/packages git shellcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'run gofmt on:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet -tags e2e,figures,kernels ./...
	cd tools && go vet ./...
	go tool -modfile=tools/go.mod staticcheck -tags e2e,figures,kernels ./...
	cd tools && go tool staticcheck ./...
	cd tools && go run ./licenses ..
	shellcheck -x -P SCRIPTDIR hack/build hack/packages deploy/render .ci/run test/e2e/node/*.sh test/e2e/images/firewalls/firewalls test/kernels/*.sh

notices: ## write THIRD_PARTY_NOTICES from the modules' licences
	cd tools && go run ./licenses --write ..

fuzz: ## fuzz the parsers of untrusted text, a minute each
	go test ./pkg/rules -run '^$$' -fuzz FuzzParseLine -fuzztime 1m
	go test ./pkg/netfilter -run '^$$' -fuzz FuzzParseNFTRule -fuzztime 1m
	go test ./pkg/route -run '^$$' -fuzz FuzzMessages -fuzztime 1m
	go test ./pkg/request -run '^$$' -fuzz FuzzParse -fuzztime 1m

image: ## build the container image with docker, podman or buildah, whichever is there
	"$$(command -v docker || command -v podman || command -v buildah)" build \
	  --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) -t $(IMAGE) .

manifests: bin/helm ## render deploy/*.yaml and the table of values in the chart's README
	deploy/render bin/helm deploy
	go run ./deploy/values deploy/chart/imds-guard

# What the releaser has to decide has no default: see docs/releasing.md.
given = $(if $(filter command environment,$(firstword $(origin $(1)))),$($(1)))
URL ?= https://github.com/imds-guard/imds-guard/releases/download/$(VERSION)
PLUGINS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64
release: bin/helm ## make dist/, everything that a release publishes: make release VERSION=v1.2.3 IMAGE=registry.example.com/imds-guard
	@cd tools && go run ./release --version '$(call given,VERSION)' --image '$(call given,IMAGE)' --url '$(URL)' \
	  --plugins '$(PLUGINS)' --sources '$(if $(SOURCES),$(abspath $(SOURCES)))' --repository '$(CURDIR)' --helm '$(CURDIR)/bin/helm' --out '$(CURDIR)/dist'

clean: ## remove bin/ and dist/
	rm -rf bin dist dist.new

# AWS's own mock of the endpoint, so that the demo's answers are not our own.
bin/ec2-metadata-mock: tools/go.mod
	cd tools && go build -o ../$@ github.com/aws/amazon-ec2-metadata-mock/cmd/ec2-metadata-mock

# A program that uses the AWS SDK for Go, for the tests.
bin/awsclient: tools/go.mod tools/awsclient/main.go
	cd tools && go build -o ../$@ ./awsclient

# Takes minutes to compile the first time; then it comes from the build cache.
bin/helm: tools/helm/go.mod
	@echo "building helm: this takes some minutes the first time"
	cd tools/helm && go build -trimpath -o ../../$@ helm.sh/helm/v4/cmd/helm
