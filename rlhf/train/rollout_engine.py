"""Which engine draws a run's completions: the module that trains, or one of vLLM's as the recipe's `rollouts:` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from rlhf.errors import RecipeError
from rlhf.generation.rollouts.command import engine_dtype, serve_command
from rlhf.generation.rollouts.vllm_in_process import VllmInProcess
from rlhf.generation.rollouts.vllm_server import VllmServerEngine
from rlhf.models.load import Source, source_of
from rlhf.models.one_adapter import rank_of
from rlhf.models.policy import Policy
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.rollouts import AnyRollouts, VllmRollouts, problem_with_quantization
from rlhf.tokens.tokenizer import find_model


def open_engine(
    recipe: OnlineRecipe,
    rollouts: AnyRollouts,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
) -> VllmInProcess | VllmServerEngine:
    """The engine of a recipe's `rollouts:`; the caller closes it.

    Raises RecipeError or SetupError where it cannot sample from this policy.
    """
    key, output_dir = f"{recipe.method}.rollouts", Path(recipe.output_dir)
    source = source_of(recipe.model.name_or_path, recipe.quantization)
    if problem := problem_with_quantization(rollouts, source.quantization):
        raise RecipeError(f"{key}.engine: {problem}")
    if isinstance(rollouts, VllmRollouts):
        options = _options(recipe, source, accelerator)
        return VllmInProcess(
            policy,
            tokenizer,
            rollouts,
            key=key,
            options=options,
            output_dir=output_dir,
            rank=accelerator.process_index,
        )
    return VllmServerEngine(
        policy,
        tokenizer,
        rollouts,
        key=key,
        base=source.base,
        start=serve_command(recipe, source.base, rank_of(policy.model), source.quantization),
        output_dir=output_dir,
        accelerator=accelerator,
    )


def _options(recipe: OnlineRecipe, source: Source, accelerator: Accelerator) -> dict[str, Any]:
    """vLLM's options that follow from the recipe: the policy's base, in the precision that the policy computes in."""
    options: dict[str, Any] = {
        "model": source.base,
        "tokenizer": find_model(recipe.model.name_or_path),
        "dtype": engine_dtype(recipe, source.quantization),
        "max_model_len": recipe.data.max_length,
    }
    if source.quantization is not None and source.quantization.load_in_4bit:
        options |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    if accelerator.num_processes > 1 and torch.cuda.is_available():
        # each process is an engine of one device: vLLM must take the launcher's ranks and start no processes of its own
        options["distributed_executor_backend"] = "external_launcher"
    return options
