# make demo   set up, then train and adapt on the embedded city; table and pictures in experiments/demo
# make check  set up, then lint and run the tests that take no longer than a minute together
# make test   set up, then lint and test
# make gpu    all that a GPU has to show, in under nine minutes; ARGS="--device cpu --small" where there is none
# make docs   the site of these pages, with the API from docstrings, in site/
# make test-slurm   the batch scripts on a Slurm of two nodes, started and stopped here
PYTHON ?= python3
BIN := .venv/bin
# Threads that wait for work sleep: spinning slows everything down as soon as another process runs beside.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo check test gpu docs test-slurm lint clean

# The virtual environment is made once; a change of what is required updates it.
.venv/ready: requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
# cityscapesScripts also asks for programs with windows and for a copy of Python's own typing.
	$(BIN)/python -m pip install --quiet --no-deps cityscapesScripts==2.3.0 -e .
	touch $@

demo: .venv/ready
	$(BIN)/python scripts/demo.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest --fast

test: lint
	$(BIN)/python -m pytest

# With the python of .venv if it is there, else with $(PYTHON), which may be one whose torch knows the GPU: sets up nothing.
gpu:
	$(if $(filter command line,$(origin PYTHON)),$(PYTHON),$(or $(wildcard $(BIN)/python),$(PYTHON))) benchmarks/gpu.py $(ARGS)

docs: .venv/ready
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-slurm: .venv/ready
	@PATH="$$PATH:/usr/sbin"; for program in munged slurmctld slurmd sbatch; do \
		command -v $$program >/dev/null || { echo "no $$program: apt-get install slurm-wlm munge"; exit 1; }; done
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py

clean:
	rm -rf .venv experiments/demo data/toycity
