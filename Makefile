# Needs Python 3.10 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
WORKSPACE := simulator_workspace
# Against a run that hangs. The demo took 26 minutes on two old cores that did other work as well.
DEMO_SECONDS ?= 3600
WHEELHOUSE ?= wheelhouse
# For example --no-deps, to build the wheel of this project alone.
WHEEL_OPTIONS ?=
# Runs a command with a time limit; 'timeout' is not on every system.
LIMITED := 'import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:], timeout=float(sys.argv[1])).returncode)'

POC_WORKSPACE ?= poc_workspace
POC_PORT ?= 8102
# For example --set rounds=1
POC_OPTIONS ?=

.PHONY: help install demo poc test test-faults lint wheelhouse clean

help:
	@echo "make install     set up .venv; the others do it by themselves"
	@echo "make demo        federated training of three synthetic hospitals; six minutes on two cores after installation"
	@echo "make poc         the same as a provisioned federation: certificates, review, records; on this machine alone"
	@echo "make test        style, types and all tests but the next; 15 minutes on two slow cores"
	@echo "make test-faults processes of a real federation are killed in the middle of a run; six minutes"
	@echo "make wheelhouse  a folder from which a machine without internet installs; several GB"
	@echo "make clean       remove what these commands wrote, the virtual environment included"

install: $(STAMP)

# The package's own file says what is needed; it is installed again when that file changes.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is %s" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

# FLARE's simulator exits with 0 even when hospitals failed, so 'fedfms results' judges by what was written.
# Three trainings share the processor: one thread each is faster than three that compete.
demo: $(STAMP)
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -c $(LIMITED) $(DEMO_SECONDS) nvflare simulator jobs/fedmsa -w $(WORKSPACE) -n 3 -t 3
	$(BIN)/fedfms results $(WORKSPACE) --out demo_output

# Server and three sites as processes of their own; poc_workspace/README.md says what happens.
poc: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/fedfms poc jobs/fedmsa --workspace $(POC_WORKSPACE) --port $(POC_PORT) $(POC_OPTIONS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In several processes, each with one thread; tests/scheduling.py says which tests share one and what comes first.
test: lint
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	  --numprocesses auto --dist loadfile --durations 10

test-faults: $(STAMP)
	PATH="$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults --durations 10

# The wheels fit the Python and the kind of machine that this runs on. To install from them, see docs/provisioning.md.
wheelhouse:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --wheel-dir $(WHEELHOUSE) $(WHEEL_OPTIONS) .
	cd $(WHEELHOUSE) && sha256sum -- *.whl >SHA256SUMS

clean:
	rm -rf $(VENV) $(WHEELHOUSE) demo_output poc_workspace/generated .pytest_cache .mypy_cache .ruff_cache
	find $(WORKSPACE) -mindepth 1 -maxdepth 1 ! -name local -exec rm -rf {} +
