# `make demo` and `make test` do everything from a clean checkout; `make help` lists the rest.
PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install

# A checkout must have the C++ extension; SDFVQ_REQUIRE_EXT=0 goes on without a compiler, on the slow references.
export SDFVQ_REQUIRE_EXT ?= 1
# The CUDA kernels are built where there is a GPU to run them; SDFVQ_CUDA=1 builds them anyway.
export SDFVQ_CUDA ?= $(if $(wildcard /dev/nvidiactl),,0)
NATIVE := setup.py settings.ini pyproject.toml $(shell find csrc -type f)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo dev test test-browser sync docs pages readme lock clean

help:  ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):.*## */make \1\t/' | expand -t 20

demo: $(VENV)/.installed  ## a mesh to tokens and back, results in demo/; MESH=path takes your mesh
	$(BIN)/sdfvq demo $(if $(MESH),"$(MESH)") -o demo --overwrite

dev: $(VENV)/.dev $(VENV)/.installed  ## the locked environment in .venv and an editable install

# Each worker gets one thread, so that the workers together use the cores they have.
test: dev  ## notebooks clean, library in step, notebook cells, tests/
	$(BIN)/python tools/check.py
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS) --do_print
	$(BIN)/python -m pytest tests/ -m "not browser"
	@echo "left out: pages in a real browser (make test-browser), cells that are slow or need a GPU (see CONTRIBUTING)"

test-browser: docs  ## the site and the viewer in a real headless Chromium; pictures in _screenshots/
	$(BIN)/python -m pytest tests/test_browser.py

sync: dev  ## clean the notebooks, then export them and remake the README
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py

docs: dev  ## the site, in _docs/
	$(BIN)/python tools/docs.py

pages: dev  ## run tutorials and explanations again, for the pictures they show
	OMP_NUM_THREADS=1 $(BIN)/python tools/run.py

readme: dev  ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

lock:  ## remake requirements/ from the ranges in settings.ini
	$(PYTHON) tools/lock.py

clean:  ## remove all that make has made, except results in demo/
	rm -rf $(VENV) _docs _proc _screenshots build dist *.egg-info sdfvq/_C*.so sdfvq/_cuda*.so .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installation, a stamp file per step: only what changed is done again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "sdfvq needs Python 3.11 or newer, '$(PYTHON)' is not; say which: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.torch: requirements/torch-cpu.txt $(VENV)/.made
	$(PIP) --no-deps -r $<
	@touch $@

$(VENV)/.run: requirements/run.txt $(VENV)/.torch
	$(PIP) --no-deps -r $<
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(PIP) --no-deps -r $<
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev_install_hooks || echo "without hooks of nbdev"; fi  # notebooks cleaned on save, merged cell by cell
	@touch $@

$(VENV)/.installed: $(NATIVE) $(VENV)/.run
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
