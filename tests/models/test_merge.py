"""`rlhf merge`: one whole model out of base and adapters, held against them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from tests.train.conftest import model_folder, recipe_of, rows

__all__ = ["model_folder", "recipe_of", "rows"]
NF4 = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
BATCH = collate([Segment([5, 6, 7], [[8, 9, 10], [11]])])


def trained(recipe_of: Callable[..., TrainRecipe], base: str, method: str, quantised: bool) -> TrainRecipe:
    more = {"quantization": NF4} if quantised else {}
    recipe = recipe_of(method, base, lora={"r": 4}, training={"max_steps": 6, "learning_rate": 3e-2}, **more)
    train(recipe)
    return recipe


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "nf4"])
def test_a_merged_policy_is_the_adapters_function(
    quantised: bool,
    recipe_of: Callable[..., TrainRecipe],
    model_folder: Callable[[str], str],
    tmp_path: Path,
) -> None:
    recipe = trained(recipe_of, model_folder("llama"), "sft", quantised)
    result = CliRunner().invoke(app, ["merge", recipe.output_dir, "-o", str(tmp_path / "whole"), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert "off by at most" in result.output and "in 4 bits" in result.output
    with torch.no_grad():
        ours = load_policy(ModelSection(name_or_path=recipe.output_dir))(BATCH)
        torch.testing.assert_close(
            load_policy(ModelSection(name_or_path=str(tmp_path / "whole")))(BATCH), ours, rtol=1e-4, atol=1e-4
        )
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
        logits = plain(torch.tensor([[5, 6, 7, 11]])).logits.log_softmax(-1)
    torch.testing.assert_close(logits[0, 2, 11], ours[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_config_names_the_precision_of_the_weights(
    dtype: str, recipe_of: Callable[..., TrainRecipe], model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    """Transformers loads in the precision that config.json names, whatever the base was trained in."""
    base = {"name_or_path": model_folder("llama"), "dtype": "bfloat16" if dtype == "float32" else "float32"}
    recipe = recipe_of("sft", model_folder("llama"), model=base, lora={"r": 4})
    train(recipe)
    folder = tmp_path / "whole"
    result = CliRunner().invoke(app, ["merge", recipe.output_dir, "-o", str(folder), "--dtype", dtype])
    assert result.exit_code == 0, result.output
    assert {w.dtype for w in load_file(folder / "model.safetensors").values()} == {getattr(torch, dtype)}
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "nf4"])
def test_a_merged_reward_model_keeps_its_head(
    quantised: bool, recipe_of: Callable[..., TrainRecipe], model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    recipe = trained(recipe_of, model_folder("llama" if quantised else "gpt2"), "reward", quantised)
    result = CliRunner().invoke(app, ["merge", recipe.output_dir, "-o", str(tmp_path / "whole"), "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    with torch.no_grad():
        ours, theirs = (
            load_scalar_model(ModelSection(name_or_path=n))(BATCH) for n in (recipe.output_dir, str(tmp_path / "whole"))
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_merged(
    recipe_of: Callable[..., TrainRecipe], model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    whole = ["-o", str(tmp_path / "whole")]
    result = CliRunner().invoke(app, ["merge", model_folder("llama"), *whole])
    assert result.exit_code == 2 and "holds no adapters of a LoRA run" in result.output
    recipe = trained(recipe_of, model_folder("llama"), "sft", False)
    adapters = Path(recipe.output_dir) / "final/adapter_model.safetensors"
    shutil.copy(Path(model_folder("llama")) / "model.safetensors", adapters)
    result = CliRunner().invoke(app, ["merge", recipe.output_dir, *whole])
    assert result.exit_code == 1 and "they are of another model" in result.output
    assert not (tmp_path / "whole").exists()
