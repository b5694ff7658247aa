# Each command makes its own virtual environment, .venv, from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo
# Without setuptools' warning of editable installations, which looks like an error and calls for nothing.
EDITABLE = PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable
TEST = $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore tests/containers

.PHONY: demo test test-fast test-containers lint docs docs-example clean

$(VENV)/.runnable: pyproject.toml constraints.txt
	@echo "Making a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(EDITABLE) .
	touch $@

$(VENV)/.installed: $(VENV)/.runnable
	$(EDITABLE) '.[test,lint]'
	touch $@

demo: $(VENV)/.runnable  ## Simulate a small cohort, bring it into MNI space, map its patients
	rm -rf $(DEMO)
	@echo "Step 1 of 3: simulate 8 controls with T1w and PET, 2 with T1w alone, and 2 patients with lesions"
	$(BIN)/mri2pet-simulate $(DEMO)/bids --paired 8 --t1w-only 2 --patients 2 --resolution 2 --seed 1 --nprocs 2
	@echo "Step 2 of 3: bring all of them into MNI space (2 mm, quick registration), predict a PET from each T1w"
	$(BIN)/mri2pet $(DEMO)/bids $(DEMO)/out participant --sloppy --resolution 2
	@echo "Step 3 of 3: learn what is usual from the controls, map what is unusual in the patients"
	$(BIN)/mri2pet $(DEMO)/bids $(DEMO)/out group --sloppy --resolution 2 -d lesions=$(DEMO)/bids/derivatives/truth
	@echo "Open $(DEMO)/out/sub-patient01.html (what was found in a patient) and $(DEMO)/out/group.html in a browser."
	@echo "Your own data, one person: $(BIN)/mri2pet quick T1W.nii.gz PET.nii.gz OUT; a BIDS dataset: README.md"

test: $(VENV)/.installed  ## Run all tests but those of containers, a file of them on each of two processes
	$(BIN)/python -m compileall -q bids_app  # else each program that a test starts may compile it
	$(TEST)

test-fast: $(VENV)/.installed  ## Run the tests that take little time: a minute and a half
	$(TEST) -m "not slow and not itk"

test-containers: $(VENV)/.installed  ## Build images and run them, and a SLURM of one node, where the tools are: half an hour
	$(BIN)/pytest tests/containers

lint: $(VENV)/.installed  ## Check style, types, imports and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/hadolint Dockerfile

docs: $(VENV)/.runnable  ## Build the documentation to site/; a broken link is an error
	$(EDITABLE) '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

docs-example: demo  ## Write the example reports of the documentation again, from the demo
	$(BIN)/python docs/example.py $(DEMO)/out

clean:
	rm -rf $(VENV) $(DEMO) site
