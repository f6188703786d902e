"""The models beside the one that trains: whole ones in the recipe's quantization, adapters on their base as it was trained."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from rlhf.recipe.training import TrainRecipe
from rlhf.train.run import make_accelerator, train
from rlhf.train.setup import Setup
from tests.train.ppo_support import Folders, Recipes, stage_of

pytest.importorskip("bitsandbytes")
NF4 = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
LORA = {"r": 4}


def in_4_bits(module: nn.Module) -> bool:
    return any(type(m).__name__ == "Linear4bit" for m in module.modules())


def trained(recipe_of: Recipes, base: str, method: str, **sections: Any) -> str:
    recipe = recipe_of(method, base, out=f"{method}-beside", training={"max_steps": 1}, **sections)
    train(recipe)
    return recipe.output_dir


def ppo(recipe_of: Recipes, base: str, reward: str, *, bits: bool = True, **sections: Any) -> TrainRecipe:
    """A 4-bit policy under adapters, with one reward model."""
    section = {"rewards": [{"model": reward}]} | sections.pop("ppo", {})
    return recipe_of("ppo", base, lora=LORA, quantization=NF4 if bits else None, ppo=section, **sections)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
@pytest.mark.parametrize("bits", [False, True], ids=["dense", "nf4"])
def test_a_reference_of_adapters_lies_on_its_own_base(
    bits: bool, method: str, recipe_of: Recipes, model_folder: Folders
) -> None:
    """Beside a 4-bit policy too; a whole one is loaded in 4 bits with it."""
    base = model_folder("llama")
    sft = trained(recipe_of, base, "sft", lora=LORA, quantization=NF4 if bits else None)
    recipe = recipe_of(method, base, lora=LORA, quantization=NF4)
    setup = Setup(recipe, make_accelerator(recipe), None, [], [])  # type: ignore[arg-type]
    beside = setup.other_policy(sft)
    assert beside is not None and in_4_bits(beside) == bits
    whole = setup.other_policy(base)
    assert whole is not None and in_4_bits(whole)


@pytest.mark.parametrize(("reward_bits", "policy_bits"), [(False, True), (True, False), (True, True)])
def test_a_reward_model_of_adapters_lies_on_its_own_base(
    reward_bits: bool, policy_bits: bool, recipe_of: Recipes, model_folder: Folders
) -> None:
    """Where it scores, and where the value model starts from it."""
    base = model_folder("llama")
    reward = trained(recipe_of, base, "reward", lora=LORA, quantization=NF4 if reward_bits else None)
    stage = stage_of(ppo(recipe_of, base, reward, bits=policy_bits))
    assert in_4_bits(stage.policy) == policy_bits
    assert [in_4_bits(s.score.model) for s in stage.scorers] == [reward_bits]  # type: ignore[attr-defined]
    assert in_4_bits(stage.module.value_model) == reward_bits
