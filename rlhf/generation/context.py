"""Do a prompt and its completion fit in the model's context? This is checked before a model is loaded, and without torch.

`rlhf check` calls `problems_of`. A stage calls `config_context` and `check_context` when its prompts are tokenised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rlhf import embedded
from rlhf.errors import RecipeError
from rlhf.models.lineage import adapter_lineage
from rlhf.recipe.online import OnlineRecipe
from rlhf.recipe.schema import AnyRecipe, EvalRecipe, GenerateRecipe
from rlhf.recipe.yaml_lines import KeyPath
from rlhf.runs import cache

KEYS = ("max_position_embeddings", "n_positions")  # GPT-2 has the second name


def config_context(name_or_path: str) -> int | None:
    """The number of positions in a local model's `config.json`; None if the model is not on this disk or does not say.

    For adapters it is the config of their base.
    """
    folder = local_folder(name_or_path)
    lineage = adapter_lineage(folder)
    if lineage is not None:
        folder = local_folder(lineage.base.name_or_path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for part in (config.get("text_config"), config):
        found = [part[key] for key in KEYS if isinstance(part, dict) and isinstance(part.get(key), int)]
        if found:
            return int(found[0])
    return None


def local_folder(name_or_path: str) -> Path:
    """Where a model lies on this disk, if it does; nothing is made or read."""
    if name_or_path.startswith(embedded.PREFIX):  # where it lies if it was made already: to make it takes a while
        return cache.root() / name_or_path.removeprefix(embedded.PREFIX)
    return Path(embedded.resolve(name_or_path)).expanduser()


def check_context(longest: int, new_tokens: int, context: int | None, model: str = "the model") -> None:
    """Raises RecipeError when the longest prompt, in tokens, and its completion do not fit in the model's context.

    Learned positions have no entry beyond the context (on a GPU the error does not say so); other positions were not trained.
    """
    if context is not None and longest + new_tokens > context:
        raise RecipeError(
            f"sampling.max_new_tokens: the longest prompt has {longest} tokens; with {new_tokens} new ones it exceeds "
            f"the {context} positions of {model}; lower max_new_tokens or leave out the longest prompts"
        )


def problems_of(recipe: AnyRecipe) -> Iterator[tuple[KeyPath, str]]:
    """Each key whose `max_new_tokens` leaves no room for a prompt, and why."""
    if isinstance(recipe, OnlineRecipe):
        key: KeyPath = (recipe.method, "sampling", "max_new_tokens")
        new_tokens, models = recipe.online.sampling.max_new_tokens, [recipe.model.name_or_path]
        if new_tokens >= recipe.data.max_length:
            yield key, f"{new_tokens} leaves no room for a prompt in data.max_length: {recipe.data.max_length}"
    elif isinstance(recipe, GenerateRecipe | EvalRecipe):
        key, new_tokens = ("sampling", "max_new_tokens"), recipe.sampling.max_new_tokens
        models = (
            [recipe.model.name_or_path]
            if isinstance(recipe, GenerateRecipe)
            else [m.name_or_path for m in recipe.models]
        )
    else:
        return
    for model in models:
        context = config_context(model)
        if context is not None and new_tokens >= context:
            yield key, f"{new_tokens} leaves no room for a prompt in the {context} positions of {model}; lower it"
