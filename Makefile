# softce_fast: everything runs in a virtual environment that is made on first use.
#
# The stamps in $(VENV)/stamps say what is done; a target whose sources did not change costs nothing.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
JOBS ?= 2
BENCH_ARGS ?=
ABLATION_ARGS ?=
WAYS_ARGS ?=
RUNS ?=
COMPARE_ARGS ?=
LINEAR_ARGS ?=
ADAPTERS_ARGS ?=
SPHINX_ARGS ?=
WHEEL_ARGS ?=

# GNU make's built-in CC is cc; unless somebody chose one, setuptools shall take Python's own.
ifeq ($(origin CC),default)
unexport CC
else
export CC
endif
export CFLAGS LDFLAGS
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export PIP_USER = 0
unexport PYTHONPATH PYTHONHOME

STAMPS := $(VENV)/stamps
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet
RESULTS := benchmarks/results/local
# Where pytest-benchmark keeps every run of `make bench`. A slower one fails with
# BENCH_ARGS='--benchmark-compare --benchmark-compare-fail=median:10%'.
HISTORY := --benchmark-storage=benchmarks/results/history

KERNEL_SOURCES := $(wildcard $(foreach ext,pyx pxi pxd h,softce_fast/_kernels/*.$(ext) \
                                                         softce_fast/_kernels/*/*.$(ext)))
BUILD_SOURCES := setup.py pyproject.toml softce_fast/_version.py $(KERNEL_SOURCES)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help build check test coverage test-oldest bench ablation ways history compare lint wheel
.PHONY: docs pages sdist-check aarch64 clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) CC, CFLAGS, LDFLAGS, JOBS, PYTEST_ARGS, ..."

build: $(STAMPS)/built ## build the kernels in place, into the virtual environment

check: $(STAMPS)/native $(STAMPS)/group-test ## the quick tests, on the build for this CPU alone
	$(PY) -m pytest -m "not slow" --numprocesses $(JOBS) $(PYTEST_ARGS) \
	    $$(sed -n '/^check = /,/^]/s/^    "\(.*\)",$$/\1/p' pyproject.toml)

test: $(STAMPS)/built $(STAMPS)/group-test $(STAMPS)/torch $(STAMPS)/adapters ## build, then run all tests
	$(PY) -m pytest --numprocesses $(JOBS) $(PYTEST_ARGS)

coverage: ## the quick tests; which lines and branches of the wrapper they miss
	$(MAKE) test PYTEST_ARGS='-m "not slow" --cov --cov-report=term --cov-report=xml:build/coverage.xml'

test-oldest: ## the tests with the oldest NumPy that pyproject.toml allows
	@mkdir -p build
	sed -n 's/^dependencies = \["numpy>=\([0-9.]*\)"\]$$/numpy==\1/p' pyproject.toml >build/oldest.txt
	PIP_CONSTRAINT=$(CURDIR)/build/oldest.txt $(MAKE) test VENV=$(VENV)-oldest

bench: $(STAMPS)/native $(STAMPS)/group-bench ## train on real images; against textbook NumPy
	@mkdir -p $(RESULTS)
	$(PY) benchmarks/digits.py --json $(RESULTS)/digits.json
	$(PY) -m pytest benchmarks/test_speed.py --quiet $(HISTORY) --benchmark-autosave \
	    --benchmark-quiet --benchmark-json=$(RESULTS)/pytest-benchmark.json $(BENCH_ARGS)
	$(PY) benchmarks/report.py speed $(RESULTS)/pytest-benchmark.json

ablation: $(STAMPS)/built $(STAMPS)/group-bench ## what each mechanism gains, into docs/design.md
	$(PY) benchmarks/ablation.py --json benchmarks/results/ablation.json $(ABLATION_ARGS)
	$(PY) benchmarks/report.py pages

docs: $(STAMPS)/native $(STAMPS)/group-docs ## the documentation, into build/docs/html
	$(PY) -m sphinx --fail-on-warning --keep-going $(SPHINX_ARGS) docs build/docs/html

pages: $(STAMPS)/native $(STAMPS)/group-bench ## tables and plots of all pages, from recorded results
	$(PY) benchmarks/report.py pages

ways: $(STAMPS)/native $(STAMPS)/torch $(STAMPS)/group-compare ## no slow way: layouts, masks, dtypes, options
	$(PY) benchmarks/ways.py --json benchmarks/results/ways.json $(WAYS_ARGS)

history: $(STAMPS)/native $(STAMPS)/group-bench ## the runs of `make bench`, beside one another
	$(PY) -m pytest_benchmark $(HISTORY:--benchmark-%=--%) compare --sort=name \
	    --columns=median,iqr --group-by=group $(RUNS)

compare: $(STAMPS)/built $(STAMPS)/torch $(STAMPS)/group-compare ## against PyTorch, JAX, Numba, ...
	$(PY) benchmarks/compare.py $(COMPARE_ARGS)
	$(PY) benchmarks/linear.py --json benchmarks/results/linear.json $(LINEAR_ARGS)
	$(PY) benchmarks/adapters.py --json benchmarks/results/adapters.json $(ADAPTERS_ARGS)

