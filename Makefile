# What a person runs is what CI runs. `make demo` to try it, `make test` and `make check` before a commit.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := $(VENV)/bin
KERNEL := $(wildcard functions/kernels/csrc/*)

.PHONY: setup demo test check bench bench-kernels bench-invoke bench-batch bench-fairness bench-memory bench-budget bench-packing bench-residency stack clean

setup: $(VENV)/installed

$(VENV)/installed: setup.cfg setup.py pyproject.toml $(KERNEL)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@$(BIN)/python -c "from functions.kernels import load_kernel; print('expert kernel:', load_kernel().name)"
	touch $@

demo: setup  ## three tenants' prompts at the same time, through the bundled model's expert functions
	$(BIN)/python scripts/demo.py

test: setup  ## the whole test suite
	$(BIN)/pytest

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## compare five ways to serve six tenants, or six with llama.cpp; ARGS="--workload bursty" or other options of `faasmoe bench run`
	$(BIN)/faasmoe bench run $(ARGS)

bench-kernels: setup  ## speed of the expert kernel, compared with torch and the memory bus, and cold starts
	$(BIN)/python -m bench.micro.kernels
	$(BIN)/python -m bench.micro.cold_start

bench-invoke: setup  ## overhead of function calls: direct, through the embedded gateway, and a bare aiohttp echo
	$(BIN)/python -m bench.micro.invoke

bench-batch: setup  ## tokens/s of 1 to 32 sequences at once over the API
	$(BIN)/python -m bench.micro.batch

bench-fairness: setup  ## two tenants, one of which floods the server: fair scheduling, and first come, first served
	$(BIN)/python -m bench.micro.fairness

PARTITION ?= partitions/qwen1.5-moe-a2.7b

bench-memory: setup  ## a model larger than its memory limit, compared with llama.cpp; ARGS="--help" shows the options
	$(BIN)/python -m bench.memory_limit.run $(PARTITION) $(ARGS)

bench-budget: setup  ## memory in ten minutes of mixed traffic, compared with the memory budget
	$(BIN)/python -m bench.micro.budget $(ARGS)

bench-packing: setup  ## calls per token and memory, with experts packed by a profile and without
	$(BIN)/python -m bench.micro.packing $(ARGS)

bench-residency: setup  ## time to read an expert from disk: mapped pages, and direct reads into an arena
	$(BIN)/python -m bench.micro.residency

stack: setup  ## write stack.yml and its template anew, for the bundled model
	rm -rf partitions/demo
	$(BIN)/faasmoe partition models/demo partitions/demo
	$(BIN)/faasmoe stack partitions/demo -o stack.yml

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f functions/kernels/*.so
