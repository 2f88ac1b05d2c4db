# From a clean clone: `make demo` and `make test` need Python, a C++ compiler and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
PARTS := kernels cone qp discrete least_squares implicit
EXTRAS := torch,jax,tensorflow,ecos,diffcp,plot,test
KERNELS := $(wildcard layercompiler/kernels/src/*)
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/python -m pytest

.PHONY: help demo test test-all lint format bench docs sanitize clean

help:
	@echo "make demo      learn the penalty weights of a lasso through the layer, in three frameworks"
	@echo "make test      the tests, in about ten minutes on two cores;  make test-all  the slow ones too"
	@echo "make lint      ruff, pyright, import-linter"
	@echo "make bench     the peers and us in one run; writes benchmarks/RESULTS.md"
	@echo "make docs      the documentation;  make sanitize  the kernels under ASan and UBSan (scalar and the widest set of the machine; ISA=all for all)"

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed
	$(PYTEST) -n $(WORKERS) -m "not slow and not gpu"

test-all: $(VENV)/.installed
	$(PYTEST) -n $(WORKERS) -m "not gpu"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers live in an environment of their own: their pins clash with ours.
$(BENCH)/.installed: pyproject.toml setup.py constraints.txt $(KERNELS)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt --editable ".[torch,jax,ecos,plot,bench]"
	$(BENCH)/bin/pip install --quiet --no-deps qpth==0.0.18  # it asks for numpy 1, and runs on numpy 2
	touch $@

bench: $(BENCH)/.installed
	for part in $(PARTS); do $(BENCH)/bin/python -m benchmarks.$$part || exit 1; done

docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python -m sphinx -W -b html docs build/docs

sanitize: $(VENV)/.installed
	$(BIN)/python tests/kernels/sanitize.py $(ISA)

clean:
	rm -rf build dist *.egg-info layercompiler/kernels/*.so