lint: $(STAMPS)/built $(STAMPS)/group-dev ## style, types, stubs; workflows
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PATH="$(VENV)/bin:$$PATH" cython-lint softce_fast
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m mypy.stubtest softce_fast._kernels.probe softce_fast._kernels.execute
	$(VENV)/bin/zizmor --quiet --offline --pedantic .github

wheel: $(STAMPS)/built $(STAMPS)/group-dev ## wheels for each Python here, repaired and tested
	$(PY) tools/wheels.py $(WHEEL_ARGS)

sdist-check: $(STAMPS)/built $(STAMPS)/group-dev ## sdist, wheel from it, the tests against that
	$(PY) tools/wheels.py --pythons $(PY) --no-repair --tests all $(WHEEL_ARGS)

aarch64: $(STAMPS)/built ## cross-compiled for aarch64, tested under qemu (Debian, Ubuntu)
	$(PY) tools/aarch64.py

clean: ## remove everything that was made here
	rm -rf build dist wheelhouse softce_fast.egg-info $(VENV) $(VENV)-oldest
	rm -rf .benchmarks .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache $(RESULTS)
	find softce_fast benchmarks tests tools -name __pycache__ -prune -exec rm -rf {} +
	find softce_fast -name '*.so' -exec rm -f {} +
	rm -rf docs/api docs/gallery

# ------------------------------------------------------------------------------ the environment

# pip 25.1 and later know dependency groups; nothing is fetched if it is there.
$(STAMPS)/venv: tools/preflight.sh
	@sh tools/preflight.sh $(PYTHON)
	@echo "Setting up $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@sed -n 's/^requires = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d '" ' | tr , '\n' \
	    >$(STAMPS)/build-requirements.txt
	@env -u PIP_CONSTRAINT $(PIP) install 'pip>=25.1' -r $(STAMPS)/build-requirements.txt
	@touch $@

$(STAMPS)/built: $(STAMPS)/venv $(BUILD_SOURCES)
	@echo "Building the kernels (some minutes; all cores work on it)"
	@$(PIP) install --no-build-isolation --editable .
	@touch $(STAMPS)/native $@

# The build for this CPU alone, all that a benchmark runs, takes a third of the time.
$(STAMPS)/native: $(STAMPS)/venv $(BUILD_SOURCES)
	@echo "Building the kernels for this CPU (a minute or two)"
	@rm -f $(STAMPS)/built
	@SOFTCE_FAST_BUILD=native $(PIP) install --no-build-isolation --editable .
	@touch $@

$(STAMPS)/group-%: pyproject.toml | $(STAMPS)/native
	@echo "Installing what '$*' needs"
	@$(PIP) install --group '$*'
	@touch $@

$(STAMPS)/torch: pyproject.toml | $(STAMPS)/built
	@echo "Installing PyTorch for CPUs"
	@$(PIP) install --only-binary=:all: --group torch 2>$(STAMPS)/torch-errors.txt || \
	    echo "There is no CPU build of PyTorch for this Python here: tests against it will skip."
	@touch $@

# One by one, as of each some platform or Python has no wheels.
$(STAMPS)/adapters: pyproject.toml | $(STAMPS)/built
	@echo "Installing the libraries of the adapters"
	@sed -n '/^adapters-test = /,/^]/s/^    "\(.*\)",$$/\1/p' pyproject.toml | while read -r needed; do \
	    $(PIP) install --only-binary=:all: "$$needed" 2>$(STAMPS)/adapters-errors.txt || \
	    echo "$$needed cannot be had for this Python here: tests that need it will skip."; done
	@touch $@

# ----------------------------------------------------------------------------------- campaigns

SECONDS ?= 60
FUZZ_ARGS ?=
SUITES ?=
SANITIZE_ARGS ?=
ATTACK_ARGS ?=
MUTANTS ?=

fuzz: $(STAMPS)/built $(STAMPS)/group-test ## random calls for SECONDS=60
	$(PY) tools/fuzz.py --seconds $(SECONDS) $(FUZZ_ARGS)

sanitize: $(STAMPS)/built $(STAMPS)/group-test ## address, undefined-behaviour, thread sanitizers
	$(PY) tools/sanitize.py $(SANITIZE_ARGS)

attack: $(STAMPS)/built $(STAMPS)/group-test ## limits, forks, environments, ... for SECONDS=60
	$(PY) tools/attack.py --seconds $(SECONDS) $(ATTACK_ARGS)

mutants: $(STAMPS)/built $(STAMPS)/group-test ## small mistakes, planted one at a time: the tests fail
	$(PY) tools/mutants.py $(MUTANTS)

suites: $(STAMPS)/built $(STAMPS)/group-test $(STAMPS)/torch $(STAMPS)/adapters ## other projects' tests on the adapters
	$(PY) tools/suites.py $(SUITES)

.PHONY: fuzz sanitize attack mutants suites
