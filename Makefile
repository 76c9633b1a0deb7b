# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
V := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
CONSTRAINTS := $(wildcard constraints/py$(V).txt)
BIN := .venv/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check
TORCH_INDEX := $(if $(POLYTASK_TORCH_INDEX),--extra-index-url $(POLYTASK_TORCH_INDEX))
JOBS ?= 2
# the public data sets, where they lie beside the project; tests that need them say so where they do not
export POLYTASK_DATA ?= $(wildcard $(abspath ../shared/data))
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: demo test check format bench bench-linear bench-deep bench-balance bench-verdict reproduce-linear reproduce-deep reproduce-balance clean

.venv/.python:
	@echo "Setting up .venv (once; a few minutes and 1.4 GB)"
	$(PYTHON) -m venv .venv
	$(PIP) -U pip
	@$(PIP) "torch==2.13.0+cpu" $(TORCH_INDEX) 2>/dev/null || { \
	  echo "No CPU wheel of torch at hand: taking the registry's own, which may be several GB on Linux"; \
	  echo "(set POLYTASK_TORCH_INDEX to an index of CPU wheels to avoid that)."; \
	  $(PIP) $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) "torch>=2.6"; }
	@touch $@

# what the demonstration needs
.venv/.run: .venv/.python pyproject.toml $(CONSTRAINTS)
	$(PIP) $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[torch,parquet]"
	@touch $@

# and what the tests need besides
.venv/.dev: .venv/.run
	$(PIP) $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[torch,parquet,dev]"
	@touch $@

# and the peers that benchmarks run against
.venv/.bench: .venv/.dev
	$(PIP) $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[torch,parquet,dev,bench]"
	$(PIP) --no-deps "LibMTL==1.1.5"  # it asks for torchvision, which nothing here needs
	@touch $@

demo: .venv/.run
	$(BIN)/polytask compare --demo --jobs $(JOBS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist loadgroup

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-linear bench-deep bench-balance bench-verdict

bench-linear: .venv/.bench
	@short=0; for part in bench_linear bench_linear_tasks; do \
	  $(ONE_THREAD) $(BIN)/python benchmarks/$$part.py || short=1; done; exit $$short

bench-deep: .venv/.bench
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_deep.py

bench-balance: .venv/.dev
	$(ONE_THREAD) $(BIN)/python benchmarks/bench_balance.py

bench-verdict: .venv/.dev
	$(ONE_THREAD) $(BIN)/python benchmarks/verdict_simulation.py

# the published tables of linear multi-task learning, about an hour and a half on two cores; goes on where it was stopped
reproduce-linear: .venv/.dev
	$(ONE_THREAD) $(BIN)/python benchmarks/reproduce_linear.py --jobs $(JOBS)
	$(ONE_THREAD) $(BIN)/python benchmarks/reproduce_linear.py --report docs/linear.md

# the deep architectures on five data sets, about an hour and a half on two cores; goes on where it was stopped
reproduce-deep: .venv/.dev
	$(ONE_THREAD) $(BIN)/python benchmarks/reproduce_deep.py --jobs $(JOBS)
	$(ONE_THREAD) $(BIN)/python benchmarks/reproduce_deep.py --report docs/deep.md

# all balancers on three data sets, about an hour and a quarter on two cores; goes on where it was stopped
reproduce-balance: .venv/.dev
	$(ONE_THREAD) $(BIN)/python benchmarks/reproduce_balance.py --jobs $(JOBS)
	$(ONE_THREAD) $(BIN)/python benchmarks/reproduce_balance.py --report docs/balance.md

clean:
	rm -rf .venv build dist runs .mypy_cache .ruff_cache .pytest_cache
