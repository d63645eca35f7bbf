# Works with GNU make 3.81 (macOS) and later. Needs Python 3.11, 3.12 or 3.13; everything else goes into $(VENV).
VENV = .venv
PYTHON = python3 python3.13 python3.12 python3.11
WORKDIR = runs/tiny
DEMO_FLAGS =
PYTEST_FLAGS =
PIP_FLAGS =
LOCK_FLAGS =
RELEASE_CONFIG = tiny:steps=800,warmup=80

# Extras of pyproject.toml with a lock, requirements-EXTRA.txt.
LOCKED_EXTRAS := tpu gpu gcs

BIN := $(VENV)/bin
MAIN := $(BIN)/python -m electra_jax.main
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input $(PIP_FLAGS)
LOCK := uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --no-annotate --no-header \
	$(LOCK_FLAGS) pyproject.toml
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder
# The files of make test-fast: together they take less than 2 minutes on two cores.
FAST := golden_parity masking masking_words randomness sampling segment_pair schedules optimizers metrics \
	config data_packing data_batches data_files data_formats data_sources data_token_store word_starts \
	flops parameter_counts docs run_versions
SUITABLE := 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast test-long test-faults test-clients test-tpu test-wheel test-breaks release docs lint format install clean distclean lock

help: ## show this list
	@grep -E '^[a-z-]+:.* ## ' Makefile | sed 's/:.* ## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo '  DEMO_FLAGS="--config.steps=900"  more flags for the pretraining run of make demo'
	@echo '  WORKDIR=runs/tiny               where make demo keeps its run'
	@echo '  PYTEST_FLAGS="-k masking -x"    more flags for pytest'
	@echo '  RELEASE_CONFIG=mini             the encoder of make release'
	@echo '  PIP_FLAGS="--index-url URL"     more flags for pip (a mirror, or an index with CPU builds of torch)'
	@echo '  PYTHON=/path/to/python3.12      the Python that makes the environment'
	@echo '  VENV=.venv                      where the environment is'

demo: $(VENV)/.installed ## pretrain a tiny ELECTRA on the bundled text, evaluate it, draw its curves
	$(MAIN) --config=configs/tiny.py --workdir=$(WORKDIR) $(DEMO_FLAGS)
	$(MAIN) --mode=evaluate --workdir=$(WORKDIR)
	$(MAIN) --mode=report --workdir=$(WORKDIR)

test: $(VENV)/.installed-test ## run the tests
	$(PYTEST) $(PYTEST_FLAGS)

