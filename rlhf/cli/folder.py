"""`rlhf run FOLDER`: a folder's numbered recipes in order.

Every stage gets a process of its own, so that its memory is given back and its peak can be told. Finished stages are
skipped; a stage that broke goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import RecipeError, RlhfError

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf.recipe.loader import Loaded
    from rlhf.recipe.schema import AnyRecipe


class StageFailed(RlhfError):
    """A stage of a folder failed and has said why; its exit code is passed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Stage:
    """One numbered recipe of a folder."""

    file: Path
    loaded: Loaded

    @property
    def recipe(self) -> AnyRecipe:
        return self.loaded.recipe

    @property
    def title(self) -> str:
        return f"{self.file.name} ({self.recipe.method})"


def run_folder(folder: str | Path, console: Console | None = None) -> None:
    """Run the recipes `<number>_*.yaml` of a folder in numeric order, each in its own process.

    A stage is skipped where its status.json says that this same recipe is done and that its inputs are the ones there
    now. Raises RecipeError for problems in any of the recipes before the first one starts, and StageFailed.
    """
    from rich.console import Console

    from rlhf.runs.status import read_status

    console = console or Console()
    stages = read_stages(Path(folder))
    outcomes = []
    for number, stage in enumerate(stages, start=1):
        heading = f"[{number}/{len(stages)}] {stage.title}"
        skipped = is_finished(stage.recipe)
        console.print(f"{heading} {'done before; skipped' if skipped else '...'}", markup=False, highlight=False)
        if not skipped:
            _set_stale_checkpoints_aside(stage.recipe, console)
            code = _run_stage(stage)
            if code:
                again = f"rlhf run {folder}"
                raise StageFailed(f"{stage.file} failed; once mended, go on from there with: {again}", code)
        outcomes.append((stage, skipped, read_status(stage.recipe.output_dir) or {}))
    _print_times(outcomes, console)


def read_stages(folder: Path) -> list[Stage]:
    """The folder's recipes in numeric order, all of them checked. Raises RecipeError with the problems of all."""
    from rlhf.cli.check import read_and_check
    from rlhf.cli.check.paths import numbered_recipes

    if folder.is_file():
        raise RecipeError(f"{folder}: rlhf run takes a folder; for one recipe: rlhf train {folder}")
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            f"{folder}: rlhf run starts its stages itself; launch one stage: accelerate launch -m rlhf train"
        )
    numbered = numbered_recipes(folder)
    if not numbered:
        raise RecipeError(f"{folder}: no numbered recipes here, such as 1_sft.yaml")
    stages: list[Stage] = []
    problems: list[str] = []
    owners: dict[str, Path] = {}
    for _, file in numbered:
        try:
            loaded, found = read_and_check(file, made=owners)
        except RecipeError as error:
            problems.extend(error.problems)
            continue
        stage = Stage(file, loaded)
        problems.extend(found.problems)
        output_dir = os.path.normpath(stage.recipe.output_dir)
        if output_dir in owners:
            place = stage.loaded.place(("output_dir",))
            problems.append(f"{place}: output_dir: {output_dir} already belongs to {owners[output_dir].name}")
        owners.setdefault(output_dir, file)
        stages.append(stage)
    if problems:
        raise RecipeError(problems)
    return stages


def is_finished(recipe: AnyRecipe) -> bool:
    """Whether this very recipe was done, from inputs that have not been made anew since."""
    from rlhf.recipe.loader import digest
    from rlhf.runs.status import inputs, read_status

    status = read_status(recipe.output_dir) or {}
    return (
        status.get("state") == "done"
        and status.get("recipe_sha256") == digest(recipe)
        and status.get("inputs") == inputs(recipe)
    )


def _set_stale_checkpoints_aside(recipe: AnyRecipe, console: Console) -> None:
    """A stage whose recipe or inputs changed must not go on from checkpoints that belong to the old ones."""
    from rlhf.recipe.loader import digest
    from rlhf.runs.status import inputs, read_status

    status = read_status(recipe.output_dir)
    checkpoints = Path(recipe.output_dir) / "checkpoints"
    if status is None or not checkpoints.is_dir():
        return
    if status.get("inputs") == inputs(recipe) and status.get("recipe_sha256") == digest(recipe):
        return
    aside = checkpoints.with_name("checkpoints.old")
    if aside.exists():
        shutil.rmtree(aside)
    checkpoints.rename(aside)
    console.print(f"  its recipe or inputs changed: starts afresh, old checkpoints are in {aside}", markup=False)


def _run_stage(stage: Stage) -> int:
    """Run one stage in a child process that shares the terminal; returns its exit code."""
    child = subprocess.Popen([sys.executable, "-m", "rlhf", *stage.recipe.command, str(stage.file)])
    try:
        try:
            code = child.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the child too: let it finish its last write
            child.wait()
            raise
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    return code if code >= 0 else 128 - code


def _print_times(outcomes: list[tuple[Stage, bool, dict[str, Any]]], console: Console) -> None:
    from rich.table import Table

    table = Table("stage", "", "wall seconds", "peak MiB")
    for stage, skipped, status in outcomes:
        wall, peak = status.get("wall_seconds"), status.get("peak_rss_mib")
        numbers = [f"{value:.1f}" if isinstance(value, float | int) else "" for value in (wall, peak)]
        table.add_row(stage.title, "skipped" if skipped else "ran", *numbers)
    console.print(table)
