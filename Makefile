# quickstart, test and lint work on a fresh clone: each makes .venv first if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/ready
	$(BIN)/python -m unime.examples.quickstart --out outputs

test: $(VENV)/ready
	$(BIN)/python -m pytest tests

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/ready: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e ".[eval,test,train]"
	touch $@

clean:
	rm -rf $(VENV) outputs
