# CI runs the targets that a person runs.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := $(VENV)/bin
PARTITION ?= partitions/qwen1.5-moe-a2.7b
C_SOURCES := $(wildcard functions/*/csrc/*.[ch] functions/*/csrc/*/*.h control_plane/*/csrc/*.[ch] \
	control_plane/*/*/csrc/*.[ch] tests/support/functions/*.c)

.DEFAULT_GOAL := help
.PHONY: help setup constraints demo test test-fast check format docs stack clean \
	bench bench-batch bench-budget bench-families bench-fairness bench-grammars bench-granularity bench-invoke bench-kernels bench-layer bench-memory \
	bench-packing bench-peers bench-quality bench-residency \
	chaos clients fuzz soak

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## (.*)$$/\1\t\2/' | expand -t 18

setup: $(VENV)/installed  ## make the virtual environment in .venv, with everything for development

$(VENV)/installed: setup.cfg setup.py pyproject.toml constraints.txt $(C_SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -c "from functions.kernels import load_kernel; print('expert kernel:', load_kernel().name)"
	touch $@

constraints:  ## write constraints.txt anew: the newest versions that setup.cfg allows
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet --editable '.[dev]'
	{ echo '# Written by `make constraints`: what CI and `make setup` install.'; \
	  build/constraints/bin/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt

demo: setup  ## three tenants ask the bundled model at the same time
	$(BIN)/python scripts/demo.py

test: setup  ## the whole test suite, with coverage
	$(BIN)/pytest -n auto --dist loadfile --cov

test-fast: setup  ## the tests without processes and models, in under a minute
	$(BIN)/pytest -n auto --dist loadfile -m "not slow"

clients: setup build/clients/installed build/clients/apart/installed tests/clients/node/node_modules  ## the clients that people use, unmodified, against a server
	@for folder in clients clients/apart; do \
		FAASMOE_ENVIRONMENT=$(CURDIR)/$(VENV) \
		build/$$folder/bin/pytest -c tests/clients/pytest.ini --rootdir . tests/$$folder/test_*.py || exit; \
	done

build/%/installed: tests/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

tests/clients/node/node_modules: tests/clients/node/package.json tests/clients/node/package-lock.json
	@if command -v npm > /dev/null; then npm ci --prefix tests/clients/node --loglevel error --no-audit --no-fund && touch $@; \
	else echo 'npm is not installed: the tests of clients for Node are skipped'; fi

fuzz: setup  ## malformed input for whatever reads data from outside; ARGS="--seconds 30" for a short run
	$(BIN)/python -m bench.robustness.fuzz $(ARGS)

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/mypy

format: setup  ## format Python and C
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_SOURCES)

docs: setup  ## build the docs site in build/site; every link must lead somewhere
	$(BIN)/zensical build --strict

bench: setup  ## six tenants, five ways to serve them (six with llama.cpp); ARGS="--workload bursty" passes options of `faasmoe bench run`
	$(BIN)/faasmoe bench run $(ARGS)

bench-batch: setup  ## tokens/s of 1 to 32 sequences at once, over the API
	$(BIN)/python -m bench.micro.batch

bench-budget: setup  ## whether a memory budget is held in ten minutes of mixed traffic
	$(BIN)/python -m bench.micro.memory.budget $(ARGS)

bench-families: setup  ## shapes of six families in 4 bits within 8 GB; ARGS="FOLDER --shapes NAME,NAME --llama-cpp PROGRAM"
	$(BIN)/python -m bench.peers.families $(ARGS)

bench-fairness: setup  ## tenants who flood beside a modest one: service, times to first token, refusals
	$(BIN)/python -m bench.micro.fairness.shares
	$(BIN)/python -m bench.micro.fairness.flood

bench-grammars: setup  ## tokens/s of 8 sequences at once, free and held to a JSON schema
	$(BIN)/python -m bench.micro.grammars

bench-granularity: setup  ## memory, starts and speed by the number of experts in a function, up to one
	$(BIN)/python -m bench.micro.granularity $(ARGS)

bench-invoke: setup  ## the cost of a call: direct, through the embedded gateway, and a bare aiohttp echo
	$(BIN)/python -m bench.micro.invoke

bench-kernels: setup  ## the expert kernel against torch and the memory bus, and a function's cold start
	$(BIN)/python -m bench.micro.kernels
	$(BIN)/python -m bench.micro.cold_start

bench-layer: setup  ## what a layer costs beyond reading its bytes, by part
	$(BIN)/python -m bench.micro.layer $(ARGS)

bench-memory: setup  ## a model larger than memory; ARGS="--help" lists the options
	$(BIN)/python -m bench.memory_limit.run $(PARTITION) $(ARGS)

bench-packing: setup  ## calls per token and memory, with experts packed by a profile and without
	$(BIN)/python -m bench.micro.packing $(ARGS)

bench-peers: setup  ## beside llama.cpp and ik_llama.cpp at their best; ARGS="--llama-cpp PROGRAM --gguf FILE"
	$(BIN)/python -m bench.peers.run $(PARTITION) $(ARGS)

bench-quality: setup  ## what types of weights cost on a real model; ARGS="MODEL.gguf TEXT... --prompts FILE"
	$(BIN)/python -m bench.micro.quality.run $(ARGS)

bench-residency: setup  ## mapped pages against an arena: the cost of bringing an expert into memory
	$(BIN)/python -m bench.micro.memory.residency

chaos: setup  ## ten minutes of faults under streams with known answers; ARGS="--help" lists the options
	$(BIN)/python -m bench.robustness.chaos.run $(ARGS)

soak: setup  ## half an hour of mixed traffic: whether memory, threads and open files stay the same
	$(BIN)/python -m bench.robustness.soak.run $(ARGS)

stack: setup  ## write the bundled model's stack.yml and template/ anew
	rm -rf partitions/demo
	$(BIN)/faasmoe partition models/demo partitions/demo
	$(BIN)/faasmoe stack partitions/demo -o stack.yml

clean:  ## remove the virtual environment and everything that was built
	rm -rf $(VENV) build tests/clients/node/node_modules .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find control_plane functions bench scripts tests -name __pycache__ -prune -exec rm -rf {} +
	find control_plane functions -name '*.so' -delete
