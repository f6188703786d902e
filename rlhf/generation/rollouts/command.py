"""How to start a server of vLLM's that a recipe's rollouts can use, as one line. `rlhf check` and errors show it; no torch here."""

from __future__ import annotations

import importlib.util
import json
import shlex

from rlhf.errors import RecipeError
from rlhf.generation.context import local_folder
from rlhf.models.lineage import adapter_lineage
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.rollouts import VllmServerRollouts
from rlhf.recipe.sections import QuantizationSection

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM 0.30 takes for max_lora_rank


def room_for(rank: int) -> int:
    """The smallest rank that vLLM makes room for and that holds an adapter of `rank`."""
    room = next((size for size in RANKS if size >= rank), None)
    if room is None:
        raise RecipeError(
            f"lora.r: the policy's adapters have rank {rank} together, and vLLM takes {RANKS[-1]} at most; lower lora.r, or leave "
            "rollouts out: the policy then samples in this process"
        )
    return room


def engine_dtype(recipe: OnlineRecipe, quantization: QuantizationSection | None) -> str:
    """The dtype in which vLLM computes what the policy computes; `auto` where the recipe leaves it to the machine."""
    if quantization is not None and quantization.load_in_4bit:
        return "bfloat16"  # vLLM's package for 4 bits lays out its weights wrongly in 32 bits
    if recipe.training.bf16 == "auto":
        return "auto"
    return "bfloat16" if recipe.training.bf16 else recipe.model.dtype


def serve_command(recipe: OnlineRecipe, base: str, rank: int, quantization: QuantizationSection | None) -> str:
    """The command that starts a server for a recipe's policy: its base, loaded so, and adapters of `rank`."""
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(room_for(rank))]
    words += ["--max-model-len", str(recipe.data.max_length), "--dtype", engine_dtype(recipe, quantization)]
    words += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    if quantization is not None and quantization.load_in_4bit:
        words += ["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"]
    return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True {shlex.join(words)}"


def forecast(recipe: OnlineRecipe) -> str:
    """What a run of the recipe will do to sample, for `rlhf check`; no model is loaded. Raises RecipeError for too high a rank."""
    rollouts = recipe.online.rollouts
    if isinstance(rollouts, VllmServerRollouts):
        return (
            f"the server at {rollouts.base_url} loads the policy's adapter before each sampling; it is not asked now. Start it with: "
            f"{_expected_command(recipe)}"
        )
    here = "" if importlib.util.find_spec("vllm") else "; vLLM is not installed in this Python"
    return f"vLLM loads the base once more in this process, and the policy's adapter before each sampling{here}"


def _expected_command(recipe: OnlineRecipe) -> str:
    """`serve_command` for a recipe, from what its files say."""
    assert recipe.lora is not None
    folder, own = local_folder(recipe.model.name_or_path), recipe.lora.r or 8
    lineage = adapter_lineage(folder)
    if lineage is None:
        return serve_command(recipe, str(folder), own, recipe.quantization)
    parent = int(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    rank = parent if recipe.lora.start == "continue" else parent + own
    stored = lineage.base.quantization
    quantization = None if stored is None else QuantizationSection.model_validate(stored)
    return serve_command(recipe, str(local_folder(lineage.base.name_or_path)), rank, quantization)
