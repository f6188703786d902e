"""Hand-overs that failed, or would have, when they were first tried as a user tries them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rlhf.errors import CheckpointError, RecipeError
from rlhf.models.load import load_policy
from rlhf.models.merge import merge
from rlhf.models.probe import check_probe
from rlhf.recipe.loader import dump
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.runs.identity import of_model
from rlhf.train.run import train
from tests.train.conftest import metrics_of
from tests.two_processes import in_two

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
SHORT = {"max_steps": 4, "learning_rate": 3e-2}


def run(recipe_of: Recipes, method: str, base: str, out: str, **sections: Any) -> TrainRecipe:
    recipe = recipe_of(method, base, out=out, **({"training": SHORT} | sections))
    train(recipe)
    return recipe


def test_a_value_model_keeps_the_rank_of_the_reward_model_it_starts_from(
    recipe_of: Recipes, model_folder: Folders
) -> None:
    """stack-llama's reward model has rank 8, its policy rank 16."""
    reward = run(recipe_of, "reward", model_folder("llama"), "reward", lora={"r": 2})
    ppo = run(
        recipe_of, "ppo", model_folder("llama"), "ppo", lora={"r": 4}, checkpoint={"save_steps": 4},
        ppo={"rewards": [{"model": reward.output_dir}]},
    )  # fmt: skip
    saved = load_file(Path(ppo.output_dir) / "checkpoints/step-000004/model.safetensors")
    ranks = {name.split(".")[-2]: value.shape[0] for name, value in saved.items() if "lora_A" in name}
    assert ranks == {"default": 4, "value": 2}  # adapters on one base


@pytest.mark.parametrize("targets", [".*q_proj", ["q_proj", "v_proj"], "all-linear"])
def test_adapters_go_on_with_the_layers_that_the_recipe_names_as_before(
    targets: Any, recipe_of: Recipes, model_folder: Folders
) -> None:
    lora = {"r": 4, "target_modules": targets}
    sft = run(recipe_of, "sft", model_folder("llama"), "sft", lora=lora)
    run(recipe_of, "dpo", sft.output_dir, "dpo", lora=lora)
    with pytest.raises(RecipeError, match=r"lora\.target_modules: \.\*o_proj here"):
        run(recipe_of, "dpo", sft.output_dir, "other", lora={"r": 4, "target_modules": ".*o_proj"})


