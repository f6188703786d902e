"""Two processes start from one model and drop different activations; a resumed run drops what the whole one would have."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.recipe.loader import dump
from rlhf.recipe.training import TrainRecipe
from tests.train.test_resume import SAVING, assert_same, state_of
from tests.two_processes import in_two

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]


def in_two_processes(recipe: TrainRecipe) -> list[str]:
    """Train it; what each rank says of its weights before the first step, in the order of the ranks."""
    path = Path(f"{recipe.output_dir}.yaml")
    path.write_text(dump(recipe))  # type: ignore[arg-type]
    said = in_two("tests.train.test_ranks", str(path)).splitlines()
    return sorted(line for line in said if line.startswith("rank "))


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_ranks_share_their_weights_and_not_their_dropout(
    method: str, recipe_of: Recipes, model_folder: Folders
) -> None:
    """One step of equal rows: both ranks draw equally many numbers, and must not draw the same."""
    rows = Path(f"{recipe_of(method, model_folder('llama')).output_dir}.jsonl")
    one = '"completion": " good"' if method == "sft" else '"chosen": " good", "rejected": " bad"'
    rows.write_text(f'{{"prompt": "The film was", {one}}}\n' * 2)
    recipe = recipe_of(
        method, model_folder("llama"), lora={"r": 4, "lora_dropout": 0.5}, checkpoint=SAVING,
        data={"train": [{"path": str(rows)}]}, training={"max_steps": 2, "per_device_train_batch_size": 1},
    )  # fmt: skip
    first, second = in_two_processes(recipe)
    assert first.removeprefix("rank 0: ") == second.removeprefix("rank 1: ")
    folder = Path(recipe.output_dir) / "checkpoints/step-000002"
    ours, theirs = (load_file(folder / f"rng-{rank}.safetensors")["cpu"] for rank in (0, 1))
    assert not torch.equal(ours, theirs)


def test_a_run_of_two_resumes_bitwise(recipe_of: Recipes, model_folder: Folders) -> None:
    """Each rank goes on with its own generators."""
    options = {"lora": {"r": 4, "lora_dropout": 0.5}, "checkpoint": SAVING,
               "training": {"max_steps": 4, "per_device_train_batch_size": 2}}  # fmt: skip
    whole = recipe_of("sft", model_folder("llama"), out="whole", **options)
    broken = recipe_of("sft", model_folder("llama"), out="broken", **options)
    in_two_processes(whole)
    shutil.copytree(whole.output_dir, broken.output_dir)
    last = Path(broken.output_dir) / "checkpoints/step-000004"
    shutil.rmtree(last)
    in_two_processes(broken)
    assert_same(state_of(Path(whole.output_dir) / "checkpoints/step-000004"), state_of(last))


if __name__ == "__main__":
    from rlhf.recipe.loader import load
    from rlhf.train import run
    from tests.golden.cases import sha256_of

    fit = run.fit

    def after_saying(stage: Any, recipe: Any, checkpoints: Any, accelerator: Any, title: str) -> dict[str, float]:
        """The weights as this rank has made them: wrapping for several processes copies rank 0's to all."""
        weights = {name: p.detach() for name, p in stage.module.named_parameters()}
        sys.stdout.write(f"rank {accelerator.process_index}: {sha256_of(weights)}\n")
        sys.stdout.flush()
        return fit(stage, recipe, checkpoints, accelerator, title)

    run.fit = after_saying
    run.train(load(sys.argv[1]))  # type: ignore[arg-type]
