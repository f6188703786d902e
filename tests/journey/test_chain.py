"""A model through several stages, the way a user takes it: what one stage wrote is what the next one starts from.

At each hand-over the loss (or score) on the same rows is the trained module's: within 1e-5 relative in float32, within 2e-3
nats on a 4-bit base.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from rlhf.cli import app
from rlhf.errors import CheckpointError, RecipeError
from rlhf.generation.engines.encode import base_and_adapter
from rlhf.models.load import load_policy, load_scalar_model
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment, collate
from rlhf.train.run import train
from tests.train.conftest import metrics_of

Recipes = Callable[..., TrainRecipe]
Folders = Callable[[str], str]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
WEIGHTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"r": 4}},
    "nf4": {"lora": {"r": 4}, "quantization": NF4},
}
EVERY = pytest.mark.parametrize("weights", WEIGHTS)
ARCHITECTURES = pytest.mark.parametrize("architecture", ["llama", "gpt2"])
TRAINING = {"max_steps": 6, "learning_rate": 3e-2, "eval_steps": 6}
STILL = {"max_steps": 1, "learning_rate": 1e-12, "eval_steps": 1}


def final(recipe: TrainRecipe) -> str:
    return f"{recipe.output_dir}/final"


def stage(recipe_of: Recipes, method: str, base: str, weights: str, out: str, **sections: Any) -> TrainRecipe:
    """A stage that evaluates on the rows that it trains on, run to its end."""
    recipe = recipe_of(method, base, out=out, **({"training": TRAINING} | WEIGHTS[weights] | sections))
    data = recipe.data.model_copy(update={"eval": recipe.data.train})
    recipe = recipe.model_copy(update={"data": data})
    train(recipe)
    return recipe


def close(weights: str, ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= (2e-3 if weights == "nf4" else 1e-5 * max(1.0, abs(theirs)))


@EVERY
@ARCHITECTURES
@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_the_next_stage_starts_where_this_one_ended(
    method: str,
    architecture: str,
    weights: str,
    recipe_of: Recipes,
    model_folder: Folders,
) -> None:
    """The same rows, evaluated at the end of one stage and before the first step of the next."""
    training = TRAINING | ({"learning_rate": 1e-2} if method == "reward" else {})
    first = stage(recipe_of, method, model_folder(architecture), weights, "first", training=training)
    learnt = metrics_of(first)[0]["eval/loss"] - metrics_of(first)[-1]["eval/loss"]
    assert learnt > 5e-4
    end = metrics_of(first)[-1]
    second = stage(recipe_of, method, final(first), weights, "second", training=STILL)
    start = metrics_of(second)[0]
    assert start["step"] == 0
    if method == "dpo":  # its reference is the policy as it starts: the loss is log 2 again, the policy what it was
        assert start["eval/margin"] == pytest.approx(0.0, abs=1e-6)
        assert close(weights, start["eval/logprobs/chosen"], end["eval/logprobs/chosen"])
    else:
        assert close(weights, start["eval/loss"], end["eval/loss"])


@EVERY
@ARCHITECTURES
def test_sft_reward_ppo(architecture: str, weights: str, recipe_of: Recipes, model_folder: Folders) -> None:
    sft = stage(recipe_of, "sft", model_folder(architecture), weights, "sft")
    reward = stage(recipe_of, "reward", final(sft), weights, "reward")
    ppo = {"rewards": [{"model": final(reward)}], "num_ppo_epochs": 1}
    still = {"max_steps": 1, "learning_rate": 1e-12, "eval_steps": 1}
    run = stage(recipe_of, "ppo", final(sft), weights, "ppo", ppo=ppo, training=still)
    assert metrics_of(run)[-1]["kl"] == 0.0  # the reference is the SFT model, adapters and all
    batch = collate([Segment([5, 6, 7], [[8, 9, 10], [11]])])
    with torch.no_grad():
        before, after = (load_policy(ModelSection(name_or_path=final(r)))(batch) for r in (sft, run))
        raw = load_policy(ModelSection(name_or_path=model_folder(architecture)))(batch)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert (before - raw).abs().max() > 0.05  # which is not the raw base


@EVERY
@ARCHITECTURES
def test_sft_dpo_then_the_tools(
    architecture: str,
    weights: str,
    recipe_of: Recipes,
    model_folder: Folders,
    tmp_path: Path,
    rows: dict[str, str],
) -> None:
    """Evaluation measures against the SFT model, and generation samples from what was trained."""
    import rlhf
    from tests.golden.support import recipe_file

    sft = stage(recipe_of, "sft", model_folder(architecture), weights, "sft")
    dpo = stage(recipe_of, "dpo", final(sft), weights, "dpo")
    lengths = {"callable": "tests.train.rewards:count_letters"}
    sampling = {"max_new_tokens": 5}
    evaluation = {
        "method": "eval",
        "output_dir": str(tmp_path / "eval"),
        "models": [{"name": name, "name_or_path": r.output_dir} for name, r in (("sft", sft), ("dpo", dpo))],
        "prompts": rows["ppo"],
        "sampling": sampling,
        "scorers": [lengths],
        "preferences": rows["dpo"],
    }
    report = rlhf.run(recipe_file(evaluation, tmp_path / "e"))
    assert report["models"][1]["implicit_accuracy"]["value"] == pytest.approx(metrics_of(dpo)[-1]["eval/accuracy"])
    assert report["models"][1]["kl"]["value"] != 0.0
    generation = {
        "method": "generate",
        "output_dir": str(tmp_path / "generated"),
        "model": {"name_or_path": final(dpo)},
        "prompts": rows["ppo"],
        "sampling": sampling | {"n": 2},
        "scorers": [lengths],
    }
    assert rlhf.run(recipe_file(generation, tmp_path / "g"))["rows_out"] > 0
    said = CliRunner().invoke(app, ["chat", dpo.output_dir], input="The film was\n/quit\n")
    assert said.exit_code == 0, said.output
    assert len(said.output.splitlines()) >= 2
    full = CliRunner().invoke(app, ["chat", dpo.output_dir], input="word " * 300 + "\n/quit\n")
    assert full.exit_code == 0 and "fills the model's 256 positions" in full.output


def test_a_lora_final_is_adapters_and_names_its_base(recipe_of: Recipes, model_folder: Folders) -> None:
    sft = stage(recipe_of, "sft", model_folder("llama"), "nf4", "sft")
    dpo = stage(recipe_of, "dpo", final(sft), "nf4", "dpo", training=STILL)
    files = {path.name for path in Path(final(dpo)).iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "lineage.json", "probe.json"} <= files
    assert "model.safetensors" not in files
    assert {value.dtype for value in load_file(Path(final(dpo)) / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    lineage = json.loads((Path(final(dpo)) / "lineage.json").read_text())
    assert lineage["base"]["name_or_path"] == model_folder("llama")
    assert lineage["base"]["quantization"]["bnb_4bit_quant_type"] == "nf4"
    assert [parent["method"] for parent in lineage["parents"]] == ["sft"]
    # an engine that loads base and adapter itself, such as vLLM, is given both
    assert base_and_adapter(final(dpo), None) == (model_folder("llama"), final(dpo))
    assert base_and_adapter(model_folder("llama"), None) == (model_folder("llama"), None)


@pytest.mark.parametrize("weights", ["lora", "nf4"])
def test_fresh_adapters_on_top_of_a_parents(weights: str, recipe_of: Recipes, model_folder: Folders) -> None:
    """Other layers and another rank: at the start the parent's function, in the end one adapter that holds both."""
    narrow = WEIGHTS[weights] | {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}
    sft = stage(recipe_of, "sft", model_folder("llama"), weights, "sft", **narrow)
    wide = {"lora": {"r": 6, "lora_alpha": 6, "start": "fresh"}}
    dpo = stage(recipe_of, "dpo", final(sft), weights, "dpo", **wide)
    start, end = metrics_of(dpo)[0], metrics_of(dpo)[-1]
    assert start["eval/margin"] == pytest.approx(0.0, abs=1e-6) and end["eval/margin"] > 0.1
    again = stage(recipe_of, "dpo", final(dpo), weights, "again", training=STILL, lora={"r": 10})
    assert close(weights, metrics_of(again)[0]["eval/logprobs/chosen"], end["eval/logprobs/chosen"])
    with pytest.raises(
        RecipeError, match=r"lora\.target_modules: all-linear here, but the adapters in .* lora\.start: fresh"
    ):
        stage(recipe_of, "dpo", final(sft), weights, "other", lora={"r": 4, "target_modules": "all-linear"})
    with pytest.raises(RecipeError, match=r"lora\.r: 6 here, but"):
        stage(recipe_of, "dpo", final(sft), weights, "other", lora={"r": 6})


def test_adapters_on_another_base_are_refused(recipe_of: Recipes, model_folder: Folders, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(model_folder("llama"), base)
    sft = stage(recipe_of, "sft", str(base), "lora", "sft")
    with pytest.raises(RecipeError, match=r"quantization: the adapters .* loaded without quantisation"):
        stage(recipe_of, "dpo", final(sft), "nf4", "dpo")
    weights = base / "model.safetensors"
    shutil.copy(Path(model_folder("llama")) / "config.json", weights)
    with pytest.raises(RecipeError, match="whose content has changed"):
        stage(recipe_of, "dpo", final(sft), "lora", "dpo")


def test_a_lost_delta_is_found_at_load(recipe_of: Recipes, model_folder: Folders) -> None:
    from safetensors.torch import save_file

    reward = stage(recipe_of, "reward", model_folder("llama"), "lora", "reward")
    path = Path(final(reward)) / "adapter_model.safetensors"
    save_file({name: value * 0.5 for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="this is not the model that was trained: its scores"):
        load_scalar_model(ModelSection(name_or_path=final(reward)))