test-fast: $(VENV)/.installed-test ## run the quick test files: numerics, masking, config, data
	$(PYTEST) $(FAST:%=tests/*/%_test.py) $(PYTEST_FLAGS)

test-long: $(VENV)/.installed-test ## run the tests in more processes, meshes and kinds, which CI runs, too
	$(PYTEST) -m long $(PYTEST_FLAGS)

# Long variants of tests. Their results are committed with each change that concerns them.
test-faults: $(VENV)/.installed-test ## run the long tests of kills, preemption and several processes
	$(PYTEST) -m faults --record=tests/results/faults.json $(PYTEST_FLAGS)

test-clients: $(VENV)/.installed-test ## run the long comparisons with other programs
	$(PYTEST) -m clients --record=tests/results/clients.json $(PYTEST_FLAGS)

test-tpu: $(VENV)/.installed-test ## compile the smaller shipped configs for TPU slices
	$(PYTEST) -m tpu --record=tests/results/tpu.json $(PYTEST_FLAGS)

test-wheel: $(VENV)/.installed ## build wheel and sdist, and use the wheel in a new environment without TensorFlow
	PIP_FLAGS="$(PIP_FLAGS)" .ci/wheel $(BIN)/python

test-breaks: $(VENV)/.installed-test ## check that each break of a list makes its test fail
	$(PYTEST) --dist=load tests/project/breaks_test.py --breaks --record=tests/results/breaks.json $(PYTEST_FLAGS)

release: $(VENV)/.installed ## build wheel, sdist and a small trained encoder with checksums in dist/; uploads nothing
	CONFIG="$(RELEASE_CONFIG)" PIP_FLAGS="$(PIP_FLAGS)" .ci/release $(BIN)/python

docs: $(VENV)/.installed ## write docs/reference/config.md from the declarations of the config fields
	$(BIN)/python -m electra_jax.config.reference > docs/reference/config.md

SCRIPTS := .ci/run .ci/wheel .ci/release launch/*.sh launch/slurm.sbatch
lint: $(VENV)/.installed-test ## check style, types and shell scripts; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources $(SCRIPTS)

format: $(VENV)/.installed-test ## format the sources and fix what ruff can fix
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format
	$(BIN)/ruff check

install: $(VENV)/.installed ## make the environment in .venv, with the locked packages, and nothing else

clean: ## remove caches and build leftovers; the environment and runs/ stay
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache build *.egg-info
	find electra_jax configs examples tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove the environment too; runs/ stays
	rm -rf $(VENV)

# Stamps: a second run installs nothing unless a list of packages has changed since.
$(VENV)/.made:
	@if test -e $(BIN)/python || test -L $(BIN)/python; then \
	  $(BIN)/python -c $(SUITABLE) 2>/dev/null || { \
	    echo "$(VENV) holds no working Python 3.11, 3.12 or 3.13: remove it, or use make VENV=DIR." >&2; \
	    exit 1; }; \
	else \
	  python=; \
	  for candidate in $(PYTHON); do \
	    if $$candidate -c $(SUITABLE) >/dev/null 2>&1; then \
	      python=$$candidate; $$candidate -c 'import ensurepip, venv' >/dev/null 2>&1 && break; \
	    fi; \
	  done; \
	  test -n "$$python" || { \
	    echo "Python 3.11, 3.12 or 3.13 is needed, none was found: install one, or use make PYTHON=/path/to/python3." >&2; \
	    exit 1; }; \
	  $$python -c 'import ensurepip, venv' >/dev/null 2>&1 || { \
	    version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "$$python lacks the venv module: install it (on Debian or Ubuntu, apt install python$$version-venv)." >&2; \
	    exit 1; }; \
	  echo "Making a virtual environment in $(VENV) with $$($$python --version)."; \
	  $$python -m venv $(VENV); \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@touch $@

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/.made
	@echo "Installing the packages of requirements.txt into $(VENV); this happens once and takes a few minutes."
	@$(PIP_INSTALL) -r requirements.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	@echo "Installing the packages of requirements-test.txt into $(VENV); this happens once and takes a few minutes."
	@$(PIP_INSTALL) -r requirements-test.txt
	@touch $@

# Hashes make pip refuse a file that is not the one that was locked. Each extra's file has what it adds to
# requirements.txt. No CUDA libraries in requirements-test.txt: torch pins the versions for its wheel, and its CPU build
# requires none.
HASHED := $(LOCK) --generate-hashes --constraint requirements-test.txt
lock: ## write requirements*.txt anew from pyproject.toml (needs uv); LOCK_FLAGS=--upgrade for newer versions
	@$(LOCK) --extra test --output-file requirements-test.txt >/dev/null
	@grep -vE '^(nvidia-|cuda-|triton|#)' requirements-test.txt > requirements-test.tmp
	@{ echo "# Exact versions for a CPU machine, Python 3.11 to 3.13. Written by make lock from pyproject.toml."; \
	  echo "# Without hashes: torch has CPU builds, of the same version, that come from other indexes."; \
	  cat requirements-test.tmp; } > requirements-test.txt
	@rm requirements-test.tmp
	@$(HASHED) --extra tfds --output-file requirements.txt >/dev/null
	@set -e; for extra in $(LOCKED_EXTRAS); do \
	  $(HASHED) --constraint requirements.txt --extra $$extra --output-file requirements-$$extra.txt \
	    $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.txt) >/dev/null; \
	done
	@echo 'uv<1' | uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header $(LOCK_FLAGS) \
	  --generate-hashes --output-file launch/requirements-uv.txt - >/dev/null
	@set -e; for name in requirements $(LOCKED_EXTRAS:%=requirements-%) launch/requirements-uv; do \
	  { echo "# Exact versions and hashes of their files, Python 3.11 to 3.13. Written by make lock."; \
	    cat $$name.txt; } > $$name.tmp; \
	  mv $$name.tmp $$name.txt; \
	done
