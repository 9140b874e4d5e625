# reprolib: `make book` builds the book, `make test` tests everything. `make help` lists the rest.
#
# SCALE=smoke              size of the experiments: smoke shows that they run, desk gives results in hours,
#       desk|night|paper   night in some nights, paper as the papers have it; what it takes is said first   (smoke)
# DEVICE=cpu|cuda|cuda:1   where the experiments train and make bench measures, at any scale                (cpu)
# ONLY=red/derivation      only the chapters whose name starts with this                                    (all)
# FORCE=1                  execute again even where nothing changed
# JOBS=2  THREADS=1        chapters at a time, threads for each
# TORCH=cpu|cuda           which build of PyTorch to install; without it, the one that pip finds
# LAB=--no-browser         options for JupyterLab in make notebook
# PYTHON=python3.11        the interpreter that makes .venv

SHELL  := /bin/bash
SCALE  ?= smoke
ONLY   ?=
FORCE  ?=
JOBS   ?= 2
THREADS ?= 1
DEVICE ?= cpu
ROUNDS ?= 7
TORCH  ?=
LAB    ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip -q --disable-pip-version-check
READY  := $(VENV)/.installed
BOOK   := $(PY) -m reprolib.book
CHOICE  = --scale "$(SCALE)" --device "$(DEVICE)" --only "$(ONLY)" --jobs "$(JOBS)" --threads "$(THREADS)" \
          $(if $(filter-out 0,$(FORCE)),--force)
PYTEST := $(PY) -m pytest -q -n 2
NBVAL  := $(PYTEST) --dist loadfile -p no:doctest -o addopts= -o filterwarnings=default --nbval --nbval-current-env \
          --nbval-cell-timeout 120 --nbval-sanitize-with tests/book/sanitize.cfg

# one thread each: with two at a time on two cores, more threads only get into each other's way
TESTENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONHASHSEED=0 JUPYTER_PREFER_ENV_PATH=1

# Another processor's kernels, as far as this one can pretend: vector instructions, convolutions, matrix products of
# PyTorch and of NumPy each listen to a variable of their own.
KERNELS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem \
           REPROLIB_BUILD=build/kernels

# PyTorch's own index for the build without CUDA; its default on PyPI comes with CUDA on Linux
TORCH_INDEX ?= $(if $(filter cpu,$(TORCH)),--index-url https://download.pytorch.org/whl/cpu)

.PHONY: help book test test-kernels test-deep nbval bench references readme mutants notebook lint clean install constraints
.DEFAULT_GOAL := help

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo; sed -n '3,12s/^# /  /p' Makefile

book: $(READY) ## execute the chapters and build the book under build/html
	@$(BOOK) build $(CHOICE)

test: $(READY) ## unit and property tests, doctests, what the chapters print, their numbers, pages
	@status=0; \
	echo "== chapters at smoke (what they print is compared below)"; $(BOOK) execute || status=1; \
	echo "== unit and property tests, doctests, chapters, pages"; $(TESTENV) $(PYTEST) --dist worksteal || status=1; \
	if [ $$status = 0 ]; then echo "== all tests passed"; else echo "== FAILED, see above"; fi; exit $$status

test-kernels: $(READY) ## what may depend on the processor, once more with another instruction set, chapters in fresh kernels
	@status=0; \
	echo "== chapters at smoke, with the kernels of another instruction set"; \
	$(KERNELS) $(BOOK) execute --fresh || status=1; \
	echo "== tests that depend on the kernels"; \
	$(KERNELS) $(TESTENV) $(PYTEST) --dist worksteal -m kernels || status=1; \
	if [ $$status = 0 ]; then echo "== all tests passed"; else echo "== FAILED, see above"; fi; exit $$status

nbval: $(READY) ## execute the reference notebooks again with nbval and compare: make nbval ONLY=foundations
	@$(TESTENV) $(NBVAL) $(or $(wildcard tests/book/reference/$(ONLY)*),$(error no chapter starts with $(ONLY)))

test-deep: $(READY) ## the property tests with many more examples
	@$(TESTENV) HYPOTHESIS_PROFILE=deep $(PYTEST) --dist worksteal

bench: $(VENV)/.peers ## measure what curvature costs, here and in other libraries, steps, and training (an hour)
	@$(TESTENV) $(PY) -m reprolib bench curvature --device "$(DEVICE)" --threads $(THREADS) --rounds $(ROUNDS) \
	  --write book/records/curvature-cost.$(firstword $(subst :, ,$(DEVICE)))
	@$(TESTENV) $(PY) -m reprolib bench step --device "$(DEVICE)" --threads $(THREADS) --rounds $(ROUNDS) \
	  --write book/records/step-cost.$(firstword $(subst :, ,$(DEVICE)))
	@$(TESTENV) $(PY) -m reprolib bench train --device "$(DEVICE)" --threads $(THREADS) --rounds $(ROUNDS) \
	  --write book/records/training-speed.$(firstword $(subst :, ,$(DEVICE)))

references: $(READY) ## write the reference notebooks and numbers that make test compares with
	@$(PY) -m tests.curvature.support
	@$(BOOK) references --only "$(ONLY)" --jobs "$(JOBS)" $(if $(filter-out 0,$(FORCE)),--force)

readme: $(READY) ## write the picture and the status table of the README anew from the records
	@$(BOOK) readme

mutants: $(READY) ## break the code where each claim test says it would notice, and see that it does
	@$(TESTENV) $(PY) tests/mutants.py

notebook: $(READY) ## open a chapter in JupyterLab: make notebook ONLY=red/derivation
	@$(BOOK) notebook --only "$(ONLY)" --lab="$(LAB)"

lint: $(VENV)/.dev ## ruff and mypy
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

clean: ## remove everything generated except .venv
	rm -rf build

install: $(READY) ## only create .venv with the pinned packages

constraints: ## write constraints.txt anew from the newest versions that fit pyproject.toml
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip -q install '.[book,test,dev,peers,zoo]'
	build/pins/bin/python -m pip freeze --exclude reprolib | sed 's/+cpu$$//; s/+cu[0-9]*$$//' | grep -v '^nvidia-\|^triton' > constraints.txt
	rm -rf build/pins

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(f"error: Python 3.11 or newer is needed, this is {v}; name one: make PYTHON=...")'
	@echo "install: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.torch-$(TORCH): constraints.txt | $(PY)
	@case "$(TORCH)" in ''|cpu|cuda) ;; *) echo "error: unknown TORCH '$(TORCH)': use one of cpu, cuda" >&2; exit 2;; esac
	@if [ -n "$(TORCH)" ]; then echo "install: PyTorch for $(TORCH)"; $(PIP) uninstall -q -y torch 2>/dev/null; \
	  $(PIP) install -c constraints.txt --no-deps $(TORCH_INDEX) torch; fi
	@rm -f $(VENV)/.torch-*; touch $@

$(READY): pyproject.toml constraints.txt | $(PY) $(if $(TORCH),$(VENV)/.torch-$(TORCH))
	@echo "install: the pinned packages into $(VENV) (a few minutes the first time)"
	@$(PIP) -q install -c constraints.txt -e '.[book,test]'
	@touch $@

# torchvision, which BackPACK imports, has to be of the same build as torch
$(VENV)/.peers: $(READY)
	@$(if $(TORCH_INDEX),$(PIP) install -c constraints.txt --no-deps $(TORCH_INDEX) torchvision)
	@$(PIP) -q install -c constraints.txt -e '.[peers]'
	@touch $@

$(VENV)/.dev: $(READY)
	@$(PIP) -q install -c constraints.txt -e '.[dev]'
	@touch $@
