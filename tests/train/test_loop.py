"""Accumulation and processes change nothing but speed; what cannot go on stops with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.errors import RecipeError, RlhfError
from rlhf.recipe.loader import dump
from rlhf.recipe.sections import TrainingSection
from rlhf.recipe.training import TrainRecipe
from rlhf.train.optim import learning_rate, make_optimizer
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.two_processes import in_two

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]


def final_of(recipe: TrainRecipe) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.output_dir) / "final/model.safetensors")


def assert_close(a: TrainRecipe, b: TrainRecipe) -> None:
    ours, theirs = final_of(a), final_of(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for x, y in zip(metrics_of(a), metrics_of(b), strict=True):
        for key in ("loss", "grad_norm"):
            assert x[key] == pytest.approx(y[key], rel=1e-4, abs=1e-6), (x["step"], key)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_accumulation_1_2_4_is_one_run(method: str, recipe_of: Recipes, model_folder: Folders) -> None:
    """SGD-like exactness needs no Adam: its update has the gradient's sign, so a small epsilon would amplify rounding."""
    runs = []
    for accumulation in (1, 2, 4):
        training = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation,
                    "max_steps": 3, "learning_rate": 1e-3, "adam_epsilon": 1e-3}  # fmt: skip
        runs.append(recipe_of(method, model_folder("llama"), out=f"a{accumulation}", training=training))
        train(runs[-1])
    assert_close(runs[0], runs[1])
    assert_close(runs[0], runs[2])


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
def test_two_processes_are_one_run(method: str, recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    """Two gloo ranks share each step's rows; the last window of an epoch leaves one of them fewer (6 rows by 4)."""
    common = {"max_steps": 3, "learning_rate": 1e-3, "adam_epsilon": 1e-3}
    alone = recipe_of(method, model_folder("llama"), out="alone", training=common | {"per_device_train_batch_size": 4})
    both = recipe_of(method, model_folder("llama"), out="both", training=common | {"per_device_train_batch_size": 2})
    train(alone)
    path = tmp_path / "both.yaml"
    path.write_text(dump(both))
    in_two("rlhf", "train", str(path))
    lineage = json.loads((Path(both.output_dir) / "final/lineage.json").read_text())
    assert lineage["processes"] == 2
    if (
        method == "ppo"
    ):  # each rank samples with a seed of its own, so the runs differ; but both must have learnt as one
        lines = metrics_of(both)
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-5)
        assert lines[0]["policy/ratio"] == pytest.approx(1.0, abs=0.05)
    else:
        assert_close(alone, both)


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(recipe_of: Recipes, model_folder: Folders) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = recipe_of("sft", model_folder("llama"), logging={"report_to": ["tensorboard"]})
    train(recipe)
    (file,) = Path(recipe.output_dir).rglob("events.out.tfevents.*")
    reader = events.EventAccumulator(str(file))
    reader.Reload()
    written = [(event.step, event.value) for event in reader.Scalars("loss")]
    assert written == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in metrics_of(recipe)]


def test_a_loss_that_is_not_finite_stops_the_run(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = recipe_of("sft", model_folder("llama"), training={"learning_rate": 1e30, "max_grad_norm": None})
    with pytest.raises(RlhfError, match=r"step \d: .*not finite; this update was not made"):
        train(recipe)


def test_learning_rate_schedules() -> None:
    def rates(**options: Any) -> list[float]:
        section = TrainingSection(learning_rate=1.0, **options)
        return [round(learning_rate(section, step, 10), 4) for step in range(10)]

    assert rates(lr_scheduler_type="constant", warmup_steps=2) == [0.5, *[1.0] * 9]
    assert rates(lr_scheduler_type="linear") == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates(lr_scheduler_type="linear", warmup_steps=5) == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    cosine = rates(lr_scheduler_type="cosine")
    assert cosine[0] == 1.0 and cosine[5] == 0.5 and cosine[9] == pytest.approx(0.0245, abs=1e-4)


def test_weight_decay_spares_vectors() -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(module, TrainingSection(weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {id(module.weight): 0.1, id(module.bias): 0.0}


@pytest.mark.parametrize(
    ("name", "message"), [("not_a_number", "returned nan"), ("one_too_few", "returned 7 scores for 8")]
)
def test_a_reward_that_misbehaves_is_named(name: str, message: str, recipe_of: Recipes, model_folder: Folders) -> None:
    ppo = {"rewards": [{"callable": f"tests.train.rewards:{name}"}]}
    with pytest.raises(RlhfError, match=f"{name} {message}"):
        train(recipe_of("ppo", model_folder("llama"), ppo=ppo))


def test_a_reward_that_raises_is_named(recipe_of: Recipes, model_folder: Folders) -> None:
    ppo = {"rewards": [{"callable": "tests.train.rewards:nothing"}]}
    with pytest.raises(
        RlhfError, match=r"rewards:nothing must return one number for each completion, or None: 'NoneType'"
    ):
        train(recipe_of("ppo", model_folder("llama"), ppo=ppo))


def test_adapters_on_the_head_are_refused(recipe_of: Recipes, model_folder: Folders) -> None:
    lora = {"r": 4, "target_modules": ["lm_head", "q_proj"]}
    with pytest.raises(RecipeError, match="adapters on the output head are not supported"):
        train(recipe_of("sft", model_folder("llama"), lora=lora))


def test_a_folder_that_is_no_reward_model_is_refused(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = recipe_of("ppo", model_folder("llama"), ppo={"rewards": [{"model": model_folder("gpt2")}]})
    with pytest.raises(RecipeError, match=r"is not a reward model: it has no head\.safetensors"):
        train(recipe)
