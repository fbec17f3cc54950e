# Everything a fresh Linux machine with Python 3.11 or newer needs: `make demo` and `make test` set themselves up.
#
# Variables, set as in `make demo ARGS="--seed 1"`:
#   ARGS      further arguments for the recipe (demo) or for pytest (test)
#   PYTHON    the interpreter that makes the environment; by default the first one found that is new enough
#   VENV      where the environment lies
#   PIP_ARGS  further arguments for pip, for instance an index with CPU builds of PyTorch
#   THREADS   processor threads of the demo's model, two by default; a process beside it draws its batches
#   WORKERS   processes that share the tests

PYTHON ?=
VENV ?= .venv
ARGS ?=
PIP_ARGS ?=
THREADS ?= 2
WORKERS ?= 2

# glibc gives large blocks back at every step unless told to keep them; the model then runs up to 15 % faster.
KEEP_MEMORY := MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=8000000000
INSTALLED := $(VENV)/.installed
LAUNCH := $(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.DEFAULT_GOAL := help
.PHONY: help venv demo test coverage cards docs results check format clean
.DELETE_ON_ERROR:

help:  ## print this list
	@sed -n 's/^\([a-z]*\):.*  ## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

venv: $(INSTALLED)  ## make the environment and install the package, pinned, with its tools

demo: $(INSTALLED)  ## poison, train a victim, defend it, find the poison, measure, report: on the embedded world
	$(KEEP_MEMORY) OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=$${HF_HUB_OFFLINE:-1} \
		$(LAUNCH) recipes/defend.py $(ARGS)

test: $(INSTALLED)  ## run all tests and docstring examples
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

coverage: $(INSTALLED)  ## run all tests and say which share of the lines and branches they reach
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal \
		--cov=hf_clipbd --cov-branch --cov-report=term:skip-covered $(ARGS)

cards: $(INSTALLED)  ## render hub_cards/ again from the committed records
	$(VENV)/bin/python -m hf_clipbd.hub recipes/scenes/records/seed0 hub_cards spaces/backdoor_detection/README.md

results: $(INSTALLED)  ## render RESULTS.md again from the committed records
	$(VENV)/bin/python recipes/reproduce.py results

docs: $(INSTALLED)  ## build the site into build/site; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet $(ARGS)
	@echo "build/site/index.html"

check: $(INSTALLED)  ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(INSTALLED)  ## let ruff repair what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove the environment, caches and builds; runs stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache src/*.egg-info
	find src tests recipes -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true

# The environment, made again where metadata or pins changed. A half-made one is finished by the next call.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt .ci/find-python
	@python=$$(sh .ci/find-python $(PYTHON)) && \
	echo "Installing hf_clipbd into $(VENV) with $$python (some minutes on the first call)" && \
	"$$python" -m venv "$(VENV)" && \
	"$(VENV)/bin/python" -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
