# The verbs of this project; `make` alone lists them.
VENV ?= .venv
PYTEST_ARGS ?=
bin := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-slow test-vllm lint format types docs clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: ## make $(VENV), pinned by constraints.txt; quick when nothing changed
	@PYTHON="$(PYTHON)" .ci/venv.sh $(VENV)

quickstart: venv ## the whole pipeline on a laptop: data, SFT, reward, PPO, DPO, evaluation, report
	HF_HUB_OFFLINE=1 $(bin)/rlhf run recipes/quickstart

test: venv ## the quick tests; more flags in PYTEST_ARGS
	HF_HUB_OFFLINE=1 $(bin)/python -m pytest $(PYTEST_ARGS)

test-slow: venv ## the slow tests: real training, kill and resume, two processes
	HF_HUB_OFFLINE=1 $(bin)/python -m pytest -m slow $(PYTEST_ARGS)

test-vllm: venv ## the tests of vLLM, in .venv-vllm; on a CPU through vLLM's build for it (minutes)
	@PATH="$(abspath $(bin)):$$PATH" .ci/vllm_venv.sh .venv-vllm
	$(bin)/python -c 'from rlhf.embedded import resolve; resolve("embedded:smollm2-135m-instruct")'
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest -m vllm tests/vllm $(PYTEST_ARGS)

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
