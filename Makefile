# Everything starts from python3 and make: the first call creates .venv and installs, a later one starts at once.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# More options for pip, e.g. PIP_FLAGS="--extra-index-url ..." with PyTorch's own index, for its small CPU build on Linux.
PIP_FLAGS ?=
# More options for `thesis run`, e.g. ARGS="--only 07 --jobs 2".
ARGS    ?=
PROFILE ?= demo

.DEFAULT_GOAL := help
.PHONY: help install quick run test slow lab bench render docs check clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

install: $(READY)  ## create .venv and install (the other targets do it when needed)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python %d.%d: needs 3.11 or later; name one with make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[docs,cluster,dev]"
	@touch $@

quick: $(READY)  ## first results in a minute: outputs/quick/index.html
	$(BIN)/thesis quick $(ARGS)

run: $(READY)  ## execute every notebook on the embedded demo data, offline (PROFILE=, ARGS=)
	$(BIN)/thesis run --profile $(PROFILE) $(ARGS)

# A test process per core, at most four: each may hold 3 GB. One thread for each.
TESTS := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
ifndef OMP_NUM_THREADS
test slow: export OMP_NUM_THREADS := 1
endif
test: $(READY)  ## all tests but the slow ones (ARGS="-n 0 tests/methods" for some of them)
	$(BIN)/python -m pytest $(TESTS) -m "not slow" $(ARGS)

slow: $(READY)  ## the tests that take tens of seconds or minutes each
	$(BIN)/python -m pytest $(TESTS) -m slow $(ARGS)

# As in thesis_lib/__init__.py, which comes too late where a notebook imports torch first.
ifndef OMP_WAIT_POLICY
lab: export GOMP_SPINCOUNT ?= 10000
endif
lab: $(READY)  ## open JupyterLab on 00_start_here
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

bench: $(READY)  ## stage times of PatchCore on this machine; a picture, its search and the coreset against plain code and the floor
	$(BIN)/thesis time patchcore --data demo --category granulate --weights random --layers 2 --pictures 20 --force
	$(BIN)/thesis time patchcore --data demo --category granulate --weights random --layers 2,3 --pictures 20 --force
	$(BIN)/python -m benchmarks.bench_picture
	$(BIN)/python -m benchmarks.bench_search
	$(BIN)/python -m benchmarks.bench_coreset

render: run  ## copy the executed notebooks to outputs/rendered, if they are fit to be shown
	$(BIN)/thesis render --profile $(PROFILE)

docs: run  ## build the documentation site from the executed notebooks: outputs/site/_build/html/index.html
	$(BIN)/thesis docs --profile $(PROFILE)

check: $(READY)  ## style and types of the code, style of the notebooks
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

clean:  ## remove the environment and everything generated, except what is committed
	rm -rf $(VENV) data/demo outputs/notebooks outputs/checkpoints outputs/features outputs/scratch outputs/site outputs/quick outputs/peer
