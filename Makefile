# Everything a developer runs. `make help` lists it.
#
# Builds are static and reproducible: no cgo, no paths, no version-control
# stamp, so the same tree gives the same bytes on every machine.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

COMMANDS  := snapuserd cowtool otactl
PLATFORMS := linux/amd64 linux/arm64 linux/arm linux/riscv64 android/arm64
GOBUILD   := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w'
GUESTTAGS := vmtest,vmfault,vmhost,vmbench
FUZZTIME  ?= 10s
TESTFLAGS ?=
BENCHFLAGS ?=
TORTUREFLAGS ?=
VMFLAGS ?=

.PHONY: help demo test bench torture vmtest vmbench vmshell build man cross lint fuzz clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## an update built, served, mounted, merged through a crash (root, < 3 minutes)
	@tools/setup.sh demo
	@$(MAKE) --no-print-directory build
	@tools/demo.sh

test: ## set-up, lint and every test, under the race detector where there are goroutines
	@tools/setup.sh test
	@$(MAKE) --no-print-directory lint
	@tools/test.sh $(TESTFLAGS)

bench: ## measure what is promised, beside its reference (root; BENCHFLAGS=-quick)
	@tools/setup.sh bench
	@$(MAKE) --no-print-directory build
	go run ./tools/bench -bin bin $(BENCHFLAGS)

torture: ## updates of devices that suffer (TORTUREFLAGS='-torture 5000 -torture-seed 7'; VM=1, VM=sweep or VM=short: with a real kernel, '-lives 5 -life-seed 7')
	@case "$(VM)" in \
	'') ;; \
	short) tools/setup.sh vmtest; exec nice -n 5 go test -tags vmhost ./tools/vmlab -run '^Test(DKMS|VolatileGuest|TortureKernel)$$' -v -lives 1 -life-seed 13 $(TORTUREFLAGS) ;; \
	sweep) tools/setup.sh vmtest; exec nice -n 5 go test -tags vmhost ./tools/vmlab -run '^TestSweepKernel$$' -v -timeout 0 $(TORTUREFLAGS) ;; \
	*) tools/setup.sh vmtest; exec nice -n 5 go test -tags vmhost ./tools/vmlab -run '^Test(VolatileGuest|Accidents|DeviceExtents|BootLoaders|PlainKernel|TortureKernel)$$' -v -timeout 0 -lives 20 $(TORTUREFLAGS) ;; \
	esac; \
	go test ./ota/update -run '^TestTorture$$' -v -timeout 0 -torture 1000 $(TORTUREFLAGS) | grep -v '^ *\(---\|===\).*TestTorture/'

vmtest: ## tests on kernels of their own (VMFLAGS='-vehicle uml -run NAME'); see docs/vmlab.md
	@tools/setup.sh vmtest
	go run ./tools/vmlab run $(VMFLAGS)
	@[ -n "$(VMFLAGS)" ] || $(MAKE) --no-print-directory torture VM=short

vmbench: ## measure carriers beside other servers in guests (VMFLAGS='-vehicle qemu')
	@tools/setup.sh vmbench
	go run ./tools/vmlab run -tag vmbench -j 1 -v $(VMFLAGS)

vmshell: ## a shell in a guest (VMFLAGS='-vehicle qemu')
	@tools/setup.sh vmtest
	@go run ./tools/vmlab shell $(VMFLAGS)

build: ## the commands for this machine, static, into bin/
	@tools/setup.sh build
	@mkdir -p bin
	@for c in $(COMMANDS); do $(GOBUILD) -o bin/$$c ./cmd/$$c; done
	@echo "built $(addprefix bin/,$(COMMANDS))"

man: build ## manual pages of all commands, into bin/man/
	@for c in cowtool otactl; do bin/$$c man bin/man; done
	@bin/snapuserd --help 2>&1 | bin/otactl man bin/man snapuserd
	@echo "wrote $$(ls bin/man | wc -l) pages into bin/man"

cross: ## the commands for every platform, into bin/OS-ARCH/, and a look at what came out
	@tools/setup.sh build
	@for p in $(PLATFORMS); do \
		out=bin/$${p/\//-}; mkdir -p $$out; \
		for c in $(COMMANDS); do GOOS=$${p%/*} GOARCH=$${p#*/} $(GOBUILD) -o $$out/$$c ./cmd/$$c; done; \
	done
	@go run ./tools/elfcheck $(foreach p,$(PLATFORMS),$(addprefix bin/$(subst /,-,$(p))/,$(COMMANDS)))
	@HOUSE_CROSS_BUILT=1 go test -count=1 -run '^TestAndroidBp' ./tools/house

lint: ## gofmt, go vet, staticcheck, shell syntax
	@out=$$(gofmt -l $$(go list -f '{{.Dir}}' ./...)); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	go vet ./...
	go vet -tags $(GUESTTAGS) ./...
	go tool staticcheck ./...
	go tool staticcheck -tags $(GUESTTAGS) ./...
	@for s in .ci/run tools/*.sh tools/boot/*.sh; do bash -n $$s; done

fuzz: ## every fuzz target for FUZZTIME (10s)
	@tools/fuzz.sh $(FUZZTIME)

clean: ## remove bin/
	rm -rf bin
