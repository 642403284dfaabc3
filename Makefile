# make demo   set up, then train and adapt on the embedded city; table and pictures in experiments/demo
# make test   set up, then lint and test
PYTHON ?= python3
BIN := .venv/bin
# Threads that wait for work sleep: spinning slows everything down as soon as another process runs beside.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint clean

# The virtual environment is made once; a change of what is required updates it.
.venv/ready: requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

demo: .venv/ready
	$(BIN)/python scripts/demo.py

lint: .venv/ready
	$(BIN)/ruff check .

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf .venv experiments/demo data/toycity