def test_a_runs_own_recipe_yaml_runs_again(recipe_of: Recipes, model_folder: Folders) -> None:
    """It writes every default out, and a default must not contradict the adapters that the run went on with."""
    import rlhf

    sft = run(
        recipe_of, "sft", model_folder("llama"), "sft", lora={"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"]}
    )
    dpo = recipe_of("dpo", sft.output_dir, out="dpo", lora={}, training=SHORT)
    for _ in range(2):
        Path(dpo.output_dir).mkdir(exist_ok=True)
        (Path(dpo.output_dir) / "recipe.yaml").write_text(dump(dpo))  # type: ignore[arg-type]
        rlhf.run(f"{dpo.output_dir}/recipe.yaml", ["checkpoint.resume=never"])
    config = json.loads((Path(dpo.output_dir) / "final/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 5, ["q_proj"])


def test_the_same_training_gives_the_same_model(recipe_of: Recipes, model_folder: Folders) -> None:
    """By its identity, on which later stages depend; the model card says how long it took."""
    first = run(recipe_of, "sft", model_folder("llama"), "sft", lora={"r": 4})
    before, card = of_model(first.output_dir), Path(first.output_dir, "final/README.md").read_text()
    run(recipe_of, "sft", model_folder("llama"), "sft", lora={"r": 4}, checkpoint={"resume": "never"})
    assert Path(first.output_dir, "final/README.md").read_text() != card
    assert of_model(first.output_dir) == before
    run(recipe_of, "sft", model_folder("llama"), "sft", lora={"r": 4}, seed=1)
    assert of_model(first.output_dir) != before


def test_a_parent_that_cannot_be_read_stops_the_run_before_its_first_step(
    recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    sft = run(recipe_of, "sft", model_folder("llama"), "sft")
    shutil.copytree(Path(sft.output_dir) / "final", tmp_path / "old")
    lineage = tmp_path / "old/lineage.json"
    lineage.write_text(json.dumps(json.loads(lineage.read_text()) | {"base": "llama"}))
    with pytest.raises(CheckpointError, match="an older version probably wrote it"):
        run(recipe_of, "dpo", str(tmp_path / "old"), "dpo")
    assert not (tmp_path / "dpo/metrics.jsonl").exists()


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "nf4"])
def test_a_run_in_bf16_loads_without_autocast_and_merges_exactly(
    quantised: bool, recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    """As the quickstart does: trained under bf16 autocast, evaluated without. Neither is a loss of the model."""
    more = {"quantization": {"load_in_4bit": True}} if quantised else {}  # whose layers compute in bf16
    sft = run(
        recipe_of, "sft", model_folder("llama"), "sft", model={"dtype": "bfloat16"}, lora={"r": 4},
        training=SHORT | {"bf16": True}, **more,
    )  # fmt: skip
    name = sft.output_dir
    assert check_probe(load_policy(ModelSection(name_or_path=name, dtype="bfloat16")), Path(name) / "final") == 0.0
    assert merge(name, tmp_path / "whole", "float32").off_by < (5e-2 if quantised else 1e-4)
    assert merge(name, tmp_path / "rounded", "bfloat16").off_by < 5e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_lost_delta_is_found_in_any_precision(
    dtype: Any, recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    """As trained, and in another dtype, where only the mean over the rows is held to its bound."""
    training = SHORT | {"bf16": True, "max_steps": 12}
    sft = run(
        recipe_of, "sft", model_folder("llama"), "sft", model={"dtype": "bfloat16"}, lora={"r": 4}, training=training
    )
    load_policy(ModelSection(name_or_path=sft.output_dir, dtype=dtype))
    path = Path(sft.output_dir) / "final/adapter_model.safetensors"
    save_file({name: value * 0.1 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="this is not the model that was trained"):
        load_policy(ModelSection(name_or_path=sft.output_dir, dtype=dtype))


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "nf4"])
def test_stacked_adapters_in_bf16_become_one(
    quantised: bool, recipe_of: Recipes, model_folder: Folders, tmp_path: Path
) -> None:
    """As stack_llama_2 does: new adapters on other layers. Their sum rounds otherwise, and is the same function."""
    more: dict[str, Any] = {"quantization": {"load_in_4bit": True}} if quantised else {}
    more |= {"model": {"dtype": "bfloat16"}, "training": SHORT | {"bf16": True}}
    base = more["model"] | {"name_or_path": model_folder("llama")}
    sft = run(recipe_of, "sft", "", "sft", **more | {"model": base}, lora={"r": 2, "target_modules": ["q_proj"]})
    wide = more | {"model": more["model"] | {"name_or_path": sft.output_dir}, "lora": {"r": 3, "start": "fresh"}}
    dpo = run(recipe_of, "dpo", "", "dpo", **wide)
    saved = load_file(Path(dpo.output_dir) / "final/adapter_model.safetensors")
    assert {value.shape[0] for name, value in saved.items() if "lora_A" in name} == {5}
    policy = load_policy(ModelSection(name_or_path=dpo.output_dir, dtype="bfloat16"))
    assert check_probe(policy, Path(dpo.output_dir) / "final") == 0.0


@pytest.mark.parametrize("start", ["continue", "fresh"])
def test_two_processes_hand_over_to_two(start: str, recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    """SFT, then DPO on its adapters, each in two processes; the same numbers as alone."""

    def trained(recipe: TrainRecipe) -> TrainRecipe:
        path = tmp_path / f"{Path(recipe.output_dir).name}.yaml"
        path.write_text(dump(recipe))  # type: ignore[arg-type]
        in_two("rlhf", "train", str(path))
        return recipe

    common = {"max_steps": 3, "learning_rate": 1e-2, "adam_epsilon": 1e-3}
    small, large = ({"training": common | {"per_device_train_batch_size": size}} for size in (2, 4))
    lora = {"lora": {"r": 4, "start": start}}
    sft = trained(recipe_of("sft", model_folder("llama"), out="sft", **lora, **small))
    both = trained(recipe_of("dpo", sft.output_dir, out="both", **lora, **small))
    alone = recipe_of("dpo", sft.output_dir, out="alone", **lora, **large)
    train(alone)
    for ours, theirs in zip(metrics_of(both), metrics_of(alone), strict=True):
        for key in ("loss", "grad_norm", "logprobs/chosen"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), (ours["step"], key)
    weights = [load_file(Path(r.output_dir) / "final/adapter_model.safetensors") for r in (both, alone)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-4 for name in weights[0])
