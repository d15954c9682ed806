# Every target works from a fresh clone: it first makes .venv from requirements.lock. SYSTEM_TORCH=1 leaves torch out and
# takes the machine's; an environment made so stays so until `make clean`.

# The first of these that is a Python nfcore works with; python3 if none is, to be refused with a reason.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo "$$python"; exit; }; done; echo python3)
PRESET ?= quick
SYSTEM_TORCH ?=

ifneq ($(wildcard .venv/.installed-system-torch)$(filter-out 0,$(SYSTEM_TORCH)),)
ENVIRONMENT := .venv/.installed-system-torch
else
ENVIRONMENT := .venv/.installed
endif

# SPU has builds for these only.
PRIVATE_PYTHON ?= $(shell for python in python3.11 python3.10 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null \
	&& { echo "$$python"; exit; }; done; echo python3)

.PHONY: help book test versions torture lint audit notebooks bench private pdf zip links lock clean

help:
	@echo "make book [PRESET=smoke|quick|gpu|paper]  train what is missing, run the notebooks, build the book; STRICT=1: none"
	@echo "                if a notebook failed"
	@echo "make test       run all tests and re-execute the committed notebooks"
	@echo "make versions   run the tests of the model under the first and the newest transformers"
	@echo "make torture    the long form of the tests that kill and damage; counts accumulate in data/recorded/torture.json"
	@echo "make lint       check formatting, lint, spelling, style of the prose and types"
	@echo "make audit      ask the public database of vulnerabilities about the locked versions"
	@echo "make notebooks  execute the committed notebooks on data/recorded again, and write README's results"
	@echo "make bench      measure speed and memory, write tools/benchmarks/results, print the targets"
	@echo "make private    measure private inference between two processes, in an environment of its own; PRIVATE names sections"
	@echo "make pdf | zip | links [PRESET=...]  print the book, pack it to read offline, check its links"
	@echo "make lock       write requirements.lock anew from pyproject.toml"
	@echo "make clean      remove .venv, the built book and the caches; trained models in runs/ stay"
	@echo "SYSTEM_TORCH=1 make book    take the torch that this machine has"

book: $(ENVIRONMENT)
	@.venv/bin/python -m nfbook build $(PRESET) $(if $(STRICT),--strict)

# In some processes (tests/conftest.py); the tests of a file stay together.
PYTEST := .venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(ENVIRONMENT)
	$(PYTEST)
	$(PYTEST) --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg book/notebooks

versions: $(ENVIRONMENT)
	.venv/bin/python -m tests.versions

torture: $(ENVIRONMENT)
	.venv/bin/python -m tests.torture

lint: $(ENVIRONMENT)
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	.venv/bin/codespell
	.venv/bin/proselint check --config tools/proselint.json README.md CHANGELOG.md book/*.md
	.venv/bin/python -m mypy

audit:
	"$(PYTHON)" -m venv _build/audit
	_build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	_build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

notebooks: $(ENVIRONMENT)
	@for script in notebooks/*.py; do \
		preset=$$(sed -n 's/^preset = "\(.*\)".*/preset=\1 source=recorded/p' "$$script"); \
		.venv/bin/python -m nfbook notebook "$$script" "book/notebooks/$$(basename "$$script" .py).ipynb" $$preset \
			|| exit 1; done
	.venv/bin/python -m tools.readme

bench: $(ENVIRONMENT)
	.venv/bin/python -m tools.benchmarks $(SECTIONS)

private: _build/private/.installed
	_build/private/bin/python -m tools.benchmarks.private $(PRIVATE)

_build/private/.installed: tools/benchmarks/private/requirements.txt tools/benchmarks/private/install.py
	@$(PRIVATE_PYTHON) tools/benchmarks/private/install.py

pdf zip links: book
	.venv/bin/python -m tools.publish $@ $(PRESET)

lock: $(ENVIRONMENT)
	.venv/bin/python -m pip install --quiet uv==0.13.9
	.venv/bin/python -m uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --quiet --output-file requirements.lock $(LOCK_OPTIONS)

clean:
	rm -rf .venv _build book/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(ENVIRONMENT): requirements.lock pyproject.toml tools/install.py
	@$(PYTHON) tools/install.py $(if $(findstring system-torch,$@),--system-torch)
	@touch $@
