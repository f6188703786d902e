"""Commands that run in one process refuse a launcher that started several of them."""

from __future__ import annotations

import os

from rlhf.errors import RecipeError


def one_process(command: str) -> None:
    """Raises RecipeError in each of several processes: they would do the same work and write over each other's files."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise RecipeError(
            f"{command} runs in one process, and the launcher started {processes}, which would all do the same work in one "
            "folder. Start it without a launcher; to use several GPUs, give each process its own prompts and output_dir"
        )
