# The ways in. `make help` lists them.
#
# Every target may be run again at once: what is there is not fetched, built or made a second time.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
PYTHON ?= python3
CONFIG ?= configs/quickstart.toml

PROGRAM := target/release/proxrl
SET_UP := $(PYTHON) scripts/setup.py

# $(call need,COMMAND,WHAT TO DO) ends with one sentence where a command is missing.
need = command -v $(1) >/dev/null 2>&1 || { echo "make: there is no \`$(1)\`: $(2)" >&2; exit 1; }

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: quickstart
quickstart: setup build ## fetch libtorch and a small model, build, and train it: configs/quickstart.toml
	$(PROGRAM) train $(CONFIG)

.PHONY: build
build: libtorch ## build the program in release mode: target/release/proxrl
	$(CARGO) build --release --locked --package proxrl

.PHONY: test
test: tools ## set up, then run every check and test
	.ci/run

.PHONY: setup
setup: libtorch model ## fetch libtorch and the quickstart's model into the cache, and tell cargo

.PHONY: docs
docs: libtorch ## build the handbook of the code as HTML: target/doc/proxrl/index.html
	$(CARGO) doc --workspace --no-deps --locked
	@echo "the handbook: target/doc/proxrl/index.html, which lists the crates; the methods: target/doc/proxrl_trainer/index.html"

.PHONY: bench
bench: setup build ## measure speed and memory; PEERS=1 also what people use instead: docs/results/performance.md
	$(PYTHON) scripts/bench.py $(if $(PEERS),--peers) $(BENCH)

.PHONY: install
install: build ## install the program and its libraries under PREFIX (/usr/local)
	scripts/install.sh $(PROGRAM) "$(DESTDIR)$(PREFIX)"

.PHONY: clean
clean: ## remove what was built here (the cache stays)
	$(CARGO) clean

.PHONY: libtorch model tools
libtorch: tools
	@$(SET_UP) libtorch
model: tools
	@$(SET_UP) model
tools:
	@$(call need,$(CARGO),install Rust's toolchain with rustup)
	@$(call need,$(PYTHON),install Python 3.8 or newer with pip)
	@$(call need,cc,install a C and C++ compiler (Debian: apt install g++))
