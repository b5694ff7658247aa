# The commands create a virtual environment, .venv, with the versions in constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo
# Silence setuptools' warning about editable installations, which looks like an error but is harmless.
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

demo: $(VENV)/.runnable  ## Simulate a small cohort, preprocess it, and map its patients
	rm -rf $(DEMO)
	@echo "Step 1 of 3: simulate 8 controls with T1w and PET, 2 with T1w only, and 2 patients with lesions"
	$(BIN)/mri2pet-simulate $(DEMO)/bids --paired 8 --t1w-only 2 --patients 2 --resolution 2 --seed 1 --nprocs 2
	@echo "Step 2 of 3: bring all of them into MNI space (2 mm, quick registration), predict a PET from each T1w"
	$(BIN)/mri2pet $(DEMO)/bids $(DEMO)/out participant --sloppy --resolution 2
	@echo "Step 3 of 3: train detectors on the controls, and map anomalies in the patients"
	$(BIN)/mri2pet $(DEMO)/bids $(DEMO)/out group --sloppy --resolution 2 -d lesions=$(DEMO)/bids/derivatives/truth
	@echo "Open $(DEMO)/out/sub-patient01.html (what was found in a patient) and $(DEMO)/out/group.html in a browser."
	@echo "Your own data, one person: $(BIN)/mri2pet quick T1W.nii.gz PET.nii.gz OUT; a BIDS dataset: README.md"

test: $(VENV)/.installed  ## Run all tests except those of containers, in two processes
	$(BIN)/python -m compileall -q bids_app  # otherwise each program that a test starts may compile it
	$(TEST)

test-fast: $(VENV)/.installed  ## Run the fast tests only: 1.5 minutes
	$(TEST) -m "not slow and not itk"

test-containers: $(VENV)/.installed  ## Build and run images, and a one-node SLURM, if the tools are installed: half an hour
	$(BIN)/pytest --basetemp="$$(mktemp -d)/run" tests/containers  # any other pytest closes its usual folder to containers' users

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

docs-example: demo  ## Rewrite the example reports in the documentation from the demo
	$(BIN)/python docs/example.py $(DEMO)/out

clean:
	rm -rf $(VENV) $(DEMO) site
