# The verbs of this project; `make` alone lists them.
VENV ?= .venv
PYTEST_ARGS ?=
MUTANTS ?=
WORKERS ?= auto
bin := $(VENV)/bin
# One thread a worker: torch's own threads only get in each other's way here. More than 8 workers would need much memory.
pytest := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(bin)/python -m pytest
parallel := -n $(WORKERS) --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help venv quickstart smoke test test-slow test-vllm coverage mutants lint format types docs clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: ## make $(VENV), pinned by constraints.txt; quick when nothing changed
	@PYTHON="$(PYTHON)" .ci/venv.sh $(VENV)

quickstart: venv ## the whole pipeline on a laptop: data, SFT, reward, PPO, DPO, evaluation, report
	HF_HUB_OFFLINE=1 $(bin)/rlhf run recipes/quickstart

smoke: venv ## every layer once with a tiny model, in under a minute
	$(pytest) -m smoke tests/smoke $(PYTEST_ARGS)

test: venv ## the quick tests on all cores; more flags in PYTEST_ARGS, fewer workers with WORKERS=2
	$(pytest) $(parallel) $(PYTEST_ARGS)

test-slow: venv ## the slow tests: real training, kill and resume, two processes
	HF_HUB_OFFLINE=1 $(bin)/python -m pytest -m slow $(PYTEST_ARGS)

test-vllm: venv ## the tests of vLLM, in .venv-vllm; on a CPU through vLLM's build for it (minutes)
	@PATH="$(abspath $(bin)):$$PATH" .ci/vllm_venv.sh .venv-vllm
	$(bin)/python -c 'from rlhf.embedded import resolve; resolve("embedded:smollm2-135m-instruct")'
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest -m vllm tests/vllm $(PYTEST_ARGS)

coverage: venv ## the quick tests again, and how much of rlhf/ they run
	$(pytest) $(parallel) --cov=rlhf --cov-report=term:skip-covered $(PYTEST_ARGS)

mutants: venv ## put small faults into the numerical core, each must fail a test; MUTANTS="--sample 12" for a few
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(bin)/python -m tests.mutants $(MUTANTS)

lint: venv ## ruff, and the direction of imports
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports

format: venv ## let ruff mend what it can
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: venv ## mypy, strict where the contracts are
	$(bin)/mypy

docs: venv ## write docs/recipes.md from the schema
	$(bin)/python -m docs.make_recipes

clean: ## remove caches and builds; outputs/ and $(VENV) stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
