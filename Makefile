# Each command makes its own virtual environment, .venv, from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo
TEST = $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore tests/containers

.PHONY: demo test test-fast test-containers lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

demo: $(VENV)/.installed  ## Simulate a small cohort, bring it into MNI space, map its patients
	rm -rf $(DEMO)
	$(BIN)/mri2pet-simulate $(DEMO)/bids --paired 8 --t1w-only 2 --patients 2 --resolution 2 --seed 1 --nprocs 2
	$(BIN)/mri2pet $(DEMO)/bids $(DEMO)/out participant --sloppy
	$(BIN)/mri2pet $(DEMO)/bids $(DEMO)/out group --sloppy -d lesions=$(DEMO)/bids/derivatives/truth
	@echo "Look at $(DEMO)/out/group.html, and at the reports of participants beside it"

test: $(VENV)/.installed  ## Run all tests but those of containers, a file of them on each of two processes
	$(BIN)/python -m compileall -q bids_app  # else each program that a test starts may compile it
	$(TEST)

test-fast: $(VENV)/.installed  ## Run the tests that take little time: a minute and a half
	$(TEST) -m "not slow and not ants"

test-containers: $(VENV)/.installed  ## Build images and run them, and a SLURM of one node, where the tools are: half an hour
	$(BIN)/pytest tests/containers

lint: $(VENV)/.installed  ## Check style, types, imports and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile

clean:
	rm -rf $(VENV) $(DEMO)
