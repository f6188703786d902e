"""A run saves by time where its recipe names no steps, and all processes at the same step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rlhf.recipe.training import TrainRecipe
from rlhf.train import saving
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.two_processes import in_two

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]


def saved(recipe: TrainRecipe) -> list[int]:
    return sorted(int(p.name[5:]) for p in (Path(recipe.output_dir) / "checkpoints").glob("step-*"))


@pytest.fixture
def minutes_a_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainRecipe, float], None]:
    """A clock that shows so many minutes for each line in metrics.jsonl, of which there is one a step."""

    def start(recipe: TrainRecipe, minutes: float) -> None:
        lines = Path(recipe.output_dir) / "metrics.jsonl"
        monkeypatch.setattr(
            saving, "monotonic", lambda: 60 * minutes * len(lines.read_text().splitlines()) if lines.exists() else 0.0
        )

    return start


@pytest.mark.parametrize(
    ("checkpoint", "minutes", "steps"),
    [
        ({}, 4.0, [3, 6, 7]),  # at 12 and 24 minutes, and at the end
        ({}, 10.0, [1, 2, 3, 4, 5, 6, 7]),
        ({}, 1.4, []),  # shorter than ten minutes: only final/
        ({}, 1.5, [7]),
        ({"save_minutes": 0.5}, 0.2, [3, 6, 7]),
        ({"save_minutes": None}, 60.0, []),
        ({"save_steps": 5}, 60.0, [5, 7]),  # steps win
        ({"save_steps": 5, "save_minutes": None}, 60.0, [5, 7]),
    ],
)
def test_when_a_run_saves(
    checkpoint: dict[str, Any],
    minutes: float,
    steps: list[int],
    recipe_of: Recipes,
    model_folder: Folders,
    minutes_a_step: Callable[[TrainRecipe, float], None],
) -> None:
    checkpoint = {"save_total_limit": None} | checkpoint
    recipe = recipe_of("sft", model_folder("llama"), checkpoint=checkpoint, training={"max_steps": 7})
    minutes_a_step(recipe, minutes)
    train(recipe)
    assert saved(recipe) == steps
    assert (Path(recipe.output_dir) / "final/model.safetensors").exists()


def test_a_resumed_run_saves_its_end(
    recipe_of: Recipes, model_folder: Folders, minutes_a_step: Callable[[TrainRecipe, float], None]
) -> None:
    """However short the rest is: the checkpoint before is older than what was trained."""
    short = recipe_of("sft", model_folder("llama"), training={"max_steps": 4})
    minutes_a_step(short, 3.0)
    train(short)
    assert saved(short) == [4]
    longer = recipe_of("sft", model_folder("llama"), training={"max_steps": 5})
    train(longer)
    assert saved(longer) == [4, 5]


def test_saving_by_time_moves_no_number(
    recipe_of: Recipes, model_folder: Folders, minutes_a_step: Callable[[TrainRecipe, float], None]
) -> None:
    lines = []
    for out, minutes in (("often", 20.0), ("never", 0.0)):
        recipe = recipe_of("ppo", model_folder("llama"), out=out)
        minutes_a_step(recipe, minutes)
        train(recipe)
        assert bool(saved(recipe)) == (out == "often")
        lines.append([{k: v for k, v in x.items() if "second" not in k} for x in metrics_of(recipe)])
    assert lines[0] == lines[1]


def test_rank_0_decides_for_all() -> None:
    """Two processes whose clocks disagree: a rank that went its own way would wait for the other for ever."""
    assert sorted(in_two("tests.train.test_saving").splitlines()) == ["rank 0: 3 6 7", "rank 1: 3 6 7"]


if __name__ == "__main__":
    from rlhf.recipe.sections import CheckpointSection

    accelerator = Accelerator()
    minutes = 0.0
    saving.monotonic = lambda: 60 * minutes
    times = saving.SaveTimes(CheckpointSection(), accelerator, saved=False)
    steps = []
    for step in range(1, 8):
        minutes += 9.0 if accelerator.process_index else 4.0
        if times.due(step, last=step == 7):
            steps.append(str(step))
    sys.stdout.write(f"rank {accelerator.process_index}: {' '.join(steps)}\n")  # in one piece
    accelerator.end_training()
