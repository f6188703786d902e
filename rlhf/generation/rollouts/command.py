"""How to start a server of vLLM's that a recipe's rollouts can use, as one line. `rlhf check` and errors show it; no torch here."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rlhf.embedded import resolve
from rlhf.errors import RecipeError
from rlhf.models.lineage import adapter_lineage
from rlhf.recipe.online import OnlineRecipe
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


def serve_command(base: str, rank: int, max_length: int, quantization: QuantizationSection | None) -> str:
    """The command that starts a server for a base and adapters of `rank`."""
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(room_for(rank))]
    words += [
        "--max-model-len",
        str(max_length),
        "--logprobs-mode",
        "processed_logprobs",
        "--generation-config",
        "vllm",
    ]
    if quantization is not None and quantization.load_in_4bit:
        words += ["--quantization", "bitsandbytes"]
    return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True {shlex.join(words)}"


def expected_command(recipe: OnlineRecipe) -> str:
    """`serve_command` for a recipe, from what its files say; no model is loaded."""
    name = recipe.model.name_or_path
    folder = Path(resolve(name)).expanduser()
    folder = folder / "final" if (folder / "final").is_dir() else folder
    lineage = adapter_lineage(folder)
    assert recipe.lora is not None
    own, rank = recipe.lora.r or 8, recipe.lora.r or 8
    quantization = recipe.quantization
    if lineage is not None:
        parent = int(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("r", 0))
        rank = parent if recipe.lora.start == "continue" else parent + own
        name = lineage.base.name_or_path
        stored = lineage.base.quantization
        quantization = None if stored is None else QuantizationSection.model_validate(stored)
    return serve_command(resolve(name), rank, recipe.data.max_length, quantization)
