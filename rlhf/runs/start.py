"""Start one recipe: the only place that knows which function carries out which method.

The functions are named by strings and imported when they are called, so that nothing here is heavy and nothing below
depends on what lies above.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.runs.failure import TERMINATED
from rlhf.runs.launch import refuse_several_processes, refuse_unsupported_launchers

if TYPE_CHECKING:
    from rlhf.recipe.schema import AnyRecipe

ENTRY_POINTS = {
    "sft": "rlhf.train.run:train",
    "reward": "rlhf.train.run:train",
    "ppo": "rlhf.train.run:train",
    "dpo": "rlhf.train.run:train",
    "data": "rlhf.synthesis.steps:build",
    "generate": "rlhf.generation.run:generate",
    "eval": "rlhf.evaluate.run:evaluate",
}
COMMANDS = {"data": ("data", "build"), "generate": ("generate",), "eval": ("eval",)}  # all others: train


def command(method: str) -> tuple[str, ...]:
    """The words after `rlhf` that run a recipe of this method."""
    return COMMANDS.get(method, ("train",))


def run(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run one recipe, a YAML file or a dict of the same keys, with `key=value` overrides.

    Returns the summary of its method's entry point. Raises RecipeError, DataError, SetupError or CheckpointError
    (rlhf.errors).
    """
    from rlhf.recipe.loader import load

    return run_recipe(load(recipe, overrides))


def run_recipe(recipe: AnyRecipe) -> dict[str, Any]:
    """Run a recipe that is already loaded, and keep its status.json."""
    from rlhf.runs.status import Status

    refuse_unsupported_launchers()
    if recipe.method in COMMANDS:
        refuse_several_processes(recipe.method)
    with Status(recipe):
        module, _, function = ENTRY_POINTS[recipe.method].partition(":")
        summary: dict[str, Any] = getattr(import_module(module), function)(recipe)
    return summary


def stop_on_sigterm() -> None:
    """Make a launcher's SIGTERM unwind the stack, so that status.json and child processes are seen to."""

    def stop(signum: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
