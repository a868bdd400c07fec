# make demo and make test are all a new machine needs; both set up .venv first.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check docs lab

setup: $(READY)

# constraints.txt makes every install the same.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed; use make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

# The whole chain on the embedded model and corpus, then text generated with what was fitted. The notebooks show both
# metrics' robustness checks; the last fit is the one whose coefficients are kept.
demo: $(READY)
	$(BIN)/cladastats run --study studies/demo --source news --model smollm2-135m --pairs 32 --length 256 --seed 0
	$(BIN)/cladastats regress --study studies/demo --metric cosine --robust > /dev/null
	$(BIN)/cladastats regress --study studies/demo --metric cka --robust > /dev/null
	$(BIN)/cladastats similarity --study studies/demo --estimator population
	@echo
	$(BIN)/clada generate --model smollm2-135m --coefficients studies/demo/coefficients.json --chat --max-new-tokens 96 \
	  --prompt 'Why do newspapers put the most important facts into the first sentence?'

# A file's tests stay together, as they share what they made.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/test_surface.py tests/test_layout.py
	$(BIN)/cladastats run --study .check/study --pairs 6 --length 64 > /dev/null
	$(BIN)/cladastats regress --study .check/study --metric cosine --robust > /dev/null
	$(BIN)/cladastats regress --study .check/study --metric cka --robust > /dev/null
	$(BIN)/cladastats similarity --study .check/study --estimator population
	CLADA_STUDY=$(CURDIR)/.check/study $(BIN)/jupyter nbconvert --log-level=WARN --execute --to notebook \
	  --output-dir .check/notebooks notebooks/*.ipynb
	CLADA_NOTEBOOKS=.check/notebooks $(BIN)/python -m pytest -q tests/test_notebooks.py

# The examples of the pages run first; then a warning of Sphinx is an error.
docs: $(READY)
	$(BIN)/python docs/examples.py
	$(BIN)/sphinx-build -W --keep-going --quiet -c docs . build/docs
	@echo "the pages are in build/docs/docs/index.html"

lab: $(READY)
	$(BIN)/jupyter lab notebooks
