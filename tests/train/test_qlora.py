"""QLoRA on a CPU: a 4-bit base under float32 adapters, through every stage that takes it, resumed and merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.errors import RecipeError
from rlhf.models.load import load_policy
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from tests.train.conftest import metrics_of

pytest.importorskip("bitsandbytes")
Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"}  # fmt: skip


def qlora(recipe_of: Recipes, folder: str, method: str, **sections: object) -> TrainRecipe:
    training = {"max_steps": 12, "learning_rate": 1e-2 if method == "reward" else 3e-2}
    return recipe_of(method, folder, out=method, lora={"r": 4}, quantization=NF4, training=training, **sections)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_4bit_base_trains_through_its_adapters(method: str, recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = qlora(recipe_of, model_folder("llama"), method)
    train(recipe)
    lines = metrics_of(recipe)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    policy = load_policy(recipe.model, quantization=recipe.quantization, lora=recipe.lora)
    assert policy.segments
    quantised = [m for m in policy.modules() if type(m).__name__ == "Linear4bit" and not hasattr(m, "base_layer")]
    assert len(quantised) == 14  # seven linear layers in each of two blocks
    trained = {p.dtype for p in policy.parameters() if p.requires_grad}
    assert trained == {torch.float32}


def test_final_is_the_function_that_was_trained(recipe_of: Recipes, model_folder: Folders) -> None:
    """The dequantised base plus the adapters, in full precision: no second rounding to 4 bits."""
    recipe = qlora(recipe_of, model_folder("llama"), "sft", checkpoint={"save_steps": 12})
    train(recipe)
    merged = load_policy(ModelSection(name_or_path=f"{recipe.output_dir}/final"))
    trained = load_policy(recipe.model, quantization=recipe.quantization, lora=recipe.lora)
    state = load_file(Path(recipe.output_dir) / "checkpoints/step-000012/model.safetensors")
    batch = collate([Segment([5, 6, 7], [[8, 9, 10], [11]])])
    with torch.no_grad():
        before = trained(batch)
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
        torch.testing.assert_close(merged(batch), trained(batch), rtol=1e-3, atol=1e-3)
        assert (trained(batch) - before).abs().max() > 0.1


def test_qlora_resumes_bitwise(recipe_of: Recipes, model_folder: Folders) -> None:
    recipe = qlora(recipe_of, model_folder("llama"), "dpo", checkpoint={"save_steps": 6, "save_total_limit": None})
    train(recipe)
    folder = Path(recipe.output_dir) / "checkpoints"
    whole = {k: v.clone() for k, v in load_file(folder / "step-000012/model.safetensors").items()}
    shutil.rmtree(folder / "step-000012")
    train(recipe)
    again = load_file(folder / "step-000012/model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_8bit_optimizers_train_and_resume(optim: str, recipe_of: Recipes, model_folder: Folders) -> None:
    training = {"max_steps": 8, "learning_rate": 1e-2, "optim": optim}
    saving = {"save_steps": 4, "save_total_limit": None}
    recipe = recipe_of("sft", model_folder("llama"), training=training, checkpoint=saving)
    train(recipe)
    lines = metrics_of(recipe)
    assert lines[-1]["loss"] < lines[0]["loss"]
    shutil.rmtree(Path(recipe.output_dir) / "checkpoints/step-000008")
    train(recipe)
    assert [line["loss"] for line in metrics_of(recipe)] == [line["loss"] for line in lines]


def test_a_4bit_model_without_adapters_is_refused(recipe_of: Recipes, model_folder: Folders) -> None:
    with pytest.raises(ValueError, match="add a lora: section"):
        recipe_of("sft", model_folder("llama"), quantization=NF4)


def test_a_model_that_is_not_there_is_named(recipe_of: Recipes) -> None:
    with pytest.raises(RecipeError, match=r"no such folder: \./nowhere/final"):
        train(recipe_of("sft", "./nowhere/final"))
