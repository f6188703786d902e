"""Start one recipe. It names the function that carries it out, which is imported only then: nothing here is heavy."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.runs.failure import TERMINATED
from rlhf.runs.launch import refuse_several_processes, refuse_unsupported_launchers

if TYPE_CHECKING:
    from rlhf.recipe.loader import Loaded
    from rlhf.recipe.schema import AnyRecipe


def imported(name: str) -> Any:
    """What `module:name` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def run(recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run one recipe, a YAML file or a dict of the same keys, with `key=value` overrides.

    Returns the summary of its method's entry point. Raises RecipeError, DataError, SetupError or CheckpointError
    (rlhf.errors).
    """
    from rlhf.recipe.loader import read

    loaded = read(recipe, overrides)
    return run_recipe(loaded.recipe, loaded)


def run_recipe(recipe: AnyRecipe, loaded: Loaded | None = None) -> dict[str, Any]:
    """Run a recipe, and keep its status.json. With `loaded`, errors that name a key of the recipe also say where it stands."""
    from rlhf.recipe.training import TrainRecipe
    from rlhf.runs.status import Status

    refuse_unsupported_launchers()
    if not isinstance(recipe, TrainRecipe):
        refuse_several_processes(recipe.method)
    placed = nullcontext if loaded is None else loaded.placing
    with placed(), Status(recipe), placed():  # twice: status.json must say the same as the command, and can itself fail
        summary: dict[str, Any] = imported(recipe.entry_point)(recipe)
    return summary


def stop_on_sigterm() -> None:
    """Make a launcher's SIGTERM unwind the stack, so that status.json and child processes are seen to."""

    def stop(signum: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
